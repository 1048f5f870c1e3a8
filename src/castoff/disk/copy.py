"""Clones by copying: works on any filesystem, and costs what the rootfs holds (not its size: holes stay holes)."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from castoff import timeline
from castoff.disk.clone import CloneKind, Drive, Role
from castoff.disk.files import created, reading
from castoff.disk.sparse import copy_range, data_ranges
from castoff.store.builds import uninterrupted
from castoff.store.store import Store

__all__ = ["CopyClone", "copy_file"]


class CopyClone:
    """One writable drive, the root, of its own.

    Args:
        store: Where machines are: knows how much may be written.
    """

    kind = CloneKind.COPY

    def __init__(self, store: Store) -> None:
        self._store = store

    async def clone(self, rootfs: Path, directory: Path, *, size: int) -> list[Drive]:
        """See castoff.disk.clone."""
        path = directory / "root.ext4"
        await copy_file(rootfs, path, size=size, store=self._store)
        return [Drive(Role.ROOT, path, read_only=False, direct=True)]


async def copy_file(source: Path, target: Path, *, size: int, store: Store) -> None:
    """Copies a file or block device to the new file ``target`` of ``size`` bytes, in a thread; cancelling stops it.

    Raises:
        NoSpace: What the source holds is more than is free; seen before the first byte is written.
    """
    stop = threading.Event()
    await uninterrupted(_copy, source, target, size, store, stop, cancelled=stop.set)


def _copy(source: Path, target: Path, size: int, store: Store, stop: threading.Event) -> None:
    with reading(source) as descriptor:
        total = sum(end - start for start, end in data_ranges(descriptor, 0, size))
        with timeline.step("disk.copy", total=total) as step, created(target, needed=total) as (_, copied):
            store.require(total, target)
            os.ftruncate(copied, size)

            def moved(count: int) -> None:
                step.advance(count)
                if stop.is_set():
                    raise InterruptedError(f"copying {source} was cancelled")

            copy_range(descriptor, copied, length=size, moved=moved)
