"""Extended attributes of an inode: behind it, and in its block; ACLs in the form that programs see."""

from __future__ import annotations

import struct

from castoff.ext4.check.image import Image, Inode, checksum

__all__ = ["read_attributes"]

_MAGIC = 0xEA020000
_ENTRY = struct.Struct("<BBHIII")
_PREFIXES = {1: b"user.", 2: b"system.posix_acl_access", 3: b"system.posix_acl_default", 4: b"trusted.", 6: b"security."}
_MASK = 0xFFFFFFFF


def read_attributes(image: Image, inode: Inode, blocks: dict[int, int]) -> dict[bytes, bytes]:
    """An inode's attributes by whole name.

    Args:
        image: The image.
        inode: The inode.
        blocks: Counts, for each attribute block, the inodes that have it.
    """
    where = f"inode {inode.number}"
    found: dict[bytes, bytes] = {}
    behind = inode.raw[160:]
    if behind[:4] == _MAGIC.to_bytes(4, "little"):
        _read_entries(image, where, behind[4:], 0, found)
    elif any(behind):
        image.report(where, "something stands behind it that is no attribute")
    if inode.attribute_block:
        block = bytes(image.block(inode.attribute_block))
        magic, _, count, hashed, crc = struct.unpack_from("<IIIII", block)
        if magic != _MAGIC or count != 1 or any(block[20:32]):
            image.report(where, "its attribute block has a wrong head")
            return found
        blocks[inode.attribute_block] = blocks.get(inode.attribute_block, 0) + 1
        blank = block[:16] + bytes(4) + block[20:]
        if checksum(image.seed, struct.pack("<Q", inode.attribute_block), blank) != crc:
            image.report(where, "its attribute block has a wrong checksum")
        if _read_entries(image, where, block, 32, found) != hashed:
            image.report(where, "its attribute block has a wrong hash")
    return found


def _read_entries(image: Image, where: str, area: bytes, at: int, found: dict[bytes, bytes]) -> int:
    """Reads entries from ``at`` on into ``found``; the hash over theirs."""
    total, before, lowest = 0, (0, 0, b""), len(area)
    while at + 4 <= len(area) and area[at : at + 4] != bytes(4):
        if at + _ENTRY.size > len(area):
            image.report(where, "an attribute is cut off")
            return total
        length, index, offset, inum, size, hashed = _ENTRY.unpack_from(area, at)
        name = area[at + 16 : at + 16 + length]
        value = area[offset : offset + size]
        if inum or index not in _PREFIXES or len(value) != size or offset % 4 or (size and offset <= at):
            image.report(where, f"the attribute {name!r} is wrong")
            return total
        if (index, length, name) <= before:
            image.report(where, "its attributes are not in order")
        before, lowest = (index, length, name), min(lowest, offset) if size else lowest
        if _hash(name, value) != hashed:
            image.report(where, f"the attribute {name!r} has a wrong hash")
        total = ((total << 16) ^ (total >> 16) ^ hashed) & _MASK
        found[_PREFIXES[index] + name] = _acl(value) if index in (2, 3) else value
        at += 16 + (length + 3 & ~3)
    if at + 4 > lowest or any(area[at:lowest]):
        image.report(where, "its attributes run into their values")
    return total


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
