"""Extended attributes as ext4 keeps them: behind the inode where they fit, else in a block that inodes may share.

Source: Documentation/filesystems/ext4/attributes.rst, fs/ext4/xattr.c and fs/ext4/acl.c. Namespaces that ext4 does not have
are left out, as containerd's unpacker leaves them out. What does not fit into inode and block is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid
from castoff.ext4.acl import disk_acl, mode_of_acl
from castoff.ext4.structures import ATTRIBUTE_HEADER, BLOCK_SIZE
from castoff.layers.names import show

__all__ = ["Attribute", "AttributeSets", "attribute_sets", "parse_set"]

_MAGIC = 0xEA020000
_ENTRY = struct.Struct("<BBHIII")
_IN_INODE = 96
"""Bytes behind the 160 of an inode with 32 bytes of extra fields."""
_INODE_ROOM = _IN_INODE - 8
"""Without the magic number in front and the end mark behind the entries."""
_BLOCK_ROOM = BLOCK_SIZE - ATTRIBUTE_HEADER.itemsize - 4
_PREFIXES = (
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
)
_ACCESS, _DEFAULT = 2, 3
_NO_ACL = (2).to_bytes(4, "little")
_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute: its namespace's index, the rest of its name, and its value as it is on disk."""

    index: int
    name: bytes
    value: bytes

    @property
    def room(self) -> int:
        """Bytes that its entry and value take."""
        return (_ENTRY.size + len(self.name) + 3 & ~3) + (len(self.value) + 3 & ~3)

    @property
    def hash(self) -> int:
        """e_hash (fs/ext4/xattr.c, ``ext4_xattr_hash_entry``)."""
        value = 0
        for character in self.name:
            value = ((value << 5) ^ (value >> 27) ^ character) & _MASK
        padded = self.value + bytes(-len(self.value) % 4)
        for (word,) in struct.iter_unpack("<I", padded):
            value = ((value << 16) ^ (value >> 16) ^ word) & _MASK
        return value


@dataclass(frozen=True, slots=True, eq=False)
class AttributeSets:
    """A layer's attribute sets; 0 is empty."""

    words: NDArray[np.uint32]
    """[sets, 24] what stands behind an inode."""
    block: NDArray[np.int32]
    """[sets] which block it has, -1: none."""
    blocks: NDArray[np.uint32]
    """[blocks, 1024] but for reference count and checksum."""
    permissions: NDArray[np.int32]
    """[sets] the permission bits that an ACL stands for, -1: it has none."""
    default: NDArray[np.bool_]
    """[sets] has a default ACL, which only a directory can have."""


def parse_set(data: bytes) -> dict[bytes, bytes]:
    """The attributes of one set of a TOC, by whole name.

    Raises:
        Invalid: The set is broken; the message goes on after "PATH has".
    """
    found = {}
    at = 0
    while at < len(data):
        if len(data) - at < 6:
            raise Invalid("extended attributes that are cut off")
        name_length, value_length = struct.unpack_from("<HI", data, at)
        end = at + 6 + name_length + value_length
        if end > len(data):
            raise Invalid("extended attributes that are cut off")
        found[data[at + 6 : at + 6 + name_length]] = data[at + 6 + name_length : end]
        at = end
    return found


