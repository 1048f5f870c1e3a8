"""Metadata blocks besides directories: long symlinks, extended attributes, extent trees, large attribute values.

They follow the directories in that order. Which there are depends on the tree alone; where they lie on the geometry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castoff.ext4.checksum import raw_crc
from castoff.ext4.extent_tree import ExtentTrees, build_trees, tree_blocks
from castoff.ext4.extents import EXTENTS_IN_INODE
from castoff.ext4.inodes import FAST_SYMLINK
from castoff.ext4.numbering import Numbering
from castoff.ext4.stack import Stack
from castoff.ext4.strings import spread
from castoff.ext4.structures import BLOCK_SIZE
from castoff.ext4.values import Values, find_values, finish_block, large_entries
from castoff.layers.toc import Kind

__all__ = ["Specials", "attribute_words", "find_specials", "live_items", "symlink_words", "trees"]

_WORDS = BLOCK_SIZE // 4
_MAX_SHARERS = 1024
"""EXT4_XATTR_REFCOUNT_MAX."""
_REFCOUNT, _CHECKSUM = 1, 4
"""Words of an attribute block's header."""


@dataclass(frozen=True, slots=True, eq=False)
class Specials:
    """Inodes, as ascending indices of a numbering, that have such blocks."""

    symlinks: NDArray[np.int64]
    """Those with a target of 60 bytes or more; one block each."""
    treed: NDArray[np.int64]
    """Those with more extents than an inode holds."""
    tree_counts: NDArray[np.int64]
    """[treed] extents of each."""
    tree_blocks: NDArray[np.int64]
    """[treed] blocks of each one's tree."""

    attributed: NDArray[np.int64]
    """Those with a block of extended attributes."""
    attribute_block: NDArray[np.int64]
    """[attributed] the number of each one's block, from the first such block on."""
    attribute_source: NDArray[np.int64]
    """[attribute blocks, 3] layer, block of its sets, and how many inodes share it."""
    values: Values

    @property
    def blocks(self) -> int:
        """All such blocks."""
        return len(self.symlinks) + len(self.attribute_source) + int(self.tree_blocks.sum()) + self.values.blocks


def live_items(stack: Stack, numbering: Numbering, layer: int) -> tuple[NDArray[np.int64], int]:
    """The items of ``layer`` that are inodes, ascending, without the root; and the index of the first of them."""
    base = stack.base[layer : layer + 2]
    first, last = np.searchsorted(numbering.item[1:], base) + 1
    return numbering.item[first:last] - base[0], int(first)


def find_specials(stack: Stack, numbering: Numbering) -> Specials:
    """Finds the inodes that need blocks."""
    symlinks, treed, counts = [], [], []
    attributed, wanted = _root_attributes(stack, numbering)
    for number, layer in enumerate(stack.layers):
        items, first = live_items(stack, numbering, number)
        long = (layer.kind[items] == Kind.SYMLINK) & (layer.inodes.inline.length[items] >= FAST_SYMLINK)
        symlinks.append(np.flatnonzero(long) + first)
        extents = layer.inodes.extents.counts[items].astype(np.int64)
        many = np.flatnonzero(extents > EXTENTS_IN_INODE)
        treed.append(many + first)
        counts.append(extents[many])
        block = layer.inodes.attributes.block[layer.inodes.attribute_set[items]].astype(np.int64)
        with_block = np.flatnonzero(block >= 0)
        attributed.append(with_block + first)
        wanted.append(block[with_block] + (number << 32))
    tree_counts = np.concatenate(counts)
    attribute_block, attribute_source = _shared(np.concatenate(wanted))
    return Specials(
        np.concatenate(symlinks),
        np.concatenate(treed),
        tree_counts,
        tree_blocks(tree_counts),
        np.concatenate(attributed),
        attribute_block,
        attribute_source,
        find_values(stack, attribute_source),
    )


