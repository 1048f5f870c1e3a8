"""The blocks of an inode: its extents and the blocks that hold them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from castoff.ext4.check.image import BLOCK, Image, Inode, checksum

__all__ = ["Extent", "Mapping", "map_blocks", "read_contents"]

_HEADER = struct.Struct("<HHHHI")
_EXTENT = struct.Struct("<IHHI")
_INDEX = struct.Struct("<IIHH")
_MAGIC = 0xF30A
_PER_BLOCK = 340


@dataclass(frozen=True, slots=True)
class Extent:
    """``length`` blocks of a file from ``logical`` on, lying from block ``start`` on."""

    logical: int
    start: int
    length: int


@dataclass(slots=True)
class Mapping:
    """All extents of an inode, and the blocks that the tree itself takes."""

    extents: list[Extent] = field(default_factory=list)
    tree: list[int] = field(default_factory=list)


def map_blocks(image: Image, inode: Inode) -> Mapping:
    """Reads and checks an inode's extents."""
    mapping = Mapping()
    _, _, most, depth, _ = _HEADER.unpack_from(inode.block)
    where = f"inode {inode.number}"
    if most != 4 or depth > 5:
        image.report(where, f"its extent header has depth {depth} and room for {most}")
        return mapping
    _read_node(image, inode, inode.block, depth, mapping, 0)
    end = 0
    for extent in mapping.extents:
        if extent.logical < end:
            image.report(where, "its extents overlap or are not in order")
        end = extent.logical + extent.length
    return mapping


def _read_node(image: Image, inode: Inode, node: bytes, depth: int, mapping: Mapping, first: int) -> None:
    where = f"inode {inode.number}"
    magic, count, most, own_depth, generation = _HEADER.unpack_from(node)
    if magic != _MAGIC or own_depth != depth or count > most or generation or most != (4 if len(node) == 60 else _PER_BLOCK):
        image.report(where, "an extent header is wrong")
        return
    if any(node[12 + 12 * count : 12 + 12 * most]):
        image.report(where, "something stands behind its last extent")
    for entry in range(count):
        at = 12 + 12 * entry
        if depth:
            logical, low, high, unused = _INDEX.unpack_from(node, at)
            if unused or (entry == 0 and len(node) > 60 and logical != first):
                image.report(where, "an extent index is wrong")
            _read_block(image, inode, low | high << 32, depth - 1, mapping, logical)
            continue
        logical, length, high, low = _EXTENT.unpack_from(node, at)
        if entry == 0 and len(node) > 60 and logical != first:
            image.report(where, "a block of extents starts with another block than its index says")
        start = low | high << 32
        if not 0 < length <= 32768 or start == 0 or start + length > image.blocks:
            image.report(where, f"an extent of {length} blocks at {start} is out of range")
            continue
        mapping.extents.append(Extent(logical, start, length))


def _read_block(image: Image, inode: Inode, number: int, depth: int, mapping: Mapping, first: int) -> None:
    if not 0 < number < image.blocks or number in mapping.tree:
        image.report(f"inode {inode.number}", f"an extent block at {number} is out of range")
        return
    mapping.tree.append(number)
    node = bytes(image.block(number))
    if checksum(inode.seed, node[:-4]) != int.from_bytes(node[-4:], "little"):
        image.report(f"inode {inode.number}", f"its extent block {number} has a wrong checksum")
    _read_node(image, inode, node, depth, mapping, first)


def read_contents(image: Image, inode: Inode, mapping: Mapping) -> Iterator[bytes]:
    """A file's contents in pieces, holes as zeros."""
    done = 0
    for extent in mapping.extents:
        begin = min(extent.logical * BLOCK, inode.size)
        yield from _zeros(begin - done)
        end = min((extent.logical + extent.length) * BLOCK, inode.size)
        at = extent.start * BLOCK
        for offset in range(0, end - begin, 1 << 20):
            yield bytes(image.view[at + offset : at + min(offset + (1 << 20), end - begin)])
        done = max(done, end)
    yield from _zeros(inode.size - done)


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield bytes(min(count, 1 << 20))
        count -= 1 << 20
