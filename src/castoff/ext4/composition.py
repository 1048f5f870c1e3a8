"""A composition: all that an image's filesystem is, but for its bytes, which are made while they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from castoff import timeline
from castoff.errors import Unavailable
from castoff.ext4.directories import DirectoryBlocks
from castoff.ext4.geometry import Geometry
from castoff.ext4.groups import Groups, Runs, describe_groups
from castoff.ext4.inode_table import InodeTable, inode_seeds, journal_inode
from castoff.ext4.journal import journal_superblock
from castoff.ext4.numbering import FIRST_INODE, ROOT_INODE, Numbering
from castoff.ext4.special import Specials, attribute_words, live_items, symlink_words, trees
from castoff.ext4.stack import Stack
from castoff.ext4.strings import spread
from castoff.ext4.structures import BLOCK_SIZE, INODE
from castoff.ext4.superblock import JOURNAL_INODE, TIME, superblock
from castoff.ext4.values import value_blocks, value_inodes

__all__ = ["Composition", "Placement"]

_CHUNK_BLOCKS = 64
_WINDOW = 512
"""Blocks made and written at once: 2 MiB, which stay in the cache between being made and being written."""
_VALUES = 32
"""Attribute values written at once: 2 MiB, if all are as large as can be."""
_PER_BLOCK = BLOCK_SIZE // INODE.itemsize

Piece = tuple[int, memoryview]


@dataclass(frozen=True, slots=True)
class Placement:
    """A byte range of a layer's segment, and where in the rootfs file it belongs; a range starts on a chunk boundary."""

    layer: int
    """Index of the layer, the lowest is 0."""
    segment_offset: int
    offset: int
    length: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Composition:
    """One image at one size; see :func:`castoff.ext4.compose.compose`."""

    stack: Stack = field(repr=False)
    numbering: Numbering = field(repr=False)
    directories: DirectoryBlocks = field(repr=False)
    specials: Specials = field(repr=False)
    layout: Geometry
    uuid_bytes: bytes
    seed: int
    """The filesystem's checksum seed: the raw CRC of its UUID."""
    size: int
    """Bytes of the rootfs file."""
    placements: tuple[Placement, ...]

    @property
    def uuid(self) -> UUID:
        """The filesystem's UUID."""
        return UUID(bytes=self.uuid_bytes)

    @property
    def inodes(self) -> int:
        """Files and directories."""
        return len(self.numbering.item)

    @property
    def _used_inodes(self) -> int:
        """With the filesystem's own, and those of large attribute values; their numbers are all up to this one."""
        return FIRST_INODE - 2 + self.inodes + len(self.specials.values)

    @property
    def entries(self) -> int:
        """Names, hardlinks included; without ``.`` and ``..``."""
        return len(self.numbering.entry_item)

    @property
    def metadata_bytes(self) -> int:
        """Bytes that :meth:`write` writes."""
        groups = self._groups
        bitmaps = len(groups.block_bitmaps) * BLOCK_SIZE + len(groups.inode_bitmaps)
        table = -(-self._used_inodes // _PER_BLOCK) * BLOCK_SIZE
        blocks = 1 + self.layout.descriptor_blocks + 1 + self.directories.count + self.specials.blocks
        return bitmaps + table + blocks * BLOCK_SIZE

    def live_chunks(self, layer: int) -> NDArray[np.bool_]:
        """For each chunk of a layer's segment whether a file of this image has a block in it."""
        runs = self._live_runs(layer)
        chunks = -(-self.stack.layers[layer + 1].segment_blocks // _CHUNK_BLOCKS)
        change = np.zeros(chunks + 1, dtype=np.int64)
        np.add.at(change, runs.start // _CHUNK_BLOCKS, 1)
        np.subtract.at(change, (runs.end - 1) // _CHUNK_BLOCKS + 1, 1)
        live: NDArray[np.bool_] = np.cumsum(change[:-1]) > 0
        return live

    def write(self, fd: int) -> int:
        """Writes the metadata into a new, empty file, which becomes ``size`` bytes long; the rest of it stays a hole.

        Returns:
            Bytes written.

        Raises:
            Unavailable: The file cannot be written.
        """
        written = 0
        with timeline.step("ext4.composition", total=self.metadata_bytes) as step:
            try:
                os.ftruncate(fd, self.size)
                for offset, data in self._pieces():
                    _write_all(fd, offset, data)
                    written += len(data)
                    step.advance(len(data))
            except OSError as error:
                raise Unavailable(f"the metadata of the root filesystem cannot be written: {error.strerror}") from error
        return written

    def _live_runs(self, layer: int) -> Runs:
        """The extents of a layer's live files, in blocks of its segment, ascending."""
        items, _ = live_items(self.stack, self.numbering, layer + 1)
        lists = self.stack.layers[layer + 1].inodes.extents
        at = lists.at[items].astype(np.int64)
        which = spread(at, lists.at[items + 1] - at)
        start = lists.start[which].astype(np.int64)
        end = start + lists.length[which]
        # The segment has files in the order of the tar, so there is hardly ever anything to sort.
        if np.any(start[1:] < start[:-1]):
            order = np.argsort(start)
            start, end = start[order], end[order]
        return Runs(start, end)

    @cached_property
    def _groups(self) -> Groups:
        layout = self.layout
        starts, ends = [np.zeros(1, dtype=np.int64)], [np.full(1, layout.front, dtype=np.int64)]
        for layer, segment in enumerate(layout.segments):
            runs = self._live_runs(layer)
            starts.append(runs.start + segment)
            ends.append(runs.end + segment)
        numbers = self.numbering.number[self.numbering.directory]
        return describe_groups(layout, Runs(np.concatenate(starts), np.concatenate(ends)), self._used_inodes, numbers, self.seed)

    def _pieces(self) -> Iterator[Piece]:
        """All that is written, by ascending offset; a piece is valid until the next one is asked for."""
        layout, groups = self.layout, self._groups
        journal = journal_inode(layout, JOURNAL_INODE, self.seed, TIME)
        first = bytes(1024) + superblock(
            layout,
            self.uuid_bytes,
            free_blocks=groups.free_blocks,
            used_inodes=self._used_inodes,
            journal=journal["i_block"][0].tolist(),
            value_inodes=len(self.specials.values) > 0,
        )
        head = bytearray((1 + layout.descriptor_blocks) * BLOCK_SIZE)
        head[: len(first)] = first
        head[BLOCK_SIZE : BLOCK_SIZE + groups.descriptors.nbytes] = groups.descriptors.tobytes()
        yield 0, memoryview(head)
        yield from self._block_bitmaps(groups)
        yield layout.inode_bitmaps * BLOCK_SIZE, memoryview(groups.inode_bitmaps)
        symlink_block = layout.metadata + self.directories.count
        attribute_block = symlink_block + len(self.specials.symlinks)
        tree_block = attribute_block + len(self.specials.attribute_source)
        value_block = tree_block + int(self.specials.tree_blocks.sum())
        value_inode = FIRST_INODE - 1 + self.inodes
        seeds = inode_seeds(self.seed, self.numbering.number)
        grown = trees(self.stack, self.numbering, self.specials, layout.segments, seeds[self.specials.treed], tree_block)
        table = InodeTable(
            stack=self.stack,
            numbering=self.numbering,
            layout=layout,
            seed=self.seed,
            directory_first=self.directories.first,
            specials=self.specials,
            symlink_block=symlink_block,
            attribute_block=attribute_block,
            tree_words=grown.inode_words,
            values=value_inodes(self.specials.values, value_inode, value_block, self.seed),
        )
        yield from self._inode_table(table, journal)
        sb = bytearray(BLOCK_SIZE)
        sb[:1024] = journal_superblock(layout.journal_blocks, self.uuid_bytes)
        yield layout.journal * BLOCK_SIZE, memoryview(sb)
        yield from self._directory_blocks(seeds[self.numbering.directory])
        for start in range(0, len(self.specials.symlinks), _WINDOW):
            words = symlink_words(self.stack, self.numbering, self.specials.symlinks[start : start + _WINDOW])
            yield (symlink_block + start) * BLOCK_SIZE, _bytes_of(words)
        for start in range(0, len(self.specials.attribute_source), _WINDOW):
            at = attribute_block + start
            sources = self.specials.attribute_source[start : start + _WINDOW]
            words = attribute_words(self.stack, sources, self.specials.values, at, value_inode, self.seed)
            yield at * BLOCK_SIZE, _bytes_of(words)
        if len(grown.blocks):
            yield tree_block * BLOCK_SIZE, _bytes_of(grown.blocks)
        values = self.specials.values
        for start in range(0, len(values), _VALUES):
            data = value_blocks(values, start, start + _VALUES)
            yield (value_block + int(values.first[start])) * BLOCK_SIZE, memoryview(data)

    def _block_bitmaps(self, groups: Groups) -> Iterator[Piece]:
        """Runs of neighbouring groups' bitmaps."""
        first, run = 0, bytearray()
        for group, bitmap in groups.block_bitmaps:
            if run and group != first + len(run) // BLOCK_SIZE:
                yield (self.layout.block_bitmaps + first) * BLOCK_SIZE, memoryview(run)
                run = bytearray()
            if not run:
                first = group
            run += bitmap
        yield (self.layout.block_bitmaps + first) * BLOCK_SIZE, memoryview(run)

    def _inode_table(self, table: InodeTable, journal: NDArray[np.void]) -> Iterator[Piece]:
        """The used part of the inode tables, which lie one after another; one buffer serves all windows."""
        offset = self.layout.inode_tables * BLOCK_SIZE
        window = np.zeros(_WINDOW * _PER_BLOCK, dtype=INODE)
        table.fill(0, 1, window[ROOT_INODE - 1 : ROOT_INODE])
        window[JOURNAL_INODE - 1] = journal[0]
        index, used, count = 1, FIRST_INODE - 1, self.inodes + len(table.values)
        while True:
            end = min(index + len(window) - used, count)
            table.fill(index, end, window[used : used + end - index])
            used += end - index
            data = _bytes_of(window[: -(-used // _PER_BLOCK) * _PER_BLOCK])
            yield offset, data
            offset += len(data)
            index, used = end, 0
            if index == count:
                return
            _clear(window)

    def _directory_blocks(self, seeds: NDArray[np.uint32]) -> Iterator[Piece]:
        window = np.zeros(min(_WINDOW, self.directories.count) * BLOCK_SIZE // 4, dtype=np.uint32)
        for start in range(0, self.directories.count, _WINDOW):
            end = min(start + _WINDOW, self.directories.count)
            words = window[: (end - start) * BLOCK_SIZE // 4]
            if start:
                _clear(words)
            self.directories.fill(start, end, seeds, words)
            yield (self.layout.metadata + start) * BLOCK_SIZE, _bytes_of(words)


def _clear(data: NDArray[np.generic]) -> None:
    data.view(np.uint8)[:] = 0


def _bytes_of(data: NDArray[np.generic]) -> memoryview:
    return data.reshape(-1).view(np.uint8).data


def _write_all(fd: int, offset: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        offset += written
        data = data[written:]
