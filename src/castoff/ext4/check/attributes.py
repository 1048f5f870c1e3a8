"""Extended attributes of an inode: behind it, and in its block; ACLs in the form that programs see."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from castoff.ext4.check.extents import Mapping, map_blocks, read_contents
from castoff.ext4.check.image import EA_INODE, Image, Inode, checksum

__all__ = ["Seen", "read_attributes"]

_MAGIC = 0xEA020000
_ENTRY = struct.Struct("<BBHIII")
_PREFIXES = {1: b"user.", 2: b"system.posix_acl_access", 3: b"system.posix_acl_default", 4: b"trusted.", 6: b"security."}
_MASK = 0xFFFFFFFF


_MODE, _FLAGS = 0x8000 | 0o600, 0x80000 | 0x200000
_LARGEST = 65536
_FIRST = 11


@dataclass(slots=True)
class Seen:
    """What the attributes read so far have in common."""

    blocks: dict[int, int] = field(default_factory=dict)
    """For each attribute block the inodes that have it."""
    references: dict[int, int] = field(default_factory=dict)
    """For each inode of a value the entries that name it."""
    mappings: dict[int, tuple[Inode, Mapping]] = field(default_factory=dict)
    """Those inodes, and where their blocks are."""
    charged: dict[int, int] = field(default_factory=dict)
    """For each inode the blocks of all its values that have inodes: they count as its own."""


def read_attributes(image: Image, inode: Inode, seen: Seen) -> dict[bytes, bytes]:
    """An inode's attributes by whole name.

    Args:
        image: The image.
        inode: The inode.
        seen: Is added to.
    """
    where = f"inode {inode.number}"
    found: dict[bytes, bytes] = {}
    behind = inode.raw[160:]
    if behind[:4] == _MAGIC.to_bytes(4, "little"):
        _read_entries(image, inode.number, behind[4:], 0, found)
    elif any(behind):
        image.report(where, "something stands behind it that is no attribute")
    if inode.attribute_block:
        block = bytes(image.block(inode.attribute_block))
        magic, _, count, hashed, crc = struct.unpack_from("<IIIII", block)
        if magic != _MAGIC or count != 1 or any(block[20:32]):
            image.report(where, "its attribute block has a wrong head")
            return found
        sharers = seen.blocks.get(inode.attribute_block, 0)
        seen.blocks[inode.attribute_block] = sharers + 1
        blank = block[:16] + bytes(4) + block[20:]
        if checksum(image.seed, struct.pack("<Q", inode.attribute_block), blank) != crc:
            image.report(where, "its attribute block has a wrong checksum")
        if _read_entries(image, inode.number, block, 32, found, seen, again=sharers > 0) != hashed:
            image.report(where, "its attribute block has a wrong hash")
    return found


def _read_entries(
    image: Image, number: int, area: bytes, at: int, found: dict[bytes, bytes], seen: Seen | None = None, *, again: bool = False
) -> int:
    """Reads entries of inode ``number`` from ``at`` on into ``found``; the hash over theirs.

    Args:
        image: The image.
        number: The inode.
        area: Where entries and values are.
        at: Where the first entry begins.
        found: Is added to.
        seen: Is added to; None where no value may have an inode of its own.
        again: The entries were read before, for another inode.
    """
    where = f"inode {number}"
    total, before, lowest = 0, (0, 0, b""), len(area)
    while at + 4 <= len(area) and area[at : at + 4] != bytes(4):
        if at + _ENTRY.size > len(area):
            image.report(where, "an attribute is cut off")
            return total
        length, index, offset, inum, size, hashed = _ENTRY.unpack_from(area, at)
        name = area[at + 16 : at + 16 + length]
        value = area[offset : offset + size]
        if inum and seen is not None and not offset and size <= _LARGEST:
            value = _large(image, number, inum, seen, again)
        elif inum or offset % 4 or (size and offset <= at):
            index = 0
        if index not in _PREFIXES or len(value) != size:
            image.report(where, f"the attribute {name!r} is wrong")
            return total
        if (index, length, name) <= before:
            image.report(where, "its attributes are not in order")
        before, lowest = (index, length, name), min(lowest, offset) if offset else lowest
        if _hash(name, checksum(image.seed, value).to_bytes(4, "little") if inum else value) != hashed:
            image.report(where, f"the attribute {name!r} has a wrong hash")
        total = ((total << 16) ^ (total >> 16) ^ hashed) & _MASK
        found[_PREFIXES[index] + name] = _acl(value) if index in (2, 3) else value
        at += 16 + (length + 3 & ~3)
    if at + 4 > lowest or any(area[at:lowest]):
        image.report(where, "its attributes run into their values")
    return total


def _large(image: Image, owner: int, number: int, seen: Seen, again: bool) -> bytes:
    """What inode ``number`` holds for an attribute of inode ``owner``, every field compared; empty where it is no value's."""
    where = f"inode {owner}"
    if not _FIRST <= number <= int(image.superblock["s_inodes_count"]) or not image.superblock["s_feature_incompat"] & EA_INODE:
        image.report(where, f"the value of an attribute is in inode {number}, which cannot be")
        return b""
    inode = image.inode(number)
    seen.references[number] = seen.references.get(number, 0) + (not again)
    rest = bytearray(inode.raw)
    for start, end in ((0, 2), (4, 12), (26, 36), (36, 100), (124, 126), (128, 132)):
        rest[start:end] = bytes(end - start)
    if inode.mode != _MODE or inode.flags != _FLAGS or inode.links != 1 or any(rest) or not 0 < inode.size <= _LARGEST:
        image.report(where, f"the value of an attribute is in inode {number}, which is none for that")
        return b""
    mapping = map_blocks(image, inode)
    seen.mappings[number] = inode, mapping
    blocks = sum(extent.length for extent in mapping.extents)
    seen.charged[owner] = seen.charged.get(owner, 0) + blocks
    if blocks != -(-inode.size // 4096):
        image.report(where, f"the value of an attribute in inode {number} has holes")
        return b""
    value = b"".join(read_contents(image, inode, mapping))
    if checksum(image.seed, value) != int.from_bytes(inode.raw[8:12], "little"):
        image.report(where, f"the value of an attribute in inode {number} has a wrong hash")
    last = mapping.extents[-1]
    if any(bytes(image.block(last.start + last.length - 1))[inode.size % 4096 or 4096 :]):
        image.report(where, f"the value of an attribute in inode {number} has something behind it")
    return value


def _hash(name: bytes, value: bytes) -> int:
    result = 0
    for character in name:
        result = ((result << 5) ^ (result >> 27) ^ character) & _MASK
    for (word,) in struct.iter_unpack("<I", value + bytes(-len(value) % 4)):
        result = ((result << 16) ^ (result >> 16) ^ word) & _MASK
    return result


def _acl(value: bytes) -> bytes:
    """An ACL as getxattr gives it."""
    result, at = struct.pack("<I", 2), 4
    while at < len(value):
        tag, permissions = struct.unpack_from("<HH", value, at)
        named = tag in (2, 8)
        identity = struct.unpack_from("<I", value, at + 4)[0] if named and at + 8 <= len(value) else _MASK
        result += struct.pack("<HHI", tag, permissions, identity)
        at += 8 if named else 4
    return result
