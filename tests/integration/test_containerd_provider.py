"""The containerd provider with a real containerd: overlayfs and native, and snapshotters that answer block devices."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import daemons
from castoff.conformance.provider import check_provider
from castoff.disk.clone import CloneKind, Role
from castoff.errors import Conflict, DigestMismatch, Invalid, NoSpace, NotFound, Unavailable, Unsupported
from castoff.fakes.image_source import FakeImageSource
from castoff.image.digest import Digest
from castoff.rootfs.chain import configured_chain
from castoff.rootfs.containerd.provider import ContainerdProvider
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.provider import Rootfs, RootfsRequest
from castoff.rootfs.release import release_machine
from castoff.rootfs.settings import ContainerdSettings, RootfsSettings
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from image_requests import request_of
from oci_builder import LayerTar, build_image

MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture(scope="module")
def block_containerd(daemon_directory: Path) -> Iterator[daemons.Containerd]:
    """A containerd with two proxy snapshotters, ``device`` and ``file``."""
    directory = daemon_directory / "block"
    directory.mkdir()
    script = Path(__file__).parents[1] / "block_snapshotter.py"
    extra = ""
    with ExitStack() as stack:
        for mode in ("device", "file"):
            socket, images, log = directory / f"{mode}.sock", directory / mode, directory / f"{mode}.log"
            images.mkdir()
            command = [sys.executable, str(script), str(socket), str(images), mode, str(SIZE // MIB)]
            process = stack.enter_context(daemons.daemon(command, log))
            daemons.wait_for("block_snapshotter", socket.exists, process, log)
            extra += f'[proxy_plugins.{mode}]\ntype = "snapshot"\naddress = "{socket}"\n'
        yield stack.enter_context(daemons.containerd(directory / "containerd", extra=extra))


@dataclass(frozen=True)
class Asked:
    """A containerd, and how it is asked."""

    daemon: daemons.Containerd
    snapshotter: str

    @property
    def settings(self) -> ContainerdSettings:
        return ContainerdSettings(
            socket=str(self.daemon.socket), snapshotter=self.snapshotter, namespace=f"ns-{self.snapshotter}"
        )

    def provider(self, store: Store, **more: object) -> ContainerdProvider:
        return ContainerdProvider(self.context(store, **more))

    def context(self, store: Store, **more: object) -> ProviderContext:
        settings = RootfsSettings(containerd=self.settings, size=SIZE, providers=("containerd",), **more)  # type: ignore[arg-type]
        return ProviderContext(store, settings)

    def ctr(self, *arguments: str) -> list[str]:
        """What ctr prints, line by line."""
        command = ["ctr", "--address", str(self.daemon.socket), "--namespace", self.settings.namespace, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()

    def snapshots(self) -> dict[str, str]:
        """Key -> kind of what the snapshotter has."""
        rows = self.ctr("snapshots", "--snapshotter", self.snapshotter, "list")[1:]
        return {row.split()[0]: row.split()[-1] for row in rows}

    def leases(self) -> list[str]:
        return [row.split()[0] for row in self.ctr("leases", "list")[1:]]


@pytest.fixture(params=["overlayfs", "native"])
def files(request: pytest.FixtureRequest, containerd: daemons.Containerd) -> Asked:
    """Snapshotters of directories."""
    return Asked(containerd, request.param)


@pytest.fixture(params=["device", "file"])
def blocks(request: pytest.FixtureRequest, block_containerd: daemons.Containerd) -> Asked:
    """Snapshotters of block devices."""
    return Asked(block_containerd, request.param)


@pytest.fixture
def store(scratch_xfs: Path) -> Store:
    return Store.open(scratch_xfs / "state", StoreSettings(backing="native"))


def an_image(seed: str, *, layers: int = 3, compression: str = "gzip") -> RootfsRequest:
    """An image of its own for each seed: files, a whiteout, a hardlink, an xattr, odd owners.

    Namespaces share blobs (what one has, another does not fetch), so a seed has the snapshotter in it.
    """
    dice = random.Random(seed)
    tars = [
        LayerTar().directory("etc").file("etc/motd", b"lower %b\n" % seed.encode(), uid=1000, gid=70_000).file("etc/old", b"old")
    ]
    tars[0].file("data", dice.randbytes(300_000), mode=0o4755, xattrs={"user.test": b"value"}).fifo("pipe", mode=0o600)
    motd = b"upper %b\n" % seed.encode()
    tars += [LayerTar().file(f"layer-{number}", dice.randbytes(5000)).file("etc/motd", motd) for number in range(1, layers)]
    tars[-1].whiteout("etc/old").hardlink("etc/link", "etc/motd").symlink("etc/sym", "motd")
    return request_of(build_image(tars, compression=compression, cmd=["/bin/sh"]), reference=f"example.com/image-{seed}:1")  # type: ignore[arg-type]


@contextmanager
def mounted(path: Path, where: Path) -> Iterator[Path]:
    where.mkdir(exist_ok=True)
    options = "ro,noload" if path.is_block_device() else "ro,loop,noload"
    subprocess.run(["mount", "-o", options, str(path), str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def check_tree(root: Path, seed: str, *, layers: int = 3) -> None:
    """The image's files, attribute by attribute."""
    motd = root / "etc/motd"
    assert motd.read_bytes() == b"upper %b\n" % seed.encode()
    assert motd.stat().st_ino == (root / "etc/link").stat().st_ino
    assert (root / "etc/sym").readlink() == Path("motd")
    assert not (root / "etc/old").exists()
    dice = random.Random(seed)
    assert (root / "data").read_bytes() == dice.randbytes(300_000)
    assert (root / "data").stat().st_mode & 0o7777 == 0o4755
    assert os.getxattr(root / "data", "user.test") == b"value"
    assert (root / "pipe").is_fifo()
    for number in range(1, layers):
        assert (root / f"layer-{number}").read_bytes() == dice.randbytes(5000)


