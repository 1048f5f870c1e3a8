"""Directories: their entries, and the tree of hashes over them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

from castoff.ext4.check.extents import Mapping
from castoff.ext4.check.image import BLOCK, Image, Inode, checksum
from castoff.ext4.check.namehash import half_md4

__all__ = ["Entry", "read_directory"]

_INDEX = 0x1000
_LEAF = BLOCK - 12
_ENTRY = struct.Struct("<IHBB")
_TAIL = struct.Struct("<IHBBI")


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of a directory."""

    name: bytes
    inode: int
    file_type: int


def read_directory(image: Image, inode: Inode, mapping: Mapping) -> list[Entry]:
    """Reads and checks a directory; ``.`` and ``..`` are the first two."""
    where = f"directory {inode.number}"
    blocks = [extent.start + at for extent in mapping.extents for at in range(extent.length)]
    if [extent.logical for extent in mapping.extents] != _starts(mapping) or inode.size != len(blocks) * BLOCK:
        image.report(where, "its size is not that of its blocks")
    if not blocks:
        image.report(where, "it has no block")
        return []
    if inode.flags & _INDEX:
        return _read_tree(image, inode, blocks)
    if len(blocks) > 1:
        image.report(where, "it has several blocks and no index")
    entries = [entry for block in blocks for entry in _read_leaf(image, inode, block)]
    if [entry.name for entry in entries[:2]] != [b".", b".."]:
        image.report(where, "it does not start with . and ..")
    return entries


def _starts(mapping: Mapping) -> list[int]:
    starts, at = [], 0
    for extent in mapping.extents:
        starts.append(at)
        at += extent.length
    return starts


def _read_leaf(image: Image, inode: Inode, number: int) -> list[Entry]:
    where = f"directory {inode.number}"
    block = bytes(image.block(number))
    zero, length, zero2, marker, crc = _TAIL.unpack_from(block, _LEAF)
    if (zero, length, zero2, marker) != (0, 12, 0, 0xDE) or crc != checksum(inode.seed, block[:_LEAF]):
        image.report(where, f"block {number} has a wrong checksum")
    return _read_entries(image, where, block, _LEAF)


def _read_entries(image: Image, where: str, block: bytes, end: int) -> list[Entry]:
    entries, at = [], 0
    while at < end:
        number, length, name_length, file_type = _ENTRY.unpack_from(block, at)
        if length % 4 or length < 8 + name_length or at + length > end:
            image.report(where, f"an entry at {at} has a wrong length")
            break
        name = block[at + 8 : at + 8 + name_length]
        if number:
            entries.append(Entry(name, number, file_type))
        if not number or not name or b"/" in name or b"\0" in name or file_type not in (1, 2, 3, 4, 5, 7):
            image.report(where, f"the entry {name!r} is wrong")
        if any(block[at + 8 + name_length : at + length]):
            image.report(where, f"something stands behind the entry {name!r}")
        at += length
    return entries


def _read_tree(image: Image, inode: Inode, blocks: list[int]) -> list[Entry]:
    """Reads an htree: every leaf once, in order, each with the hashes that the index promises."""
    where = f"directory {inode.number}"
    root = bytes(image.block(blocks[0]))
    dot, dotdot = _ENTRY.unpack_from(root, 0), _ENTRY.unpack_from(root, 12)
    shape = (dot[1:], root[8:12], dotdot[1:], root[20:24])
    if shape != ((12, 1, 2), b".\0\0\0", (BLOCK - 12, 2, 2), b"..\0\0"):
        image.report(where, "the root of its index does not start with . and ..")
    zero, version, info, levels, flags = struct.unpack_from("<IBBBB", root, 24)
    if (zero, version, info, flags) != (0, 1, 8, 0) or levels > 1:
        image.report(where, "the root of its index is of no known form")
        return []
    leaves = _read_node(image, inode, root, 32)
    seen = [0]
    if levels:
        inner = []
        for block, least in leaves:
            node = bytes(image.block(blocks[block])) if block < len(blocks) else bytes(BLOCK)
            seen.append(block)
            if _ENTRY.unpack_from(node, 0) != (0, BLOCK, 0, 0):
                image.report(where, f"node {block} of its index has a wrong head")
            below = _read_node(image, inode, node, 8)
            inner += [(child, least if index == 0 else hashed) for index, (child, hashed) in enumerate(below)]
        leaves = inner
    entries = [Entry(b".", dot[0], 2), Entry(b"..", dotdot[0], 2)]
    if not leaves:
        return entries
    ends = [least for _, least in leaves[1:]] + [1 << 32]
    before = -1
    for (block, least), end in zip(leaves, ends, strict=True):
        seen.append(block)
        found = _read_leaf(image, inode, blocks[block]) if block < len(blocks) else []
        hashes = [half_md4(entry.name, image.superblock["s_hash_seed"].tolist()) for entry in found]
        low, high = least & ~1, end if end & 1 else end - 1
        if hashes and not (low <= min(hashes) and max(hashes) <= high):
            image.report(where, f"leaf {block} has names whose hash is not within its bounds")
        if least & 1 and before != low:
            image.report(where, f"leaf {block} is marked as going on with a hash, and the one before does not end with it")
        before = max(hashes, default=-1)
        entries += found
    if sorted(seen) != list(range(len(blocks))):
        image.report(where, "its index does not name each of its blocks once")
    return entries


def _read_node(image: Image, inode: Inode, node: bytes, at: int) -> list[tuple[int, int]]:
    """The (block, least hash) pairs of a node of an index; a root's first hash is 0."""
    where = f"directory {inode.number}"
    limit, count = struct.unpack_from("<HH", node, at)
    if limit != (BLOCK - at - 8) // 8 or not 0 < count <= limit:
        image.report(where, "a node of its index has a wrong count")
        return []
    used = at + 8 * count
    if checksum(inode.seed, node[:used], bytes(8)) != int.from_bytes(node[-4:], "little") or any(node[used:-4]):
        image.report(where, "a node of its index has a wrong checksum")
    pairs = [struct.unpack_from("<II", node, at + 8 * entry) for entry in range(count)]
    result = [(pairs[0][1], 0), *((block, hashed) for hashed, block in pairs[1:])]
    if any(later[1] <= earlier[1] for earlier, later in pairwise(result)):
        image.report(where, "a node of its index is not in order")
    return result
