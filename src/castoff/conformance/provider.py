"""What every rootfs provider promises, as functions that an adapter's tests call.

    await check_provider(provider, request, strange_request, directory)

Each raises AssertionError with what was found. pytest is not needed.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from castoff.disk.clone import Drive, Role
from castoff.rootfs.provider import Rootfs, RootfsProvider, RootfsRequest
from castoff.store.machines import read_machine_rootfs

__all__ = ["check_provider"]

_MAGIC_AT = 1024 + 0x38


async def check_provider(
    provider: RootfsProvider, request: RootfsRequest, directory: Path, *, strange: RootfsRequest | None = None
) -> None:
    """Runs all of it.

    Args:
        provider: The one under test.
        request: One that it answers.
        directory: An empty directory in which machines' directories may be made; on the store's filesystem.
        strange: One that it leaves to the next provider; None where it answers all.
    """
    if strange is not None:
        assert await provider.locate(strange) is None, "a request that is not its own was answered"
    first, second = await asyncio.gather(provider.locate(request), provider.locate(request))
    assert first is not None, "its own request was not answered"
    assert second is not None, "the second of two at once was not answered"
    assert first.provider == provider.name, f"{first.provider} is not {provider.name}"
    clones = await _clone(first, directory, ["a", "b"]) | await _clone(second, directory, ["c"])
    for name, drives in clones.items():
        _check_drives(name, drives)
        record = read_machine_rootfs(directory / name)
        assert record is not None, "the machine's directory has no record of its rootfs"
        assert record.provider == provider.name, f"the record names {record.provider}"
    _check_apart(clones)
    for name in (*clones, *clones, "never-made"):
        await first.release(name)  # twice each, and one that has nothing: all the same


async def _clone(rootfs: Rootfs, directory: Path, names: list[str]) -> dict[str, list[Drive]]:
    for name in names:
        _make(directory / name)
    drives = await asyncio.gather(*(rootfs.clone(name, directory / name) for name in names))
    return dict(zip(names, drives, strict=True))


def _make(path: Path) -> None:
    path.mkdir()


def _check_drives(name: str, drives: list[Drive]) -> None:
    roles = [drive.role for drive in drives]
    assert roles in ([Role.ROOT], [Role.BASE, Role.UPPER]), f"{name} has {roles}"
    for drive in drives:
        assert drive.path.is_absolute(), f"{drive.path} is relative"
        assert drive.read_only is (drive.role is Role.BASE), f"{drive.role} with read_only={drive.read_only}"
        descriptor = os.open(drive.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            assert os.pread(descriptor, 2, _MAGIC_AT) == b"\x53\xef", f"{drive.path} is no ext4"
        finally:
            os.close(descriptor)


def _check_apart(clones: dict[str, list[Drive]]) -> None:
    writable = [drive.path for drives in clones.values() for drive in drives if not drive.read_only]
    assert len(set(writable)) == len(writable), "two machines write to one drive"