def _root_attributes(stack: Stack, numbering: Numbering) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """The root, if it has a block of attributes, and that block: it is among no layer's live items."""
    number = stack.layer_of(int(numbering.item[0]))
    columns = stack.layers[number].inodes
    block = int(columns.attributes.block[columns.attribute_set[numbering.item[0] - stack.base[number]]])
    root = np.zeros(int(block >= 0), dtype=np.int64)
    return [root], [root + (number << 32) + block]


def _shared(wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Gives inodes that want the same block one, as far as a block can be shared: which each has, and what each block is."""
    order = np.argsort(wanted, kind="stable")
    source, start, count = np.unique(wanted[order], return_index=True, return_counts=True)
    copies = -(-count // _MAX_SHARERS)
    base = np.cumsum(copies) - copies
    rank = np.arange(len(order)) - np.repeat(start, count)
    block = np.empty(len(wanted), dtype=np.int64)
    block[order] = np.repeat(base, count) + rank // _MAX_SHARERS
    sharers = np.bincount(block, minlength=int(copies.sum()))
    kind = np.repeat(source, copies)
    return block, np.stack([kind >> 32, kind & 0xFFFFFFFF, sharers], axis=1)


def attribute_words(
    stack: Stack, sources: NDArray[np.int64], values: Values, first: int, value_inode: int, seed: int
) -> NDArray[np.uint32]:
    """Blocks of extended attributes.

    Args:
        stack: The layers.
        sources: Which blocks.
        values: The large values, which have the inodes from ``value_inode`` on.
        first: The number of the first block.
        value_inode: See ``values``.
        seed: The filesystem's.
    """
    words = np.zeros((len(sources), _WORDS), dtype=np.uint32)
    for row, (layer, block, sharers) in enumerate(sources.tolist()):
        sets = stack.layers[layer].inodes.attributes
        words[row] = sets.blocks[block]
        finish_block(words[row], large_entries(sets, block), values, layer, value_inode, seed)
        words[row, _REFCOUNT] = sharers
        words[row, _CHECKSUM] = raw_crc(raw_crc(seed, (first + row).to_bytes(8, "little")), words[row].tobytes())
    return words


def symlink_words(stack: Stack, numbering: Numbering, symlinks: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The blocks of long symlinks: each its target, then zeros."""
    words = np.zeros(len(symlinks) * _WORDS, dtype=np.uint32)
    items = numbering.item[symlinks]
    for layer, tables in enumerate(stack.layers):
        rows = np.flatnonzero((items >= stack.base[layer]) & (items < stack.base[layer + 1]))
        own = items[rows] - stack.base[layer]
        counts = tables.inodes.inline.word_counts[own]
        words[spread(rows * _WORDS, counts)] = tables.inodes.inline.words[
            spread(tables.inodes.inline.at[own].astype(np.int64), counts)
        ]
    return words


def trees(
    stack: Stack, numbering: Numbering, specials: Specials, segments: tuple[int, ...], seeds: NDArray[np.uint32], first: int
) -> ExtentTrees:
    """The extent trees; ``seeds`` are the treed inodes' checksum seeds, ``first`` is the block they start at."""
    items = numbering.item[specials.treed]
    columns: list[list[NDArray[np.uint32]]] = [[], [], []]
    for layer, start in enumerate(segments, start=1):
        lists = stack.layers[layer].inodes.extents
        own = items[(items >= stack.base[layer]) & (items < stack.base[layer + 1])] - stack.base[layer]
        at = lists.at[own].astype(np.int64)
        which = spread(at, lists.at[own + 1] - at)
        columns[0].append(lists.logical[which])
        columns[1].append(lists.length[which])
        columns[2].append((lists.start[which].astype(np.int64) + start).astype(np.uint32))
    logical, length, place = (np.concatenate(column) if column else np.zeros(0, dtype=np.uint32) for column in columns)
    return build_trees(specials.tree_counts, logical, length, place, seeds, first)
