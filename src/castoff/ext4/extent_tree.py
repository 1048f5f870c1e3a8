"""Extent trees of the files with more extents than an inode holds: leaves and index blocks, for all such files at once.

Source: Documentation/filesystems/ext4/ifork.rst. A block has a header, 340 entries and a checksum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castoff.ext4.checksum import raw_crc
from castoff.ext4.extents import EXTENT_MAGIC, EXTENTS_IN_INODE
from castoff.ext4.strings import spread
from castoff.ext4.structures import BLOCK_SIZE, EXTENT, EXTENT_HEADER

__all__ = ["ExtentTrees", "build_trees", "tree_blocks"]

_WORDS = BLOCK_SIZE // 4
_HEADER = EXTENT_HEADER.itemsize // 4
_ENTRY = EXTENT.itemsize // 4
_ENTRIES = (BLOCK_SIZE - EXTENT_HEADER.itemsize) // EXTENT.itemsize

_Column = NDArray[np.uint32]


def tree_blocks(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Blocks of the tree of each file with ``counts`` extents."""
    total = np.zeros(len(counts), dtype=np.int64)
    while np.any(counts > EXTENTS_IN_INODE):
        counts = np.where(counts > EXTENTS_IN_INODE, -(-counts // _ENTRIES), 0)
        total += counts
    return total


@dataclass(frozen=True, slots=True, eq=False)
class ExtentTrees:
    """Blocks of all trees, one after another, and what stands in the inodes."""

    blocks: NDArray[np.uint32]
    """[blocks, 1024] words."""
    inode_words: NDArray[np.uint32]
    """[files, 15] i_block."""
    per_file: NDArray[np.int64]
    """[files] blocks."""


def build_trees(
    counts: NDArray[np.int64], logical: _Column, length: _Column, start: _Column, seeds: _Column, first: int
) -> ExtentTrees:
    """Makes the trees of F files.

    Args:
        counts: [F] extents of each, more than four.
        logical: All their extents' first blocks in the file, file by file.
        length: Their lengths.
        start: Their first blocks in the filesystem.
        seeds: [F] the inodes' checksum seeds.
        first: The block at which the trees' blocks start.
    """
    files = len(counts)
    entries = np.stack([logical, length, start], axis=1)
    per_file = tree_blocks(counts)
    result = np.zeros((int(per_file.sum()), _WORDS), dtype=np.uint32)
    inode_words = np.zeros((files, 15), dtype=np.uint32)
    owner, base, depth = np.arange(files), 0, 0
    while files:
        done = counts <= EXTENTS_IN_INODE
        bounds = np.concatenate(([0], np.cumsum(counts)))
        _finish(inode_words, owner, counts, entries, bounds, depth, np.flatnonzero(done))
        keep = np.flatnonzero(~done)
        if not len(keep):
            break
        entries = entries[spread(bounds[keep], counts[keep])]
        owner, counts = owner[keep], counts[keep]
        below = counts
        counts = -(-below // _ENTRIES)
        blocks = np.arange(base, base + int(counts.sum()))
        entries = _fill(result[blocks[0] : blocks[-1] + 1], entries, below, counts, depth, first + base)
        for block, seed in zip(blocks.tolist(), np.repeat(seeds[owner], counts).tolist(), strict=True):
            result[block, -1] = raw_crc(seed, result[block, :-1].tobytes())
        base += len(blocks)
        depth += 1
    return ExtentTrees(result, inode_words, per_file)


def _finish(
    inode_words: NDArray[np.uint32],
    owner: NDArray[np.int64],
    counts: NDArray[np.int64],
    entries: NDArray[np.uint32],
    bounds: NDArray[np.int64],
    depth: int,
    done: NDArray[np.int64],
) -> None:
    """Puts the entries of the files whose trees are complete into their inodes."""
    for row in done.tolist():
        count = int(counts[row])
        words = inode_words[owner[row]]
        words[0], words[1] = EXTENT_MAGIC | count << 16, EXTENTS_IN_INODE | depth << 16
        words[_HEADER : _HEADER + count * _ENTRY] = entries[bounds[row] : bounds[row + 1]].reshape(-1)


def _fill(
    blocks: NDArray[np.uint32],
    entries: NDArray[np.uint32],
    below: NDArray[np.int64],
    counts: NDArray[np.int64],
    depth: int,
    first: int,
) -> NDArray[np.uint32]:
    """Packs each file's ``below`` entries into its ``counts`` blocks; the index entries for these blocks."""
    full = np.full(len(blocks), _ENTRIES, dtype=np.int64)
    full[np.cumsum(counts) - 1] = below - (counts - 1) * _ENTRIES
    starts = np.cumsum(full) - full
    at = np.repeat(np.arange(len(blocks)) * _WORDS, full) + _HEADER + (np.arange(len(entries)) - np.repeat(starts, full)) * _ENTRY
    flat = blocks.reshape(-1)
    for word in range(_ENTRY):
        flat[at + word] = entries[:, word]
    blocks[:, 0] = EXTENT_MAGIC | full << 16
    blocks[:, 1] = _ENTRIES | depth << 16
    numbers = np.arange(first, first + len(blocks), dtype=np.uint32)
    return np.stack([entries[starts, 0], numbers, np.zeros_like(numbers)], axis=1)
