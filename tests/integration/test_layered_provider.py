"""The provider of composed root filesystems, over real layers, on a filesystem that reflinks and on one that does not."""

from __future__ import annotations

import asyncio
import hashlib
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from castoff.conformance.provider import check_provider
from castoff.disk.clone import CloneKind
from castoff.errors import DigestMismatch, Invalid, NoSpace, Unavailable
from castoff.fakes.image_source import FakeImageSource
from castoff.image.digest import Digest
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.layered import LayeredProvider
from castoff.rootfs.provider import Rootfs, RootfsRequest
from castoff.rootfs.settings import RootfsSettings
from castoff.store.extents import extents
from castoff.store.rootfs import COMPOSITION
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from image_requests import request_of
from oci_builder import LayerTar, build_image

MIB = 1 << 20


def lower_layer(files: int = 40) -> LayerTar:
    """Files of many sizes."""
    dice = random.Random(7)
    tar = LayerTar().directory("etc", mode=0o755).file("etc/motd", b"lower\n").directory("data")
    for number in range(files):
        tar.file(f"data/{number}", dice.randbytes(dice.choice([0, 1, 4095, 4096, 70_000, 300_000])))
    return tar


def upper_layer() -> LayerTar:
    return LayerTar().file("etc/motd", b"upper\n").whiteout("data/3").hardlink("etc/link", "data/4").symlink("etc/sym", "motd")


def opened_by(request: RootfsRequest) -> int:
    assert isinstance(request.source, FakeImageSource)
    return len(request.source.opened)


def provider_in(directory: Path, settings: RootfsSettings | None = None, **store: object) -> LayeredProvider:
    opened = Store.open(directory, StoreSettings(backing="native", **store))  # type: ignore[arg-type]
    return LayeredProvider(ProviderContext(opened, settings or RootfsSettings()))


async def located(provider: LayeredProvider, request: RootfsRequest) -> Path:
    """The rootfs file."""
    return file_of(await provider.locate(request))


def file_of(found: Rootfs | None) -> Path:
    path = getattr(found, "path", None)
    assert isinstance(path, Path)
    return path


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked(path: Path) -> None:
    """e2fsck says nothing but its passes."""
    done = subprocess.run(["e2fsck", "-fn", str(path)], capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if not line.startswith("Pass ") and str(path) not in line]
    assert (done.returncode, said) == (0, []), done.stdout


