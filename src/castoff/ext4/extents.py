"""Extents: where a file's blocks lie. Up to four stand in the inode, more in blocks of their own, in a tree.

Source: Documentation/filesystems/ext4/ifork.rst. An extent has at most 32,768 blocks, a leaf or index block 340 entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castoff.layers.toc import Toc

__all__ = ["EXTENTS_IN_INODE", "EXTENT_MAGIC", "MAX_EXTENT", "ExtentList", "extents_of"]

EXTENT_MAGIC = 0xF30A
EXTENTS_IN_INODE = 4
MAX_EXTENT = 32768


@dataclass(frozen=True, slots=True, eq=False)
class ExtentList:
    """Extents of N items: item i has those from ``at[i]`` to ``at[i + 1]``."""

    at: NDArray[np.uint32]
    logical: NDArray[np.uint32]
    start: NDArray[np.uint32]
    """First block in the segment."""
    length: NDArray[np.uint32]
    """Blocks: 1 to 32,768."""

    @property
    def counts(self) -> NDArray[np.uint32]:
        """Extents of each item."""
        return np.diff(self.at)

    def sums(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Blocks of each of ``items``, which ascend."""
        if not len(items):
            return np.zeros(0, dtype=np.int64)
        first, last = self.at[items].astype(np.int64), self.at[items + 1].astype(np.int64)
        total = np.concatenate(([0], np.cumsum(self.length[first[0] : last[-1]], dtype=np.int64)))
        sums: NDArray[np.int64] = total[last - first[0]] - total[first - first[0]]
        return sums


def extents_of(toc: Toc, items: int) -> ExtentList:
    """The TOC's (checked) extents, cut to what ext4 can hold, for its rows and as many more items as make ``items``."""
    blocks = toc.extent_blocks.astype(np.int64)
    pieces = (blocks + MAX_EXTENT - 1) // MAX_EXTENT
    owner = np.repeat(np.arange(len(blocks)), pieces)
    offset = (np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * MAX_EXTENT
    counts = np.bincount(toc.extent_row[owner], minlength=items)
    at = np.zeros(items + 1, dtype=np.uint32)
    np.cumsum(counts, out=at[1:])
    return ExtentList(
        at,
        (toc.extent_logical[owner] + offset).astype(np.uint32),
        (toc.extent_segment[owner] + offset).astype(np.uint32),
        np.minimum(blocks[owner] - offset, MAX_EXTENT).astype(np.uint32),
    )