def attribute_sets(pool: NDArray[np.uint8], offsets: NDArray[np.uint32], whose: Callable[[int], str]) -> AttributeSets:
    """Makes the sets of a TOC.

    Args:
        pool: All sets.
        offsets: Where each starts.
        whose: Names an entry that has a set, for messages.

    Raises:
        Invalid: A set is broken, or larger than ext4 can hold.
    """
    count = len(offsets) - 1
    words = np.zeros((count, _IN_INODE // 4), dtype=np.uint32)
    block = np.full(count, -1, dtype=np.int32)
    permissions = np.full(count, -1, dtype=np.int32)
    default = np.zeros(count, dtype=bool)
    blocks: list[bytes] = []
    bounds = offsets.tolist()
    data = pool.tobytes()
    for number in range(count):
        raw = data[bounds[number] : bounds[number + 1]]
        if not raw:
            continue
        try:
            whole = parse_set(raw)
            permissions[number] = mode_of_acl(whole.get(b"system.posix_acl_access", _NO_ACL))
            attributes = _attributes(whole)
            inside, outside = _divided(attributes)
        except Invalid as error:
            raise Invalid(f"{whose(number)} has {error.what}", hint=error.hint) from error
        default[number] = any(attribute.index == _DEFAULT for attribute in attributes)
        if inside:
            words[number] = np.frombuffer(_in_inode(inside), dtype="<u4")
        if outside:
            block[number] = len(blocks)
            blocks.append(_in_block(outside))
    images = np.frombuffer(b"".join(blocks), dtype="<u4").reshape(-1, BLOCK_SIZE // 4)
    return AttributeSets(words, block, images, permissions, default)


def _attributes(whole: dict[bytes, bytes]) -> list[Attribute]:
    """A set's attributes in the order that ext4 wants: by index, then length, then name."""
    found = []
    for name, value in whole.items():
        for prefix, index in _PREFIXES:
            if not name.startswith(prefix):
                continue
            rest = name[len(prefix) :]
            if index in (_ACCESS, _DEFAULT):
                acl = disk_acl(value, access=index == _ACCESS) if not rest else None
                found += [Attribute(index, b"", acl)] if acl is not None else []
            elif rest and len(rest) <= 255 and b"\0" not in rest:
                found.append(Attribute(index, rest, value))
            else:
                raise Invalid(f"the extended attribute {show(name)}, whose name Linux does not allow")
            break
    return sorted(found, key=lambda attribute: (attribute.index, len(attribute.name), attribute.name))


def _divided(attributes: list[Attribute]) -> tuple[list[Attribute], list[Attribute]]:
    """Which attributes stand behind the inode and which in a block: all in one of them, if one has room for all."""
    total = sum(attribute.room for attribute in attributes)
    if total <= _INODE_ROOM:
        return attributes, []
    if total <= _BLOCK_ROOM:
        return [], attributes
    inside: list[Attribute] = []
    left = _INODE_ROOM
    for attribute in attributes:
        if attribute.room <= left:
            inside.append(attribute)
            left -= attribute.room
    outside = [attribute for attribute in attributes if attribute not in inside]
    if sum(attribute.room for attribute in outside) > _BLOCK_ROOM:
        raise Invalid(
            f"extended attributes of {total} bytes, more than ext4 can hold ({_INODE_ROOM + _BLOCK_ROOM})",
            hint="make the image without them",
        )
    return inside, outside


def _packed(attributes: list[Attribute], size: int, origin: int) -> tuple[bytes, list[int]]:
    """Entries from the front and values from the back of ``size`` bytes; value offsets count from ``-origin``."""
    image = bytearray(size)
    at, end, hashes = 0, size, []
    for attribute in attributes:
        value = attribute.value
        end -= len(value) + 3 & ~3
        image[end : end + len(value)] = value
        offset = end + origin if value else 0
        hashes.append(attribute.hash)
        _ENTRY.pack_into(image, at, len(attribute.name), attribute.index, offset, 0, len(value), hashes[-1])
        image[at + _ENTRY.size : at + _ENTRY.size + len(attribute.name)] = attribute.name
        at += _ENTRY.size + len(attribute.name) + 3 & ~3
    return bytes(image), hashes


def _in_inode(attributes: list[Attribute]) -> bytes:
    return _MAGIC.to_bytes(4, "little") + _packed(attributes, _IN_INODE - 4, 0)[0]


def _in_block(attributes: list[Attribute]) -> bytes:
    head = np.zeros(1, dtype=ATTRIBUTE_HEADER)
    body, hashes = _packed(attributes, BLOCK_SIZE - ATTRIBUTE_HEADER.itemsize, ATTRIBUTE_HEADER.itemsize)
    total = 0
    for value in hashes:
        # A block with an entry whose hash is 0 is never shared by the kernel, and has the hash 0 itself.
        total = ((total << 16) ^ (total >> 16) ^ value) & _MASK if value else 0
        if not value:
            break
    head["h_magic"], head["h_blocks"], head["h_hash"] = _MAGIC, 1, total
    return head.tobytes() + body
