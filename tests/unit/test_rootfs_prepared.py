"""The provider of a rootfs that exists already."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from castoff.disk.clone import CloneKind, Role
from castoff.errors import CastoffError, Invalid, NotFound
from castoff.fakes.image_source import FakeImageSource
from castoff.image.digest import Digest
from castoff.image.image import Image, ImageConfig, Platform
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.prepared import PreparedProvider
from castoff.rootfs.provider import RootfsRequest
from castoff.rootfs.settings import RootfsSettings
from castoff.store.machines import read_machine_rootfs
from castoff.store.settings import StoreSettings
from castoff.store.store import Store

IMAGE = Image("registry.example/team/app:1", Digest.of(b"manifest"), Platform(), ImageConfig(), ())
REQUEST = RootfsRequest(IMAGE, FakeImageSource(IMAGE, {}))
SIZE = 1 << 20


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """What passes for a raw ext4."""
    path = tmp_path / "rootfs.ext4"
    data = bytearray(os.urandom(SIZE))
    data[:1080] = bytes(1080)
    data[1080:1082] = b"\x53\xef"
    path.write_bytes(data)
    return path


def provider(tmp_path: Path, **prepared: str) -> PreparedProvider:
    store = Store.open(tmp_path / "state", StoreSettings(backing="native"))
    return PreparedProvider(ProviderContext(store, RootfsSettings(prepared=prepared)))


async def test_an_image_that_nobody_named_is_not_its(tmp_path: Path) -> None:
    """None: the next provider is asked."""
    assert await provider(tmp_path).locate(REQUEST) is None


@pytest.mark.parametrize("key", [IMAGE.reference, str(IMAGE.digest)])
async def test_the_operator_names_one_for_an_image(tmp_path: Path, rootfs: Path, key: str) -> None:
    """By reference or by digest; its machine gets a copy, and a record of where it came from."""
    found = await provider(tmp_path, **{key: str(rootfs)}).locate(replace(REQUEST, clone=CloneKind.COPY))
    assert found is not None
    machine = tmp_path / "machine"
    machine.mkdir()
    (drive,) = await found.clone("m", machine)
    assert (drive.role, drive.path.read_bytes() == rootfs.read_bytes()) == (Role.ROOT, True)
    record = read_machine_rootfs(machine)
    assert record is not None
    assert (record.provider, record.state) == ("prepared", {"path": str(rootfs)})
    await found.release("m")
    assert rootfs.exists()


async def test_the_machines_own_choice_wins(tmp_path: Path, rootfs: Path) -> None:
    """Over what the operator's map has; relative paths are the caller's."""
    elsewhere = provider(tmp_path, **{IMAGE.reference: "/no/such/file"})
    found = await elsewhere.locate(replace(REQUEST, override=rootfs, clone=CloneKind.COPY))
    assert found is not None
    with pytest.raises(NotFound, match="/no/such/file does not exist"):
        await elsewhere.locate(REQUEST)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"QFI\xfb" + bytes(5000), "is qcow2, not a raw ext4; convert it with `qemu-img convert -O raw`"),
        (b"hsqs" + bytes(5000), "is squashfs"),
        (b"\x1f\x8b" + bytes(5000), "is gzip, not a raw ext4; decompress it"),
        (bytes(510) + b"\x55\xaa" + bytes(5000), "a partitioned disk"),
        (bytes(5000), "holds no ext4 filesystem"),
        (b"", "holds no ext4 filesystem"),
    ],
)
async def test_what_is_no_raw_ext4_is_refused(tmp_path: Path, head: bytes, said: str) -> None:
    """With what it is instead, where that can be told, and what to do."""
    path = tmp_path / "disk"
    path.write_bytes(head)
    with pytest.raises(Invalid) as caught:
        await provider(tmp_path).locate(replace(REQUEST, override=path))
    assert said in str(caught.value)


async def test_strange_files_neither_hang_nor_pass(tmp_path: Path) -> None:
    """A FIFO, a directory, a character device, a dangling link."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("nowhere")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/null"), tmp_path / "link"):
        with pytest.raises(CastoffError, match=str(path)):
            await provider(tmp_path).locate(replace(REQUEST, override=path))


async def test_its_size_is_its_own(tmp_path: Path, rootfs: Path) -> None:
    """More cannot be had; less is no wish that a machine would notice."""
    with pytest.raises(Invalid, match="keeps its size"):
        await provider(tmp_path).locate(replace(REQUEST, override=rootfs, size=SIZE * 2))
    assert await provider(tmp_path).locate(replace(REQUEST, override=rootfs, size=SIZE)) is not None
