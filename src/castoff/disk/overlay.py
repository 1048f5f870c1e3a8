"""Clones as overlays: all machines share the rootfs, read-only, and each has an empty filesystem to write to.

The guest's init joins the two with overlayfs. The base is one file for all machines, opened buffered, so the host caches
it once however many machines run: that is what this kind is for. The upper half is an empty ext4, composed once a size,
kept in the store as the composition of no layers that it is, and reflinked (or copied: it holds a few MB) for each machine.
"""

from __future__ import annotations

import os
from pathlib import Path

from castoff import timeline
from castoff.disk.clone import CloneKind, Drive, Role
from castoff.disk.compose import compose_empty
from castoff.disk.files import created, reading
from castoff.disk.sparse import copy_range
from castoff.store.extents import clone_file
from castoff.store.store import Store

__all__ = ["UPPER", "OverlayClone"]

UPPER = "upper.ext4"
"""The upper half, in the machine's directory."""


class OverlayClone:
    """Two drives: the rootfs itself as the base, and an upper one of the machine's own.

    Args:
        store: Where empty uppers are kept.
    """

    kind = CloneKind.OVERLAY

    def __init__(self, store: Store) -> None:
        self._store = store

    async def clone(self, rootfs: Path, directory: Path, *, size: int) -> list[Drive]:
        """See castoff.disk.clone."""
        with timeline.step("disk.overlay"):
            empty = await compose_empty(self._store, size)
            with (
                reading(rootfs),
                reading(empty.file) as source,
                created(directory / UPPER) as (upper, target),
            ):
                if not clone_file(source, target):
                    os.ftruncate(target, size)
                    copy_range(source, target, length=size)  # a few MB: not worth a thread
            empty.touch()
        base = Drive(Role.BASE, rootfs, read_only=True, direct=False)
        return [base, Drive(Role.UPPER, upper, read_only=False, direct=True)]
