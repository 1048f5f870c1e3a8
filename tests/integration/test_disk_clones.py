"""Every clone strategy, on a filesystem that reflinks and on one that does not."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from castoff.conformance.clone import check_clone
from castoff.disk.choose import BestClone, clone_strategy
from castoff.disk.clone import CloneKind, Role
from castoff.disk.copy import CopyClone
from castoff.disk.overlay import OverlayClone
from castoff.disk.place import place_segment
from castoff.disk.reflink import ReflinkClone
from castoff.errors import NoSpace, Unsupported
from castoff.store.extents import extents
from castoff.store.settings import StoreSettings
from castoff.store.store import Store

MIB = 1 << 20


@pytest.fixture
def plain(daemon_directory: Path) -> Iterator[Path]:
    """A directory on ext4, which does not reflink."""
    directory = Path(tempfile.mkdtemp(dir=daemon_directory))
    yield directory
    shutil.rmtree(directory)


def sparse_file(path: Path, *, size: int = 64 * MIB, seed: int = 1) -> Path:
    """A file of mostly holes."""
    dice = random.Random(seed)
    with path.open("xb") as file:
        file.truncate(size)
        for _ in range(24):
            file.seek(dice.randrange(0, size - MIB, 4096))
            file.write(dice.randbytes(dice.choice([4096, 65536, 300_000])))
    return path


@pytest.mark.parametrize("kind", list(CloneKind))
async def test_strategies_keep_their_promises_on_xfs(scratch_xfs: Path, kind: CloneKind) -> None:
    """The conformance suite."""
    store = Store.open(scratch_xfs / "state")
    await check_clone(clone_strategy(kind, store), sparse_file(store.root / "rootfs" / "image"), store.machines)


@pytest.mark.parametrize("kind", [CloneKind.OVERLAY, CloneKind.COPY])
async def test_strategies_keep_their_promises_without_reflinks(plain: Path, kind: CloneKind) -> None:
    """The conformance suite, where everything must be copied."""
    store = Store.open(plain / "state", StoreSettings(backing="native"))
    assert not store.reflink
    await check_clone(clone_strategy(kind, store), sparse_file(store.root / "rootfs" / "image"), store.machines)


@pytest.mark.parametrize("reflinks", [True, False])
async def test_the_best_one_keeps_them_too(scratch_xfs: Path, plain: Path, reflinks: bool) -> None:
    """Reflink here, overlay there."""
    store = Store.open((scratch_xfs if reflinks else plain) / "state", StoreSettings(backing="native"))
    best = BestClone(store)
    assert best.kind is (CloneKind.REFLINK if reflinks else CloneKind.OVERLAY)
    await check_clone(best, sparse_file(store.root / "rootfs" / "image"), store.machines)


async def test_a_reflink_shares_everything_and_copies_nothing(scratch_xfs: Path) -> None:
    """The clone's extents are the rootfs' own."""
    rootfs = sparse_file(scratch_xfs / "image")
    drives = await ReflinkClone().clone(rootfs, scratch_xfs, size=64 * MIB)
    with rootfs.open("rb") as original, drives[0].path.open("rb") as clone:
        theirs, ours = extents(original.fileno()), extents(clone.fileno())
    assert ours
    assert ours == theirs
    assert all(extent.shared for extent in ours)


async def test_a_reflink_across_filesystems_is_refused(scratch_xfs: Path, plain: Path) -> None:
    """With what to do instead; nothing is left. The best strategy takes the overlay then."""
    store = Store.open(scratch_xfs / "state")
    rootfs = sparse_file(plain / "image")
    machine = store.machines / "m"
    machine.mkdir()
    with pytest.raises(Unsupported, match="--clone overlay or copy"):
        await ReflinkClone().clone(rootfs, machine, size=64 * MIB)
    assert list(machine.iterdir()) == []
    drives = await BestClone(store).clone(rootfs, machine, size=64 * MIB)
    assert [(drive.role, drive.path) for drive in drives] == [(Role.BASE, rootfs), (Role.UPPER, machine / "upper.ext4")]


async def test_a_copy_has_the_rootfs_holes(plain: Path) -> None:
    """It takes what the data takes, not what the size says."""
    rootfs = sparse_file(plain / "image", size=1 << 30)
    (plain / "m").mkdir()
    drives = await CopyClone(Store.open(plain / "state", StoreSettings(backing="native"))).clone(
        rootfs, plain / "m", size=1 << 30
    )
    status = drives[0].path.stat()
    assert status.st_size == 1 << 30
    assert status.st_blocks <= rootfs.stat().st_blocks + 64


async def test_a_copy_that_cannot_fit_is_refused_at_once(plain: Path) -> None:
    """With both figures, before the first byte: here into a tmpfs of 8 MiB, of which 2 are in reserve."""
    small = plain / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)], check=True)
    try:
        rootfs = plain / "image"
        rootfs.write_bytes(os.urandom(9 * MIB))
        store = Store.open(small / "state", StoreSettings(backing="native", reserve=2 * MIB))
        with pytest.raises(NoSpace, match=r"needs 9\.4 MB and has 6\.\d MB"):
            await CopyClone(store).clone(rootfs, store.machines, size=9 * MIB)
        assert list(store.machines.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


async def test_a_copy_stops_when_it_is_cancelled(plain: Path) -> None:
    """And leaves nothing."""
    rootfs = plain / "image"
    with rootfs.open("wb") as file:
        for _ in range(256):
            file.write(os.urandom(MIB))
    (plain / "m").mkdir()
    store = Store.open(plain / "state", StoreSettings(backing="native"))
    task = asyncio.create_task(CopyClone(store).clone(rootfs, plain / "m", size=256 * MIB))
    while not list((plain / "m").iterdir()):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list((plain / "m").iterdir()) == []


async def test_uppers_of_a_size_are_composed_once(scratch_xfs: Path) -> None:
    """And are clean, empty filesystems that share their blocks."""
    store = Store.open(scratch_xfs / "state")
    rootfs = sparse_file(scratch_xfs / "image")
    uppers = []
    for name in ("a", "b"):
        machine = store.machines / name
        machine.mkdir()
        uppers.append((await OverlayClone(store).clone(rootfs, machine, size=1 << 30))[1].path)
    assert len(list((store.root / "rootfs").iterdir())) == 1
    for upper in uppers:
        assert upper.stat().st_size == 1 << 30
        checked = subprocess.run(["e2fsck", "-fn", str(upper)], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout
        with upper.open("rb") as file:
            assert all(extent.shared for extent in extents(file.fileno()) or [])


@pytest.mark.parametrize("reflinks", [True, False])
def test_segments_are_placed_where_they_belong(scratch_xfs: Path, plain: Path, reflinks: bool) -> None:
    """Shared or copied, the bytes are the same and nothing around them is touched."""
    directory = scratch_xfs if reflinks else plain
    segment = sparse_file(directory / "segment", size=8 * MIB)
    target = directory / "target"
    moved: list[int] = []
    with target.open("w+b") as file:
        file.truncate(32 * MIB)
        assert place_segment(segment, file.fileno(), offset=4 * MIB, length=8 * MIB, moved=moved.append) is reflinks
    data = target.read_bytes()
    assert data[4 * MIB : 12 * MIB] == segment.read_bytes()
    assert not any(data[: 4 * MIB])
    assert not any(data[12 * MIB :])
    assert target.stat().st_blocks <= segment.stat().st_blocks + 64
    assert sum(moved) > 0
