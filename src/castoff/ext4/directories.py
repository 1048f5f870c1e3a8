"""Directory blocks: one block of entries, or a tree of blocks by hash (htree) where one does not hold them.

Source: Documentation/filesystems/ext4/directory.rst. The kernel never gives an index to a directory that has several blocks
without one, so each of more than one block gets it here. Leaves are filled; the order inside a leaf is the hash's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid
from castoff.ext4.checksum import raw_crc
from castoff.ext4.numbering import Numbering
from castoff.ext4.stack import Stack
from castoff.ext4.strings import spread
from castoff.ext4.structures import BLOCK_SIZE, DX_ENTRY, DX_ROOT_HEAD, FileType

__all__ = ["DirectoryBlocks", "lay_out_directories"]

_TAIL = 12
_DOTS = 24
_LEAF = BLOCK_SIZE - _TAIL
_ROOT_ENTRIES = (BLOCK_SIZE - DX_ROOT_HEAD.itemsize - 8) // DX_ENTRY.itemsize
_NODE_ENTRIES = (BLOCK_SIZE - 8 - 8) // DX_ENTRY.itemsize
_HALF_MD4 = 1
_WORDS = BLOCK_SIZE // 4
_FILE_TYPE = np.array(
    [FileType.REGULAR, FileType.DIRECTORY, FileType.SYMLINK, 0, FileType.CHARACTER, FileType.BLOCK, FileType.FIFO],
    dtype=np.uint32,
)
_MAX_BLOCKS = 4 * 32768
"""Of a directory: what the four extents in its inode reach."""


@dataclass(frozen=True, slots=True, eq=False)
class _IndexBlock:
    """A block of hashes: the root of a directory's tree, or a node below it."""

    block: int
    offset: int
    """Where in the block the count and the entries start."""
    hashes: NDArray[np.uint32]
    """The least hash of each block below; the first is not kept."""
    children: NDArray[np.uint32]
    levels: int = -1
    """Levels of nodes below the root; -1: this is a node."""


