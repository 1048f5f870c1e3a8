"""Where everything lies in a filesystem of a given size.

    [ superblock, descriptors ][ bitmaps of all groups ][ inode tables of all groups ][ journal ][ directories, ... ]
    [ segment of layer 0 ][ segment of layer 1 ] ... [ free space ]

flex_bg lets a group's bitmaps and inode table lie anywhere, and sparse_super2 without backups keeps every group free of copies,
so all metadata stands in front, in one piece, and every byte behind it is a segment's or free. What is not used in front
(inode tables, the journal) is a hole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from castoff.errors import Invalid
from castoff.ext4.structures import BLOCK_SIZE, BLOCKS_PER_GROUP, GROUP_DESCRIPTOR, INODE
from castoff.layers.toc import CHUNK

__all__ = ["MAX_SIZE", "Contents", "Geometry", "comfortable_size", "geometry", "minimum_blocks"]

MAX_SIZE = 16 << 40
"""16 TiB: block numbers stay within 32 bits."""

_CHUNK_BLOCKS = CHUNK // BLOCK_SIZE
_INODES_PER_BLOCK = BLOCK_SIZE // INODE.itemsize
_JOURNALS = (
    (32 << 10, 1024),
    (256 << 10, 4096),
    (512 << 10, 8192),
    (4096 << 10, 16384),
    (8192 << 10, 32768),
    (16384 << 10, 65536),
    (1 << 40, 131072),
)
"""(blocks below which, blocks of the journal), as mke2fs has it; but a filesystem under 8 MiB has a journal, too, and none has
more than four extents, so that the journal's inode holds them all."""
_HEADROOM = 64 << 20


@dataclass(frozen=True, slots=True)
class Contents:
    """What a filesystem must hold, whatever its size."""

    inodes: int
    """Files and directories, without the filesystem's own."""
    metadata_blocks: int
    """Blocks of directories, long symlinks, extended attributes and extents."""
    segments: tuple[int, ...]
    """Blocks of each layer's segment."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Block numbers, counted in blocks of 4096 bytes."""

    blocks: int
    groups: int
    inodes_per_group: int
    descriptor_blocks: int
    block_bitmaps: int
    inode_bitmaps: int
    inode_tables: int
    table_blocks: int
    """Blocks of one group's inode table."""
    journal: int
    journal_blocks: int
    metadata: int
    """First block of directories and the like."""
    front: int
    """First block after all metadata."""
    segments: tuple[int, ...]
    """First block of each layer's segment."""
    end: int
    """First block after everything."""

    @property
    def inodes(self) -> int:
        """All inodes, used or not."""
        return self.inodes_per_group * self.groups


def _inode_ratio(blocks: int) -> int:
    """Bytes of filesystem per inode, as mke2fs has it for its usage types default, big and huge."""
    size = blocks * BLOCK_SIZE
    return 16384 if size < 4 << 40 else 32768 if size < 16 << 40 else 65536


def _journals(blocks: int) -> Iterator[int]:
    """Journal sizes to try: what mke2fs gives a filesystem of that size, then all that are smaller."""
    usual = next(size for limit, size in _JOURNALS if blocks < limit)
    yield from (size for _, size in reversed(_JOURNALS) if size <= usual)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _laid_out(blocks: int, journal_blocks: int, contents: Contents) -> Geometry:
    """The geometry, which fits if its end is within its blocks."""
    groups = -(-blocks // BLOCKS_PER_GROUP)
    needed = contents.inodes + 11
    inodes = max(needed + needed // 8 + 64, blocks * BLOCK_SIZE // _inode_ratio(blocks))
    inodes_per_group = _up(-(-inodes // groups), _INODES_PER_BLOCK)
    descriptor_blocks = -(-groups * GROUP_DESCRIPTOR.itemsize // BLOCK_SIZE)
    block_bitmaps = 1 + descriptor_blocks
    inode_bitmaps = block_bitmaps + groups
    inode_tables = inode_bitmaps + groups
    table_blocks = inodes_per_group // _INODES_PER_BLOCK
    journal = inode_tables + groups * table_blocks
    metadata = journal + journal_blocks
    front = end = metadata + contents.metadata_blocks
    segments = []
    for length in contents.segments:
        start = _up(end, _CHUNK_BLOCKS) if length else end
        segments.append(start)
        end = start + length
    return Geometry(
        blocks=blocks,
        groups=groups,
        inodes_per_group=inodes_per_group,
        descriptor_blocks=descriptor_blocks,
        block_bitmaps=block_bitmaps,
        inode_bitmaps=inode_bitmaps,
        inode_tables=inode_tables,
        table_blocks=table_blocks,
        journal=journal,
        journal_blocks=journal_blocks,
        metadata=metadata,
        front=front,
        segments=tuple(segments),
        end=end,
    )


def _fits(layout: Geometry) -> bool:
    return layout.end <= layout.blocks and layout.inodes_per_group <= BLOCKS_PER_GROUP


def geometry(size: int, contents: Contents) -> Geometry | None:
    """The geometry of a filesystem of ``size`` bytes; None where it is too small.

    The journal is as large as mke2fs makes it, or smaller where that leaves too little room. A last group too short to pay for
    its own inode table is left out.
    """
    blocks = size // BLOCK_SIZE
    for count in (blocks, blocks // BLOCKS_PER_GROUP * BLOCKS_PER_GROUP):
        for journal_blocks in _journals(count) if count else ():
            layout = _laid_out(count, journal_blocks, contents)
            if _fits(layout):
                return layout
    return None


def minimum_blocks(contents: Contents) -> int:
    """Blocks of the least filesystem that holds ``contents``.

    Raises:
        Invalid: It would be over 16 TiB.
    """
    smallest = _JOURNALS[0][1]
    blocks = sum(contents.segments) + contents.metadata_blocks + smallest
    # Each group holds 32,768 inodes at most; growing the filesystem grows what it needs, but always by less.
    blocks = max(blocks, (contents.inodes * 9 // 8 // BLOCKS_PER_GROUP) * BLOCKS_PER_GROUP)
    while True:
        layout = _laid_out(blocks, smallest, contents)
        if _fits(layout):
            return blocks
        blocks = max(layout.end, blocks + 1) if layout.end > blocks else layout.groups * BLOCKS_PER_GROUP + 1
        if blocks * BLOCK_SIZE > MAX_SIZE:
            raise Invalid("the image does not fit into 16 TiB, the largest filesystem there is")


def comfortable_size(contents: Contents) -> int:
    """Bytes of a filesystem that holds ``contents`` and has an eighth and 64 MiB to write into, in whole MiB."""
    least = minimum_blocks(contents) * BLOCK_SIZE
    return min(_up(least + least // 8 + _HEADROOM, 1 << 20), MAX_SIZE)
