"""Copying a file's data and none of its holes, within the kernel: SEEK_DATA finds them, copy_file_range copies.

Where the filesystem has a faster way (reflink, server-side copy) copy_file_range takes it by itself. Between
filesystems that it will not copy between (EXDEV, EOPNOTSUPP on older kernels) the bytes pass through this process.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

__all__ = ["copy_range", "data_ranges"]

_PIECE = 16 << 20
"""Bytes copied at once: progress and cancellation are looked at in between."""

_CANNOT = {errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


def data_ranges(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The (start, end) ranges of the file that hold data, between ``start`` and ``end``.

    A file on a filesystem without SEEK_DATA, or a block device, is all data.
    """
    while start < end:
        try:
            begin = os.lseek(descriptor, start, os.SEEK_DATA)
            stop = os.lseek(descriptor, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            if error.errno != errno.EINVAL:
                raise
            begin, stop = start, end
        if begin >= end:
            return
        yield begin, min(stop, end)
        start = stop


def copy_range(
    source: int,
    target: int,
    *,
    length: int,
    source_offset: int = 0,
    target_offset: int = 0,
    moved: Callable[[int], None] = lambda count: None,
) -> None:
    """Copies the data in ``length`` bytes of ``source``; holes stay what ``target`` has there.

    Args:
        source: Descriptor of a file or block device.
        target: Descriptor of a file, large enough.
        length: Bytes, holes included.
        source_offset: Where to begin in ``source``.
        target_offset: Where that goes in ``target``.
        moved: Told of bytes as they are copied; an exception from it stops the copy.
    """
    shift = target_offset - source_offset
    for start, end in data_ranges(source, source_offset, source_offset + length):
        while start < end:
            count = _copy_piece(source, target, start, start + shift, min(end - start, _PIECE))
            start += count
            moved(count)


def _copy_piece(source: int, target: int, start: int, place: int, length: int) -> int:
    try:
        count = os.copy_file_range(source, target, length, start, place)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        count = 0
    if count == 0:  # refused, or (some kernels, on device files) answered with nothing
        data = os.pread(source, min(length, 1 << 20), start)
        if not data:
            raise OSError(errno.EIO, "the file became shorter while it was copied")
        count = os.pwrite(target, data, place)
    return count
