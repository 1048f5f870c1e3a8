"""The inode table of a composition, made a window at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castoff.ext4.checksum import advance, contribution, row_crcs
from castoff.ext4.extents import EXTENT_MAGIC, EXTENTS_IN_INODE, MAX_EXTENT
from castoff.ext4.geometry import Geometry
from castoff.ext4.inodes import EXTRA_ISIZE, WORD, Patch, base_inodes, seal
from castoff.ext4.numbering import Numbering
from castoff.ext4.special import Specials
from castoff.ext4.stack import Stack
from castoff.ext4.structures import BLOCK_SIZE, INODE, InodeFlag, Mode

__all__ = ["InodeTable", "inode_seeds", "journal_inode"]

_JOURNAL_MODE = Mode.REGULAR | 0o600


def inode_seeds(seed: int, numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The checksum seeds of inodes' own blocks: the filesystem's, the inode's number and its generation, 0."""
    return contribution(numbers, 4) ^ np.uint32(advance(seed, 8))


@dataclass(frozen=True, slots=True, eq=False)
class InodeTable:
    """All that makes the inodes of a composition."""

    stack: Stack
    numbering: Numbering
    layout: Geometry
    seed: int
    directory_first: NDArray[np.int64]
    """[directories + 1] first block of each, from the first of all directories on."""
    specials: Specials
    symlink_block: int
    """The first block of long symlinks."""
    attribute_block: int
    """The first block of extended attributes."""
    tree_words: NDArray[np.uint32]
    """[treed, 15] i_block of the inodes whose extents stand in a tree."""
    values: NDArray[np.void]
    """The finished inodes of large attribute values, which follow those of the numbering."""

    def fill(self, start: int, end: int, inodes: NDArray[np.void]) -> None:
        """Makes ``inodes``, zeros till now, those of the numbering's indices ``start`` to ``end``; values' come last."""
        named = len(self.numbering.item)
        if end > named:
            first = max(start, named)
            inodes[first - start :] = self.values[first - named : end - named]
        if start < named:
            self._fill(start, min(end, named), inodes[: named - start])

    def _fill(self, start: int, end: int, inodes: NDArray[np.void]) -> None:
        crcs = np.empty(end - start, dtype=np.uint32)
        patches = [Patch(WORD.LINKS, slice(None), self.numbering.links[start:end] << np.uint32(16))]
        for layer, first, last in self._pieces(start, end):
            tables = self.stack.layers[layer]
            items = self.numbering.item[first:last] - int(self.stack.base[layer])
            base_inodes(tables.inodes, items, inodes[first - start : last - start])
            crcs[first - start : last - start] = tables.crc[items]
            if layer and len(tables.inodes.extents.start):
                patches += self._places(layer, items, first - start)
        patches += self._directories(start, end)
        patches += self._special(start, end)
        seal(inodes, crcs, self.numbering.number[start:end], advance(self.seed, INODE.itemsize + 8), patches)

    def _pieces(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """(layer, first, last) of the runs of indices whose items are of one layer; the root is a run of its own."""
        runs = []
        if start == 0:
            runs.append((self.stack.layer_of(int(self.numbering.item[0])), 0, 1))
            start = 1
        cuts = np.searchsorted(self.numbering.item[start:end], self.stack.base) + start
        for layer, (first, last) in enumerate(zip(cuts.tolist(), cuts[1:].tolist(), strict=False)):
            if last > first:
                runs.append((layer, first, last))
        return runs

    def _places(self, layer: int, items: NDArray[np.int64], row: int) -> list[Patch]:
        """Where the files' blocks lie, now that their segment has a place."""
        lists = self.stack.layers[layer].inodes.extents
        segment = self.layout.segments[layer - 1]
        first = lists.at[items].astype(np.int64)
        counts = lists.at[items + 1] - first
        patches = []
        for number in range(EXTENTS_IN_INODE):
            rows = np.flatnonzero((counts > number) & (counts <= EXTENTS_IN_INODE))
            if not len(rows):
                break
            values = (lists.start[first[rows] + number].astype(np.int64) + segment).astype(np.uint32)
            patches.append(Patch(WORD.BLOCK + 5 + 3 * number, rows + row, values))
        return patches

    def _directories(self, start: int, end: int) -> list[Patch]:
        low, high = np.searchsorted(self.numbering.directory, (start, end))
        rows = self.numbering.directory[low:high] - start
        first = self.directory_first[low:high]
        blocks = self.directory_first[low + 1 : high + 1] - first
        indexed = blocks > 1
        patches = [
            Patch(WORD.SIZE, rows, (blocks * BLOCK_SIZE).astype(np.uint32)),
            Patch(WORD.BLOCKS, rows, (blocks * 8).astype(np.uint32)),
            Patch(WORD.FLAGS, rows[indexed], np.full(int(indexed.sum()), InodeFlag.INDEX, dtype=np.uint32)),
        ]
        for number in range(EXTENTS_IN_INODE):
            here = blocks > number * MAX_EXTENT
            if not here.any():
                break
            length = np.minimum(blocks[here] - number * MAX_EXTENT, MAX_EXTENT).astype(np.uint32)
            place = (first[here] + self.layout.metadata + number * MAX_EXTENT).astype(np.uint32)
            word = WORD.BLOCK + 3 + 3 * number
            patches += [Patch(word + 1, rows[here], length), Patch(word + 2, rows[here], place)]
            if number:
                more = np.full(len(length), number * MAX_EXTENT, dtype=np.uint32)
                # The base inode has an entry count of one.
                count = np.full(len(length), 1 << 16, dtype=np.uint32)
                patches += [Patch(word, rows[here], more), Patch(WORD.BLOCK, rows[here], count)]
        return patches

    def _special(self, start: int, end: int) -> list[Patch]:
        specials = self.specials
        patches = []
        low, high = np.searchsorted(specials.symlinks, (start, end))
        if high > low:
            place = np.arange(self.symlink_block + low, self.symlink_block + high, dtype=np.uint32)
            patches.append(Patch(WORD.BLOCK + 5, specials.symlinks[low:high] - start, place))
        low, high = np.searchsorted(specials.attributed, (start, end))
        if high > low:
            rows = specials.attributed[low:high] - start
            which = specials.attribute_block[low:high]
            patches.append(Patch(WORD.ATTRIBUTE_BLOCK, rows, (which + self.attribute_block).astype(np.uint32)))
            patches.append(Patch(WORD.BLOCKS, rows, ((1 + specials.values.charged[which]) * 8).astype(np.uint32)))
        low, high = np.searchsorted(specials.treed, (start, end))
        if high > low:
            rows = specials.treed[low:high] - start
            words = self.tree_words[low:high].T
            patches += [Patch(WORD.BLOCK + word, rows, values) for word, values in enumerate(words)]
            patches.append(Patch(WORD.BLOCKS, rows, (specials.tree_blocks[low:high] * 8).astype(np.uint32)))
        return patches


def journal_inode(layout: Geometry, number: int, seed: int, time: int) -> NDArray[np.void]:
    """The journal's inode: one record."""
    inode = np.zeros(1, dtype=INODE)
    inode["i_mode"] = _JOURNAL_MODE
    inode["i_size_lo"] = layout.journal_blocks * BLOCK_SIZE & 0xFFFFFFFF
    inode["i_size_high"] = layout.journal_blocks * BLOCK_SIZE >> 32
    inode["i_links_count"] = 1
    inode["i_blocks_lo"] = layout.journal_blocks * 8
    inode["i_flags"] = InodeFlag.EXTENTS
    inode["i_extra_isize"] = EXTRA_ISIZE
    for name in ("atime", "ctime", "mtime", "crtime"):
        inode[f"i_{name}"] = time
    block = inode["i_block"][0]
    starts = range(0, layout.journal_blocks, MAX_EXTENT)
    block[0], block[1] = EXTENT_MAGIC | len(starts) << 16, EXTENTS_IN_INODE
    for entry, start in enumerate(starts):
        length = min(layout.journal_blocks - start, MAX_EXTENT)
        block[3 + 3 * entry : 6 + 3 * entry] = start, length, layout.journal + start

    crcs = row_crcs(inode.view("<u4").reshape(1, -1), 0)
    seal(inode, crcs, np.array([number], dtype=np.uint32), advance(seed, INODE.itemsize + 8), [])
    return inode