async def test_directories_become_an_ext4(files: Asked, store: Store, tmp_path: Path) -> None:
    """Pulled, unpacked, made into an image once; the second locate asks nobody; containerd has nothing of a machine."""
    request = an_image(f"1 {files.snapshotter}")
    provider = files.provider(store)
    found = await provider.locate(request)
    assert isinstance(request.source, FakeImageSource)
    assert found is not None
    machine = store.machines / "m"
    machine.mkdir()
    (drive,) = await found.clone("m", machine)
    checked = subprocess.run(["e2fsck", "-fn", str(drive.path)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    with mounted(drive.path, tmp_path / "mnt") as root:
        check_tree(root, f"1 {files.snapshotter}")
    assert await files.provider(store).locate(request) is not None
    assert len(request.source.opened) == 3
    assert files.leases() == []
    assert set(files.snapshots().values()) == {"Committed"}
    assert drive.path.stat().st_size == SIZE


async def test_block_devices_are_handed_over_as_they_are(blocks: Asked, store: Store, tmp_path: Path) -> None:
    """Each machine has a snapshot of its own, kept by a lease of its own, until it is released."""
    found = await blocks.provider(store).locate(an_image(f"2 {blocks.snapshotter}"))
    assert found is not None
    drives = {}
    for name in ("a", "b"):
        (store.machines / name).mkdir()
        (drives[name],) = await found.clone(name, store.machines / name)
    first, second = drives["a"], drives["b"]
    assert (first.role, first.read_only) == (Role.ROOT, False)
    assert first.path != second.path
    assert first.path.is_block_device() is (blocks.snapshotter == "device")
    for drive in drives.values():
        with mounted(drive.path, tmp_path / "mnt") as root:
            check_tree(root, f"2 {blocks.snapshotter}")
    assert sorted(blocks.leases()) == ["castoff-machine-a", "castoff-machine-b"]
    await found.release("a")
    assert blocks.leases() == ["castoff-machine-b"]
    assert [key for key, kind in blocks.snapshots().items() if kind == "Active"] == ["castoff-machine-b"]
    await found.release("b")


async def test_a_later_process_releases(blocks: Asked, store: Store) -> None:
    """By what the machine's directory says; twice is once; what the settings say by then does not matter."""
    found = await blocks.provider(store).locate(an_image(f"3 {blocks.snapshotter}"))
    assert found is not None
    machine = store.machines / "later"
    machine.mkdir()
    await found.clone("later", machine)
    assert "castoff-machine-later" in blocks.leases()
    context = ProviderContext(store, RootfsSettings(containerd=ContainerdSettings(socket="/nowhere", namespace="other")))
    for _ in range(2):
        await release_machine("later", machine, context)
    assert "castoff-machine-later" not in blocks.leases()
    assert "castoff-machine-later" not in blocks.snapshots()


async def test_machines_survive_garbage_collection(blocks: Asked, store: Store) -> None:
    """A collection right after another lease went leaves a machine's snapshot, and its image."""
    found = await blocks.provider(store).locate(an_image(f"4 {blocks.snapshotter}"))
    assert found is not None
    (store.machines / "gc").mkdir()
    (drive,) = await found.clone("gc", store.machines / "gc")
    blocks.ctr("leases", "create", "--id", "temporary")
    blocks.ctr("leases", "delete", "--sync", "temporary")
    assert blocks.snapshots()["castoff-machine-gc"] == "Active"
    assert drive.path.exists()
    again = await blocks.provider(store).locate(an_image(f"4 {blocks.snapshotter}"))
    assert again is not None
    await found.release("gc")


async def test_it_keeps_a_providers_promises_with_files(files: Asked, store: Store) -> None:
    """The conformance suite."""
    await check_provider(files.provider(store), an_image(f"5 {files.snapshotter}"), store.machines)


async def test_it_keeps_a_providers_promises_with_blocks(blocks: Asked, store: Store) -> None:
    """The conformance suite."""
    await check_provider(blocks.provider(store), an_image(f"6 {blocks.snapshotter}"), store.machines)


async def test_images_show_in_containerd(files: Asked, store: Store) -> None:
    """Under their reference, complete, with our digest as a label; a collection leaves them."""
    request = an_image(f"7 {files.snapshotter}")
    await files.provider(store).locate(request)
    files.ctr("leases", "create", "--id", "temporary")
    files.ctr("leases", "delete", "--sync", "temporary")
    (row,) = [row for row in files.ctr("images", "list") if request.image.reference in row]
    assert f"castoff/image={request.image.digest}" in row
    assert [row for row in files.ctr("images", "check") if request.image.reference in row and "complete (4/4)" in row]
    content = files.ctr("content", "list", "--quiet")
    assert {str(layer.digest) for layer in request.image.layers} <= set(content)


async def test_shared_layers_are_fetched_and_unpacked_once(files: Asked, store: Store) -> None:
    """An image on top of another fetches what it adds."""
    dice = random.Random(8)
    lower = LayerTar().file("base", dice.randbytes(10_000))
    upper = LayerTar().file("more", dice.randbytes(10_000))
    first = request_of(build_image([lower]), reference="example.com/base:1")
    second = request_of(build_image([lower, upper]), reference="example.com/more:1")
    provider = files.provider(store)
    await provider.locate(first)
    before = len(files.snapshots())
    await provider.locate(second)
    assert len(files.snapshots()) == before + 1


async def test_ten_at_once_pull_once(blocks: Asked, store: Store) -> None:
    """Each layer's blob is opened once."""
    request = an_image(f"9 {blocks.snapshotter}")
    found = await asyncio.gather(*(blocks.provider(store).locate(request) for _ in range(10)))
    assert all(found)
    assert isinstance(request.source, FakeImageSource)
    assert len(request.source.opened) == 3


@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_every_compression_is_unpacked(files: Asked, store: Store, tmp_path: Path, compression: str) -> None:
    """containerd's differ reads what we hand through."""
    seed = f"{compression} {files.snapshotter}"
    found = await files.provider(store).locate(an_image(seed, compression=compression))
    with mounted(path_of(found), tmp_path / "mnt") as root:
        check_tree(root, seed)


async def test_an_image_of_sixty_layers(files: Asked, store: Store, tmp_path: Path) -> None:
    """More than mount(2) takes as text with full paths."""
    found = await files.provider(store).locate(an_image(f"20 {files.snapshotter}", layers=60))
    with mounted(path_of(found), tmp_path / "mnt") as root:
        check_tree(root, f"20 {files.snapshotter}", layers=60)


async def test_an_image_without_layers(files: Asked, store: Store) -> None:
    """Is an empty filesystem."""
    found = await files.provider(store).locate(request_of(build_image([]), reference="example.com/scratch:1"))
    assert found is not None


async def test_a_blob_that_is_another_is_refused(files: Asked, store: Store) -> None:
    """containerd checks digests; nothing of it stays, no lease, no half snapshot."""
    request = an_image(f"21 {files.snapshotter}")
    blobs = {layer.digest: bytes(layer.size) for layer in request.image.layers}
    with pytest.raises(Invalid, match="unexpected commit digest"):
        await files.provider(store).locate(replace(request, source=FakeImageSource(request.image, blobs)))
    assert files.leases() == []
    assert "Active" not in files.snapshots().values()
    assert await files.provider(store).locate(request) is not None


async def test_a_wrong_diff_id_is_refused(files: Asked, store: Store) -> None:
    """A blob that unpacks to another tar than the config says."""
    request = an_image(f"22 {files.snapshotter}")
    wrong = replace(request.image.layers[1], diff_id=Digest.of(b"another"))
    image = replace(request.image, layers=(request.image.layers[0], wrong, request.image.layers[2]))
    with pytest.raises(DigestMismatch, match=str(wrong.digest)):
        await files.provider(store).locate(replace(request, image=image))
    assert "Active" not in files.snapshots().values()
    assert files.leases() == []


async def test_a_source_that_breaks_leaves_nothing_and_a_retry_works(blocks: Asked, store: Store) -> None:
    """An interrupted write is begun anew."""
    dice = random.Random(f"23 {blocks.snapshotter}")
    built = build_image([LayerTar().file("big", dice.randbytes(3 * MIB))], compression="none")
    request = request_of(built, reference="example.com/breaks:1")
    blobs = {Digest.parse(blob.digest): blob.data for blob in built.layers}
    error = Unavailable("the registry went away")
    broken = FakeImageSource(request.image, blobs, piece=65536, breaks_at=(MIB, error))
    with pytest.raises(Unavailable, match="the registry went away"):
        await blocks.provider(store).locate(replace(request, source=broken))
    assert blocks.leases() == []
    assert await blocks.provider(store).locate(request) is not None


async def test_cancelling_a_pull_leaves_no_lease(files: Asked, store: Store) -> None:
    """Nor a snapshot that is half unpacked; the next one works."""
    request = request_of(
        build_image([LayerTar().file("big", random.Random(f"24 {files.snapshotter}").randbytes(24 * MIB))], compression="none"),
        reference="example.com/c:1",
    )
    assert isinstance(request.source, FakeImageSource)
    task = asyncio.create_task(files.provider(store).locate(request))
    while not request.source.opened:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files.leases() == []
    assert "Active" not in files.snapshots().values()
    assert await files.provider(store).locate(request) is not None


async def test_wishes_that_block_devices_cannot_grant(blocks: Asked, store: Store) -> None:
    """A size over the snapshotter's, another clone."""
    request = an_image(f"25 {blocks.snapshotter}")
    with pytest.raises(Invalid, match=rf"have {SIZE} bytes, and {SIZE * 2} were asked for"):
        await blocks.provider(store).locate(replace(request, size=SIZE * 2))
    with pytest.raises(Unsupported, match="leave --clone away"):
        await blocks.provider(store).locate(replace(request, clone=CloneKind.COPY))


async def test_a_machine_has_one_snapshot(blocks: Asked, store: Store) -> None:
    """A second clone for it is a conflict, and the first stays."""
    found = await blocks.provider(store).locate(an_image(f"26 {blocks.snapshotter}"))
    assert found is not None
    (store.machines / "one").mkdir()
    await found.clone("one", store.machines / "one")
    with pytest.raises(Conflict, match="machine one has a snapshot"):
        await found.clone("one", store.machines / "one")
    assert "castoff-machine-one" in blocks.snapshots()
    await found.release("one")


async def test_an_image_that_does_not_fit_says_so(files: Asked, store: Store) -> None:
    """With what to do."""
    request = request_of(
        build_image([LayerTar().file("big", random.Random(27).randbytes(12 * MIB))]), reference="example.com/too-big:1"
    )
    with pytest.raises(Invalid, match=r"does not fit into .* bytes.*--disk-size"):
        await files.provider(store).locate(replace(request, size=8 * MIB))
    assert list((store.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_a_full_disk_is_foreseen(files: Asked, tmp_path: Path, compression: str) -> None:
    """Before mke2fs begins where the blobs alone are more than what is free; on the way where it turns out so."""
    data = random.Random(30).randbytes(36 * MIB) if compression == "none" else random.Random(30).randbytes(MIB) * 128
    said = r"needs 37\.\d MB and has 33\.\d MB" if compression == "none" else r"needs .* MB and has .* MB"
    request = request_of(
        build_image([LayerTar().file("big", data)], compression=compression),  # type: ignore[arg-type]
        reference=f"example.com/full-{compression}:1",
    )
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(small)], check=True)
    try:
        reserve = 64 * MIB if compression == "none" else 8 * MIB
        store = Store.open(small / "state", StoreSettings(backing="native", reserve=reserve))
        with pytest.raises(NoSpace, match=said):
            await files.provider(store).locate(replace(request, size=512 * MIB))
        assert list((store.root / "tmp").iterdir()) == []
        assert list((store.root / "rootfs").iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


async def test_clones_of_the_made_ext4_are_of_any_kind(files: Asked, store: Store) -> None:
    """It is a rootfs of the store like any other."""
    for kind in CloneKind:
        found = await files.provider(store).locate(replace(an_image(f"28 {files.snapshotter}"), clone=kind))
        assert found is not None
        machine = store.machines / f"of-{kind}"
        machine.mkdir()
        roles = [drive.role for drive in await found.clone("m", machine)]
        assert roles == ([Role.BASE, Role.UPPER] if kind is CloneKind.OVERLAY else [Role.ROOT])


async def test_no_containerd_is_no_answer_unless_one_is_asked_for(store: Store, tmp_path: Path) -> None:
    """The next provider's turn; an error where the settings have a section for it, or name no other."""
    request = an_image("29")
    elsewhere = ContainerdSettings(socket=str(tmp_path / "sock"))
    for settings in (RootfsSettings(containerd=elsewhere), RootfsSettings(providers=("containerd",), containerd=elsewhere)):
        with pytest.raises(NotFound, match="no containerd listens at"):
            await ContainerdProvider(ProviderContext(store, settings)).locate(request)
    if not Path(ContainerdSettings().socket).exists():
        assert await ContainerdProvider(ProviderContext(store)).locate(request) is None
        with pytest.raises(NotFound, match="containerd: no containerd listens at"):
            await configured_chain(ProviderContext(store).only("containerd")).locate(request)


async def test_a_socket_that_nobody_answers_is_an_error(store: Store, tmp_path: Path) -> None:
    """Within the time limit of the question whether anybody is there."""
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        settings = RootfsSettings(containerd=ContainerdSettings(socket=str(tmp_path / "sock")))
        with pytest.raises(Unavailable, match="containerd: Version"):
            await ContainerdProvider(ProviderContext(store, settings)).locate(an_image("30"))


def path_of(found: Rootfs | None) -> Path:
    path = getattr(found, "path", None)
    assert isinstance(path, Path)
    return path
