"""A prepared rootfs that is a block device."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from castoff.disk.clone import CloneKind, Role
from castoff.errors import Unsupported
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.prepared import PreparedProvider
from castoff.rootfs.settings import RootfsSettings
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from image_requests import request_of
from oci_builder import LayerTar, build_image

MIB = 1 << 20
REQUEST = request_of(build_image([LayerTar().file("a", b"a")]))


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A loop device of 64 MiB with an ext4 that mke2fs made."""
    image = tmp_path / "image"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(image), "64M"], check=True, capture_output=True)
    command = ["losetup", "--find", "--show", str(image)]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    yield Path(path)
    subprocess.run(["losetup", "--detach", path], check=True)


async def test_machines_share_it_or_have_copies(device: Path, scratch_xfs: Path) -> None:
    """Without a wish it is the base of overlays, never written; a copy is a file with the same bytes; a reflink cannot be."""
    store = Store.open(scratch_xfs / "state", StoreSettings(backing="native"))
    provider = PreparedProvider(ProviderContext(store, RootfsSettings()))
    request = replace(REQUEST, override=device)
    for name, clone in (("shared", None), ("copied", CloneKind.COPY)):
        found = await provider.locate(replace(request, clone=clone))
        assert found is not None
        assert found.size == 64 * MIB
        directory = store.machines / name
        directory.mkdir()
        drives = {drive.role: drive for drive in await found.clone(name, directory)}
        if clone is None:
            assert (drives[Role.BASE].path, drives[Role.BASE].read_only) == (device, True)
            assert drives[Role.UPPER].path.parent == directory
        else:
            subprocess.run(["cmp", str(device), str(drives[Role.ROOT].path)], check=True)
        await found.release(name)
    with pytest.raises(Unsupported, match="block device and cannot be reflinked"):
        await provider.locate(replace(request, clone=CloneKind.REFLINK))
