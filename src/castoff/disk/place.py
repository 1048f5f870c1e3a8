"""Placing a layer's segment into a rootfs file: its extents are shared where the filesystem can, its data copied where not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from castoff.disk.sparse import copy_range
from castoff.store.extents import clone_range

__all__ = ["place_segment"]


def place_segment(
    segment: Path,
    target: int,
    *,
    offset: int,
    length: int,
    segment_offset: int = 0,
    moved: Callable[[int], None] = lambda count: None,
) -> bool:
    """Places ``length`` bytes of ``segment`` at ``offset`` of the rootfs file.

    Args:
        segment: A complete segment; offsets and ``length`` are multiples of 4 KiB.
        target: Descriptor of the rootfs file, writable, of its full size.
        offset: Bytes from its start.
        length: Bytes of the segment.
        segment_offset: Where they begin in it.
        moved: Told of bytes as they are placed.

    Returns:
        Whether they are shared (nothing was copied).

    Raises:
        OSError: The filesystem failed.
    """
    source = os.open(segment, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if clone_range(source, target, length=length, source_offset=segment_offset, target_offset=offset):
            moved(length)
            return True
        copy_range(source, target, length=length, source_offset=segment_offset, target_offset=offset, moved=moved)
        return False
    finally:
        os.close(source)