@contextmanager
def mounted(path: Path, where: Path) -> Iterator[Path]:
    where.mkdir()
    subprocess.run(["mount", "-o", "ro,loop,noload", str(path), str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


@pytest.fixture(params=["xfs", "ext4"])
def directory(request: pytest.FixtureRequest, scratch_xfs: Path, tmp_path: Path) -> Path:
    """Where a state directory can be made: reflinking or not."""
    return scratch_xfs if request.param == "xfs" else tmp_path


async def test_what_cannot_be_lazy_starts_no_hydrator(directory: Path) -> None:
    """A copy needs all of the image: nobody is woken for it, and no registry is asked."""
    state = directory / "state"
    (state / "keys").mkdir(parents=True)
    built = build_image([lower_layer(4)])
    await located(provider_in(state, RootfsSettings(clone=CloneKind.COPY)), request_of(built))
    assert not (state / "hydrate").exists()


async def test_an_image_becomes_a_filesystem(directory: Path) -> None:
    """The kernel mounts it, e2fsck finds nothing, the files are the image's."""
    built = build_image([lower_layer(), upper_layer()])
    rootfs = await located(provider_in(directory / "state"), request_of(built))
    checked(rootfs)
    with mounted(rootfs, directory / "mnt") as root:
        assert (root / "etc/motd").read_bytes() == b"upper\n"
        assert (root / "etc/sym").readlink() == Path("motd")
        assert not (root / "data/3").exists()
        assert (root / "etc/link").stat().st_ino == (root / "data/4").stat().st_ino
        dice = random.Random(7)
        for number in range(40):
            data = dice.randbytes(dice.choice([0, 1, 4095, 4096, 70_000, 300_000]))
            assert number == 3 or (root / f"data/{number}").read_bytes() == data


async def test_it_keeps_a_providers_promises(directory: Path) -> None:
    """The conformance suite, with every clone that is possible there."""
    request = request_of(build_image([lower_layer()]))
    provider = provider_in(directory / "state")
    store = Store.open(directory / "state", StoreSettings(backing="native"))
    for kind in (None, CloneKind.OVERLAY, CloneKind.COPY):
        machines = store.machines / f"of-{kind}"
        machines.mkdir()
        await check_provider(provider, replace(request, clone=kind), machines)


async def test_same_image_same_bytes(scratch_xfs: Path, tmp_path: Path) -> None:
    """Two stores, on two filesystems, shared and copied; and again after everything was pruned."""
    built = build_image([lower_layer(), upper_layer()], compression="zstd")
    settings = RootfsSettings(size=256 * MIB)
    here = await located(provider_in(scratch_xfs / "state", settings), request_of(built))
    there = await located(provider_in(tmp_path / "state", settings), request_of(built))
    first = digest_of(here)
    assert first == digest_of(there)
    await Store.open(tmp_path / "state", StoreSettings(backing="native")).prune()
    assert not there.exists()
    assert digest_of(await located(provider_in(tmp_path / "state", settings), request_of(built))) == first


async def test_a_rootfs_shares_its_layers_blocks(scratch_xfs: Path) -> None:
    """On XFS nothing of a segment is copied: every extent behind the metadata is shared."""
    rootfs = await located(provider_in(scratch_xfs / "state"), request_of(build_image([lower_layer(200)])))
    store = Store.open(scratch_xfs / "state")
    (layer,) = (await store.usage()).layers
    (usage,) = (await store.usage()).rootfs
    assert usage.allocated > layer.allocated * 9 // 10
    assert usage.own < 2 * MIB
    with rootfs.open("rb") as file:
        found = extents(file.fileno())
    assert found is not None
    assert sum(extent.length for extent in found if extent.shared) >= layer.allocated * 9 // 10


async def test_layers_are_converted_once_for_all_images(directory: Path) -> None:
    """A second image with the same lower layer fetches only its own; the first one again, nothing."""
    provider = provider_in(directory / "state")
    first = request_of(build_image([lower_layer()]))
    second = request_of(build_image([lower_layer(), upper_layer()]))
    await provider.locate(first)
    await provider.locate(second)
    await provider.locate(first)
    assert (opened_by(first), opened_by(second)) == (1, 1)


async def test_a_layer_that_comes_twice_is_converted_once_and_placed_twice(directory: Path) -> None:
    """As an image whose Dockerfile repeats a step has it."""
    request = request_of(build_image([lower_layer(), upper_layer(), lower_layer(), lower_layer()]))
    rootfs = await located(provider_in(directory / "state"), request)
    assert opened_by(request) == 2
    checked(rootfs)
    with mounted(rootfs, directory / "mnt") as root:
        assert (root / "etc/motd").read_bytes() == b"lower\n"
        assert (root / "data/3").exists()


async def test_an_image_without_layers_is_an_empty_filesystem(directory: Path) -> None:
    """Which is one."""
    rootfs = await located(provider_in(directory / "state"), request_of(build_image([])))
    checked(rootfs)


async def test_many_creates_at_once_work_once(directory: Path) -> None:
    """Ten requests for a new image: each layer is opened once, one rootfs is made."""
    request = request_of(build_image([lower_layer(), upper_layer()]))
    provider = provider_in(directory / "state")
    found = await asyncio.gather(*(provider.locate(request) for _ in range(10)))
    assert len({file_of(rootfs) for rootfs in found}) == 1
    assert opened_by(request) == 2


async def test_sizes_are_compositions_of_their_own(directory: Path) -> None:
    """Another size converts nothing anew, and both are there; without one the setting's is taken."""
    request = request_of(build_image([lower_layer()]))
    provider = provider_in(directory / "state", RootfsSettings(size=512 * MIB))
    sizes = []
    for size in (None, 64 * MIB, 3 << 30, 512 * MIB):
        rootfs = await located(provider, replace(request, size=size))
        checked(rootfs)
        sizes.append(rootfs.stat().st_size)
    assert sizes == [512 * MIB, 64 * MIB, 3 << 30, 512 * MIB]
    assert opened_by(request) == 1
    assert len(list((directory / "state/store/rootfs").iterdir())) == 3


async def test_a_large_image_gets_a_larger_rootfs_by_itself(directory: Path) -> None:
    """At least half of it is free; the same the second time, when it is found."""
    request = request_of(build_image([LayerTar().file("data", random.Random(1).randbytes(20 * MIB))]))
    provider = provider_in(directory / "state", RootfsSettings(size=16 * MIB))
    rootfs = await located(provider, request)
    assert rootfs.stat().st_size == 64 * MIB
    assert await located(provider, request) == rootfs
    checked(rootfs)


async def test_too_small_a_size_is_refused_with_the_figure(directory: Path) -> None:
    """And leaves the layers, which the next try uses."""
    request = request_of(build_image([LayerTar().file("data", random.Random(1).randbytes(20 * MIB))]))
    provider = provider_in(directory / "state")
    with pytest.raises(Invalid, match=r"needs a root filesystem of 2\d{7} bytes or more.*--disk-size"):
        await provider.locate(replace(request, size=16 * MIB))
    assert list((directory / "state/store/rootfs").iterdir()) == []
    assert list((directory / "state/store/tmp").iterdir()) == []
    await provider.locate(request)
    assert opened_by(request) == 1


async def test_a_layer_that_is_another_poisons_nothing(directory: Path) -> None:
    """A blob that does not hash to its diffID: an error that says so, and the layer is not here under that name."""
    built = build_image([lower_layer()])
    honest = request_of(built)
    wrong = Digest.of(b"another layer's tar")
    image = replace(honest.image, layers=(replace(honest.image.layers[0], diff_id=wrong),))
    provider = provider_in(directory / "state")
    with pytest.raises(DigestMismatch, match=wrong.hex):
        await provider.locate(replace(honest, image=image))
    assert list((directory / "state/store/layers").iterdir()) == []
    assert list((directory / "state/store/tmp").iterdir()) == []


async def test_one_broken_layer_stops_the_others(directory: Path) -> None:
    """The error is that layer's; nothing half is left, and no lock."""
    dice = random.Random(3)
    built = build_image([LayerTar().file("a", dice.randbytes(8 * MIB)), LayerTar().file("b", dice.randbytes(8 * MIB))])
    request = request_of(built)
    blobs = {Digest.parse(blob.digest): blob.data for blob in built.layers}
    source = FakeImageSource(request.image, blobs, piece=65536, breaks_at=(3 * MIB, Unavailable("the registry went away")))
    provider = provider_in(directory / "state")
    with pytest.raises(Unavailable, match="the registry went away"):
        await provider.locate(replace(request, source=source))
    for area in ("layers", "rootfs", "tmp", "locks"):
        assert list((directory / "state/store" / area).iterdir()) == []
    await provider.locate(request)


async def test_cancelling_leaves_nothing(directory: Path) -> None:
    """In the midst of a conversion."""
    request = request_of(build_image([LayerTar().file("a", random.Random(3).randbytes(32 * MIB))], compression="none"))
    task = asyncio.create_task(provider_in(directory / "state").locate(request))
    while opened_by(request) == 0:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for area in ("layers", "rootfs", "tmp", "locks"):
        assert list((directory / "state/store" / area).iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 96 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(where)], check=True)
    yield where
    subprocess.run(["umount", str(where)], check=True)


async def test_a_full_disk_is_foreseen_before_the_first_byte(small_disk: Path) -> None:
    """A layer whose blob alone is larger than what is free: refused with both figures, its blob never opened."""
    request = request_of(build_image([LayerTar().file("a", random.Random(3).randbytes(48 * MIB))], compression="none"))
    with pytest.raises(NoSpace, match=r"needs 50\.3 MB and has 33\.\d MB"):
        await provider_in(small_disk / "state").locate(request)
    assert opened_by(request) == 0


async def test_a_full_disk_is_foreseen_on_the_way(small_disk: Path) -> None:
    """A layer that unpacks to much more than its blob: stopped while there is still room, and nothing is left."""
    text = np.repeat(np.frombuffer(random.Random(3).randbytes(4 * MIB), np.uint8), 64).tobytes()  # 256 MiB; a 16th of it packed
    request = request_of(build_image([LayerTar().file("a", text)], compression="zstd"))
    assert sum(layer.size for layer in request.image.layers) < 32 * MIB
    provider = provider_in(small_disk / "state", reserve=16 * MIB)
    with pytest.raises(NoSpace, match=r"needs .* MB and has .* MB"):
        await provider.locate(request)
    for area in ("layers", "rootfs", "tmp", "locks"):
        assert list((small_disk / "state/store" / area).iterdir()) == []


async def test_what_was_made_stays_within_the_limit(tmp_path: Path) -> None:
    """store.size_limit: an older image goes when a new one comes."""
    old = request_of(build_image([LayerTar().file("a", random.Random(1).randbytes(4 * MIB))]))
    new = request_of(build_image([LayerTar().file("a", random.Random(2).randbytes(4 * MIB))]))
    provider = provider_in(tmp_path / "state", size_limit=12 * MIB)
    first = await located(provider, old)
    await located(provider, new)
    assert not first.exists()
    await provider.locate(old)
    assert (opened_by(old), opened_by(new)) == (2, 1)


def test_the_version_of_keys_is_the_compositions() -> None:
    """Another way of composing must not find the old one's files; the constant is a copy, since that module needs numpy."""
    from castoff.ext4.superblock import FORMAT

    assert COMPOSITION == FORMAT


async def test_a_warm_locate_and_clone_imports_nothing_heavy(scratch_xfs: Path) -> None:
    """In a new process: neither numpy nor any other library that only a conversion needs."""
    built = build_image([lower_layer(), upper_layer()])
    provider = provider_in(scratch_xfs / "state")
    request = request_of(built)
    await provider.locate(request)
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from castoff.fakes.image_source import FakeImageSource\n"
        "from castoff.image.digest import Digest\n"
        "from castoff.image.image import Image, ImageConfig, Layer, Platform\n"
        "from castoff.rootfs.chain import configured_chain\n"
        "from castoff.rootfs.context import ProviderContext\n"
        "from castoff.rootfs.provider import RootfsRequest\n"
        "from castoff.store.store import Store\n"
        "async def main():\n"
        "    store = Store.open(Path(sys.argv[1]))\n"
        "    layers = tuple(Layer(Digest.of(b''), 0, '', Digest.parse(text)) for text in sys.argv[2:])\n"
        "    image = Image('x', Digest.of(b''), Platform(), ImageConfig(), layers)\n"
        "    found = await configured_chain(ProviderContext(store)).locate(RootfsRequest(image, FakeImageSource(image, {})))\n"
        "    machine = store.machines / 'm'; machine.mkdir()\n"
        "    drives = await found.clone('m', machine)\n"
        "    heavy = {'numpy', 'aiohttp', 'rich', 'zstandard', 'grpc', 'blake3', 'isal', 'tempfile', 'importlib.metadata'}\n"
        "    print(drives[0].role, sorted(heavy & set(sys.modules)))\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", script, str(scratch_xfs / "state"), *built.diff_ids]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "root []", done.stderr
