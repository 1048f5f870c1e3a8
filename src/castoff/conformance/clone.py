"""What every clone strategy promises, as functions that an adapter's tests call.

    strategy = MyClone(...)
    await check_clone(strategy, rootfs, directory)

Each raises AssertionError with what was found. pytest is not needed.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from castoff.disk.clone import CloneStrategy, Drive, Role
from castoff.errors import CastoffError, Conflict

__all__ = ["check_clone"]


async def check_clone(strategy: CloneStrategy, rootfs: Path, directory: Path) -> None:
    """Runs all of it.

    Args:
        strategy: The one under test.
        rootfs: A file that it can clone, of at least 1 MiB, not all zeros.
        directory: An empty directory in which machines' directories may be made.
    """
    before = _digest(rootfs)
    size = _size(rootfs)
    machines = [directory / f"machine-{number}" for number in range(3)]
    for machine in machines:
        machine.mkdir()
    clones = await asyncio.gather(*(strategy.clone(rootfs, machine, size=size) for machine in machines))
    for machine, drives in zip(machines, clones, strict=True):
        _check_drives(drives, rootfs, machine, size)
    _check_apart(clones)
    await _check_again(strategy, rootfs, machines[0], size)
    await _check_missing(strategy, rootfs, directory, size)
    assert _digest(rootfs) == before, "the rootfs was written"


def _check_drives(drives: list[Drive], rootfs: Path, machine: Path, size: int) -> None:
    roles = [drive.role for drive in drives]
    assert roles in ([Role.ROOT], [Role.BASE, Role.UPPER]), f"roles are {roles}"
    for drive in drives:
        assert drive.path.is_absolute(), f"{drive.path} is relative"
        if drive.role is Role.BASE:
            assert drive.read_only, "a base that can be written"
            continue
        assert not drive.read_only, f"{drive.role} cannot be written"
        assert drive.path.parent == machine, f"{drive.path} is not in the machine's directory"
        assert drive.path.stat().st_size == size, f"{drive.path} has {drive.path.stat().st_size} bytes, not {size}"
    first = drives[0]
    assert _digest(first.path) == _digest(rootfs), f"{first.path} differs from {rootfs}"


def _check_apart(clones: list[list[Drive]]) -> None:
    """A machine's writes are its own."""
    first, second = (next(drive for drive in drives if not drive.read_only) for drives in clones[:2])
    before = _digest(second.path)
    with first.path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xa5" * 65536)
    assert _digest(second.path) == before, "one machine's write shows in another's drive"
    assert _digest(first.path) != before, "a write did not show"


async def _check_again(strategy: CloneStrategy, rootfs: Path, machine: Path, size: int) -> None:
    """A machine that has its drives keeps them."""
    contents = _contents(machine)
    try:
        await strategy.clone(rootfs, machine, size=size)
    except Conflict:
        pass
    else:
        raise AssertionError("a second clone for one machine was not refused")
    assert _contents(machine) == contents, "a second clone changed the first"


async def _check_missing(strategy: CloneStrategy, rootfs: Path, directory: Path, size: int) -> None:
    """No rootfs, or no directory: an error of ours, and no file left."""
    try:
        await strategy.clone(rootfs, directory / "no-such-machine", size=size)
    except CastoffError:
        pass
    else:
        raise AssertionError("cloning into a directory that is not there was not refused")
    machine = directory / "machine-of-nothing"
    machine.mkdir()
    try:
        drives = await strategy.clone(directory / "no-such-rootfs", machine, size=size)
    except CastoffError:
        assert not _contents(machine), "a failed clone left files"
    else:
        raise AssertionError(f"cloning a file that is not there gave {drives}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size


def _contents(directory: Path) -> dict[Path, str]:
    return {path: _digest(path) for path in directory.iterdir()}
