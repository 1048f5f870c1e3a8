"""Block groups: which blocks are used, and the descriptors and bitmaps that say so.

Source: Documentation/filesystems/ext4/group_descr.rst and bitmaps.rst. A group without a used block (but for the first and the
last) has BLOCK_UNINIT and no bitmap, one without a used inode INODE_UNINIT; INODE_ZEROED everywhere keeps the kernel
from writing zeros over what are holes already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castoff.ext4.checksum import raw_crc, row_crcs
from castoff.ext4.geometry import Geometry
from castoff.ext4.structures import BLOCK_SIZE, BLOCKS_PER_GROUP, GROUP_DESCRIPTOR, GroupFlag

__all__ = ["Groups", "Runs", "describe_groups"]

_WINDOW = 64
"""Groups whose bits are made at once: 2 M bits."""


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Runs of used blocks that do not overlap, ascending."""

    start: NDArray[np.int64]
    end: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Descriptors of all groups, and the bitmaps of those that have one."""

    descriptors: NDArray[np.void]
    block_bitmaps: list[tuple[int, bytes]]
    """(first group, bitmaps of it and of the groups after it)."""
    inode_bitmaps: bytes
    """Of the first groups, as many as have inodes."""
    free_blocks: int


def describe_groups(layout: Geometry, runs: Runs, inodes: int, directories: NDArray[np.uint32], seed: int) -> Groups:
    """Makes descriptors and bitmaps.

    Args:
        layout: Where everything lies.
        runs: The used blocks.
        inodes: The number of the last used inode; all below are used.
        directories: Inode numbers of all directories.
        seed: The filesystem's checksum seed.
    """
    groups = np.arange(layout.groups, dtype=np.int64)
    descriptors = np.zeros(layout.groups, dtype=GROUP_DESCRIPTOR)
    _split(descriptors, "bg_block_bitmap", layout.block_bitmaps + groups)
    _split(descriptors, "bg_inode_bitmap", layout.inode_bitmaps + groups)
    _split(descriptors, "bg_inode_table", layout.inode_tables + groups * layout.table_blocks)
    descriptors["bg_flags"] = GroupFlag.INODE_ZEROED

    free, bitmaps = _block_bitmaps(layout, runs, descriptors, seed)
    per_group = layout.inodes_per_group
    used = np.clip(inodes - groups * per_group, 0, per_group)
    _split(descriptors, "bg_free_inodes_count", per_group - used, half=16)
    _split(descriptors, "bg_itable_unused", per_group - used, half=16)
    counts = np.bincount((directories - 1) // per_group, minlength=layout.groups)
    _split(descriptors, "bg_used_dirs_count", counts, half=16)
    descriptors["bg_flags"][used == 0] |= GroupFlag.INODE_UNINIT
    inode_bitmaps = _inode_bitmaps(descriptors, used[used > 0], per_group, seed)

    rows = np.zeros((layout.groups, 1 + GROUP_DESCRIPTOR.itemsize // 4), dtype=np.uint32)
    rows[:, 0] = groups
    rows[:, 1:] = descriptors.view("<u4").reshape(layout.groups, -1)
    descriptors["bg_checksum"] = row_crcs(rows, seed)
    return Groups(descriptors, bitmaps, inode_bitmaps, free)


def _split(descriptors: NDArray[np.void], name: str, values: NDArray[np.int64], half: int = 32) -> None:
    descriptors[f"{name}_lo"] = values
    descriptors[f"{name}_hi"] = values >> half


def _block_bitmaps(layout: Geometry, runs: Runs, descriptors: NDArray[np.void], seed: int) -> tuple[int, list[tuple[int, bytes]]]:
    """Fills in all that descriptors say of blocks; the count of free blocks, and the bitmaps."""
    free = np.full(layout.groups, BLOCKS_PER_GROUP, dtype=np.int64)
    free[-1] = layout.blocks - (layout.groups - 1) * BLOCKS_PER_GROUP
    written = np.zeros(layout.groups, dtype=bool)
    written[[0, -1]] = True
    bitmaps = []
    for first, used in _windows(layout, runs):
        counts = used.reshape(-1, BLOCKS_PER_GROUP).sum(axis=1)
        here = slice(first, first + len(counts))
        free[here] -= counts
        written[here] |= counts > 0
        if here.stop == layout.groups:
            past = BLOCKS_PER_GROUP - (layout.groups * BLOCKS_PER_GROUP - layout.blocks)
            used.reshape(-1, BLOCKS_PER_GROUP)[-1, past:] = True
        packed = np.packbits(used, bitorder="little").reshape(-1, BLOCK_SIZE)
        for group in np.flatnonzero(written[here]).tolist():
            bitmap = packed[group].tobytes()
            crc = raw_crc(seed, bitmap)
            descriptors["bg_block_bitmap_csum_lo"][first + group] = crc & 0xFFFF
            descriptors["bg_block_bitmap_csum_hi"][first + group] = crc >> 16
            bitmaps.append((first + group, bitmap))
    descriptors["bg_flags"][~written] |= GroupFlag.BLOCK_UNINIT
    _split(descriptors, "bg_free_blocks_count", free, half=16)
    return int(free.sum()), bitmaps


def _windows(layout: Geometry, runs: Runs) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """(first group, whether each block is used) of all groups up to the last used one, and of the last group."""
    last_used = int((runs.end[-1] - 1) // BLOCKS_PER_GROUP)
    starts = list(range(0, last_used + 1, _WINDOW))
    ends = [min(start + _WINDOW, layout.groups) for start in starts]
    if ends[-1] < layout.groups:
        starts.append(layout.groups - 1)
        ends.append(layout.groups)
    for first, end in zip(starts, ends, strict=True):
        low, high = first * BLOCKS_PER_GROUP, end * BLOCKS_PER_GROUP
        begin, stop = np.searchsorted(runs.end, low, side="right"), np.searchsorted(runs.start, high)
        change = np.zeros(high - low + 1, dtype=np.int8)
        # Two runs may touch: one ends where the next begins, so the two are counted apart.
        change[np.maximum(runs.start[begin:stop], low) - low] += 1
        change[np.minimum(runs.end[begin:stop], high) - low] -= 1
        yield first, np.cumsum(change[:-1], dtype=np.int8).view(np.bool_)


def _inode_bitmaps(descriptors: NDArray[np.void], used: NDArray[np.int64], per_group: int, seed: int) -> bytes:
    """The bitmaps of the groups with inodes; bits past the group's inodes are ones and are not in the checksum."""
    bitmaps = bytearray()
    for group, count in enumerate(used.tolist()):
        ones = (1 << count) - 1
        bits = ones.to_bytes(per_group // 8, "little")
        crc = raw_crc(seed, bits)
        descriptors["bg_inode_bitmap_csum_lo"][group] = crc & 0xFFFF
        descriptors["bg_inode_bitmap_csum_hi"][group] = crc >> 16
        bitmaps += bits + b"\xff" * (BLOCK_SIZE - len(bits))
    return bytes(bitmaps)
