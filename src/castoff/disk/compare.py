"""Whether two stretches of files hold the same bytes, without reading what they share.

Two extents at one place of the disk are equal without a look (XFS and btrfs never let one file's write show in the other's), and
two holes are. Only the rest is read.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator

from castoff.disk.sparse import data_ranges
from castoff.store.extents import BLOCK, extents

__all__ = ["first_difference"]

_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)


def first_difference(
    one: int,
    other: int,
    *,
    length: int,
    one_offset: int = 0,
    other_offset: int = 0,
    looked: Callable[[int], None] = lambda count: None,
) -> int | None:
    """The first byte at which ``length`` bytes of two files differ, counted from their offsets; None where they are equal.

    Args:
        one: Descriptor of a file; what lies past its end counts as zeros.
        other: Likewise.
        length: Bytes to compare.
        one_offset: Where they begin in ``one``.
        other_offset: Where they begin in ``other``.
        looked: Told of bytes as they are dealt with; an exception from it stops the work.
    """
    shared = _shared(one, one_offset, other, other_offset)
    done = 0
    for start, end in _either(one, one_offset, other, other_offset, length):
        while start < end:
            stop = min(end, start - start % _PIECE + _PIECE)
            if not _covered(shared, start, stop):
                found = _differs(one, one_offset + start, other, other_offset + start, stop - start)
                if found is not None:
                    return start + found
            looked(stop - done)
            start = done = stop
    looked(length - done)
    return None


def _differs(one: int, one_at: int, other: int, other_at: int, length: int) -> int | None:
    first, second = (os.pread(file, length, at) for file, at in ((one, one_at), (other, other_at)))
    first, second = (data + _ZEROS[: length - len(data)] for data in (first, second))
    if first == second:
        return None
    return next(index for index in range(length) if first[index] != second[index])


def _either(one: int, one_offset: int, other: int, other_offset: int, length: int) -> Iterator[tuple[int, int]]:
    """The ranges in which at least one of the two has data, ascending and apart."""
    ranges = sorted(
        (start - offset, end - offset)
        for file, offset in ((one, one_offset), (other, other_offset))
        for start, end in data_ranges(file, offset, offset + length)
    )
    last = 0
    for start, end in ranges:
        if end > last:
            yield max(start, last), end
            last = end


def _shared(one: int, one_offset: int, other: int, other_offset: int) -> list[tuple[int, int]]:
    """The ranges whose blocks are the same place on disk, counted from the offsets, ascending and joined."""
    if os.fstat(one).st_dev != os.fstat(other).st_dev:
        return []
    mine, theirs = extents(one) or [], extents(other) or []
    ranges: list[tuple[int, int]] = []
    index = 0
    for extent in mine:
        start, end = extent.logical - one_offset, extent.logical + extent.length - one_offset
        while index and theirs[index - 1].logical + theirs[index - 1].length - other_offset > start:
            index -= 1
        while index < len(theirs) and theirs[index].logical - other_offset < end:
            found = theirs[index]
            begin = max(start, found.logical - other_offset)
            stop = min(end, found.logical + found.length - other_offset)
            same = extent.physical + begin - start == found.physical + begin - (found.logical - other_offset)
            if begin < stop and same and extent.shared and not (extent.physical % BLOCK):
                if ranges and ranges[-1][1] == begin:
                    ranges[-1] = (ranges[-1][0], stop)
                else:
                    ranges.append((begin, stop))
            index += 1
    return ranges


def _covered(ranges: list[tuple[int, int]], start: int, end: int) -> bool:
    at = bisect_right(ranges, (start, 1 << 63)) - 1
    return at >= 0 and ranges[at][0] <= start and end <= ranges[at][1]