@dataclass(frozen=True, slots=True, eq=False)
class DirectoryBlocks:
    """Where each directory's blocks and each entry lie; blocks are numbered from the first directory's first."""

    stack: Stack
    numbering: Numbering
    first: NDArray[np.int64]
    """[directories + 1] each directory's first block."""
    entry_at: NDArray[np.int64]
    """[entries] the word, from the first block on, at which the entry stands."""
    record_length: NDArray[np.uint32]
    """[entries] bytes to the next entry, or to the block's end."""
    index: list[_IndexBlock] = field(repr=False)
    """By block."""

    @property
    def count(self) -> int:
        """All directories' blocks."""
        return int(self.first[-1])

    def fill(self, start: int, end: int, seeds: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
        """Makes ``words``, zeros till now, blocks ``start`` to ``end``; ``seeds`` are the directories' inodes' checksum seeds."""
        self._fill_entries(words, start, end)
        owners = np.searchsorted(self.first, np.arange(start, end), side="right") - 1
        self._fill_dots(words, start, owners)
        view = words.reshape(-1, _WORDS)
        inner = self._fill_index(view, start, end, seeds, owners)
        leaves = np.ones(end - start, dtype=bool)
        leaves[inner] = False
        view[leaves, _WORDS - 2] = _TAIL | 0xDE << 24
        data = words.data.cast("B")
        block_seeds = seeds[owners].tolist()
        for block in np.flatnonzero(leaves).tolist():
            at = block * BLOCK_SIZE
            view[block, _WORDS - 1] = raw_crc(block_seeds[block], data[at : at + _LEAF])

    def _fill_entries(self, words: NDArray[np.uint32], start: int, end: int) -> None:
        numbering, names = self.numbering, self.stack.names
        low, high = np.searchsorted(self.entry_at, (start * _WORDS, end * _WORDS))
        at = self.entry_at[low:high] - start * _WORDS
        item = numbering.entry_item[low:high]
        length = names.length[item].astype(np.uint32)
        words[at] = numbering.entry_number[low:high]
        words[at + 1] = self.record_length[low:high] | length << 16 | _FILE_TYPE[numbering.entry_kind[low:high]] << 24
        counts = (length.astype(np.int64) + 3) >> 2
        words[spread(at + 2, counts)] = names.words[spread(names.at[item].astype(np.int64), counts)]

    def _fill_dots(self, words: NDArray[np.uint32], start: int, owners: NDArray[np.int64]) -> None:
        numbering = self.numbering
        low, high = np.searchsorted(self.first, (start, start + len(owners)))
        directories = np.arange(low, min(high, len(self.first) - 1))
        at = (self.first[directories] - start) * _WORDS
        blocks = self.first[directories + 1] - self.first[directories]
        alone = numbering.bounds[directories + 1] == numbering.bounds[directories]
        rest = np.where(blocks > 1, BLOCK_SIZE - 12, np.where(alone, _LEAF - 12, 12)).astype(np.uint32)
        words[at] = numbering.number[numbering.directory[directories]]
        words[at + 1] = 12 | 1 << 16 | FileType.DIRECTORY << 24
        words[at + 2] = ord(".")
        words[at + 3] = numbering.parent[directories]
        words[at + 4] = rest | 2 << 16 | FileType.DIRECTORY << 24
        words[at + 5] = int.from_bytes(b"..", "little")

    def _fill_index(
        self, view: NDArray[np.uint32], start: int, end: int, seeds: NDArray[np.uint32], owners: NDArray[np.int64]
    ) -> list[int]:
        filled = []
        for node in self.index:
            if start <= node.block < end:
                row = node.block - start
                _fill_node(view[row], node, int(seeds[owners[row]]))
                filled.append(row)
        return filled


def _fill_node(words: NDArray[np.uint32], node: _IndexBlock, seed: int) -> None:
    limit = _NODE_ENTRIES if node.levels < 0 else _ROOT_ENTRIES
    if node.levels < 0:
        words[1] = BLOCK_SIZE
    else:
        words[7] = _HALF_MD4 | 8 << 8 | node.levels << 16
    count = len(node.children)
    at = node.offset // 4
    words[at : at + 2 * count : 2] = node.hashes
    words[at] = limit | count << 16
    words[at + 1 : at + 1 + 2 * count : 2] = node.children
    # It covers the entries in use and, as zeros, the tail that stands behind all entries (fs/ext4/namei.c, ext4_dx_csum).
    words[_WORDS - 1] = raw_crc(seed, words[: at + 2 * count].tobytes() + bytes(8))


def lay_out_directories(stack: Stack, numbering: Numbering) -> DirectoryBlocks:
    """Gives each directory its blocks and each entry its place.

    Raises:
        Invalid: A directory has more entries than its tree can hold.
    """
    length = 8 + 4 * ((stack.names.length[numbering.entry_item].astype(np.int64) + 3) >> 2)
    ends = np.concatenate(([0], np.cumsum(length)))
    bounds = numbering.bounds
    used = ends[bounds[1:]] - ends[bounds[:-1]]
    large = np.flatnonzero(used > _LEAF - _DOTS)
    blocks = np.ones(len(used), dtype=np.int64)
    splits = {}
    for directory in large.tolist():
        splits[directory] = leaves = _leaves(ends, int(bounds[directory]), int(bounds[directory + 1]))
        blocks[directory] = 1 + len(leaves) - 1 + _nodes(len(leaves) - 1)
        if _nodes(len(leaves) - 1) > _ROOT_ENTRIES or blocks[directory] > _MAX_BLOCKS:
            path = stack.path(int(numbering.item[numbering.directory[directory]]))
            raise Invalid(
                f"the directory {path} has {int(bounds[directory + 1] - bounds[directory])} entries, more than ext4 can index"
            )
    first = np.concatenate(([0], np.cumsum(blocks)))
    last = np.zeros(len(length) + 1, dtype=bool)
    last[bounds[1:][bounds[1:] > bounds[:-1]] - 1] = True
    offset = ends[:-1] - np.repeat(ends[bounds[:-1]], np.diff(bounds)) + _DOTS
    at = np.repeat(first[:-1] * BLOCK_SIZE, np.diff(bounds)) + offset
    index: list[_IndexBlock] = []
    for directory, leaves in splits.items():
        _place_leaves(at, ends, leaves, last, int(first[directory]) + 1 + _nodes(len(leaves) - 1))
        index += _index_blocks(stack, numbering, leaves, int(first[directory]))
    final = np.flatnonzero(last)
    length[final] = _LEAF - at[final] % BLOCK_SIZE
    return DirectoryBlocks(stack, numbering, first, at // 4, length.astype(np.uint32), index)


def _leaves(ends: NDArray[np.int64], start: int, end: int) -> list[int]:
    """Cuts entries ``start`` to ``end`` into leaves: the first entry of each, and ``end``."""
    cuts = [start]
    while cuts[-1] < end:
        fits = int(np.searchsorted(ends, ends[cuts[-1]] + _LEAF, side="right")) - 1
        cuts.append(min(fits, end))
    return cuts


def _nodes(leaves: int) -> int:
    """Nodes between the root and so many leaves."""
    return 0 if leaves <= _ROOT_ENTRIES else -(-leaves // _NODE_ENTRIES)


def _place_leaves(at: NDArray[np.int64], ends: NDArray[np.int64], leaves: list[int], last: NDArray[np.bool_], block: int) -> None:
    starts = np.array(leaves[:-1])
    counts = np.diff(leaves)
    base = np.arange(block, block + len(starts)) * BLOCK_SIZE - ends[starts]
    at[leaves[0] : leaves[-1]] = ends[leaves[0] : leaves[-1]] + np.repeat(base, counts)
    last[np.array(leaves[1:]) - 1] = True


def _index_blocks(stack: Stack, numbering: Numbering, leaves: list[int], first: int) -> list[_IndexBlock]:
    """The root and the nodes of one directory's tree; blocks inside the directory are counted from its own first."""
    starts = np.array(leaves[:-1])
    hashes = stack.major[numbering.entry_item[starts]]
    before = stack.major[numbering.entry_item[starts - 1]]
    # A leaf that goes on with the hash that the one before ended with says so in bit 0.
    hashes[1:] |= hashes[1:] == before[1:]
    nodes = _nodes(len(starts))
    children = np.arange(1 + nodes, 1 + nodes + len(starts), dtype=np.uint32)
    head = DX_ROOT_HEAD.itemsize
    if not nodes:
        return [_IndexBlock(first, head, hashes, children, 0)]
    cuts = range(0, len(starts), _NODE_ENTRIES)
    root = _IndexBlock(first, head, hashes[::_NODE_ENTRIES], np.arange(1, 1 + nodes, dtype=np.uint32), 1)
    inner = [
        _IndexBlock(first + 1 + number, 8, hashes[cut : cut + _NODE_ENTRIES], children[cut : cut + _NODE_ENTRIES])
        for number, cut in enumerate(cuts)
    ]
    return [root, *inner]
