"""Extended attributes as ext4 keeps them: behind the inode where they fit, else in a block that inodes may share.

Source: Documentation/filesystems/ext4/attributes.rst, fs/ext4/xattr.c and fs/ext4/acl.c. Namespaces that ext4 does not have
are left out, as containerd's unpacker leaves them out. Values for which neither has room get inodes of their own
(:mod:`castoff.ext4.values`), the largest first.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid
from castoff.ext4.acl import disk_acl, mode_of_acl
from castoff.ext4.structures import ATTRIBUTE_HEADER, BLOCK_SIZE
from castoff.layers.names import show

__all__ = ["Attribute", "AttributeSets", "attribute_sets", "chain", "entry_hash", "entry_hashes", "parse_set"]

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
    large: bool = False
    """Its value has an inode of its own."""

    @property
    def room(self) -> int:
        """Bytes that its entry takes, and its value if it stands there."""
        return (_ENTRY.size + len(self.name) + 3 & ~3) + (0 if self.large else len(self.value) + 3 & ~3)

    @property
    def hash(self) -> int:
        """e_hash; 0 where it depends on the filesystem."""
        return 0 if self.large else entry_hash(self.name, self.value)


@dataclass(frozen=True, slots=True, eq=False)
class AttributeSets:
    """A layer's attribute sets; 0 is empty."""

    words: NDArray[np.uint32]
    """[sets, 24] what stands behind an inode."""
    block: NDArray[np.int32]
    """[sets] which block it has, -1: none."""
    blocks: NDArray[np.uint32]
    """[blocks, 1024] but for reference count and checksum, and what entries with large values and the hash say."""
    permissions: NDArray[np.int32]
    """[sets] the permission bits that an ACL stands for, -1: it has none."""
    default: NDArray[np.bool_]
    """[sets] has a default ACL, which only a directory can have."""

    large_block: NDArray[np.uint32]
    """Of each entry whose value has an inode of its own the block in which it stands, ascending."""
    large_entry: NDArray[np.uint32]
    """The byte of the block where it begins."""
    large_value: NDArray[np.uint32]
    """Which of the values it has."""
    value_pool: NDArray[np.uint8]
    """Those values, one after another."""
    value_offsets: NDArray[np.uint32]
    """[values + 1] where each starts."""


def entry_hash(name: bytes, value: bytes) -> int:
    """e_hash (fs/ext4/xattr.c, ``ext4_xattr_hash_entry``); of a value in an inode, ``value`` is that one's hash."""
    result = 0
    for character in name:
        result = ((result << 5) ^ (result >> 27) ^ character) & _MASK
    for (word,) in struct.iter_unpack("<I", value + bytes(-len(value) % 4)):
        result = ((result << 16) ^ (result >> 16) ^ word) & _MASK
    return result


def chain(hashes: list[int]) -> int:
    """h_hash of a block with entries of these hashes (``ext4_xattr_rehash``)."""
    if 0 in hashes:  # the kernel never shares such a block, and gives it the hash 0
        return 0
    total = 0
    for value in hashes:
        total = ((total << 16) ^ (total >> 16) ^ value) & _MASK
    return total


def entry_hashes(block: bytes) -> list[int]:
    """The e_hash of each entry of an attribute block that was made here."""
    found, at = [], ATTRIBUTE_HEADER.itemsize
    while block[at : at + 4] != bytes(4):
        length, _, _, _, _, value = _ENTRY.unpack_from(block, at)
        found.append(value)
        at += _ENTRY.size + length + 3 & ~3
    return found


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
    large = _Large()
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
            large.add(len(blocks), outside)
            blocks.append(_in_block(outside))
    images = np.frombuffer(b"".join(blocks), dtype="<u4").reshape(-1, BLOCK_SIZE // 4)
    return AttributeSets(words, block, images, permissions, default, *large.columns())


class _Large:
    """Collects the entries of large values, and the values, equal ones once."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, int]] = []
        self._values: dict[bytes, int] = {}

    def add(self, block: int, attributes: list[Attribute]) -> None:
        at = ATTRIBUTE_HEADER.itemsize
        for attribute in attributes:
            if attribute.large:
                self._entries.append((block, at, self._values.setdefault(attribute.value, len(self._values))))
            at += _ENTRY.size + len(attribute.name) + 3 & ~3

    def columns(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint8], NDArray[np.uint32]]:
        block, entry, value = np.array(self._entries, dtype=np.uint32).reshape(-1, 3).T
        offsets = np.cumsum([0, *map(len, self._values)]).astype(np.uint32)
        pool = np.frombuffer(b"".join(self._values), dtype=np.uint8)
        return block.copy(), entry.copy(), value.copy(), pool, offsets


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
    """Which attributes stand behind the inode and which in a block, as many values as need be in inodes of their own."""
    least = sum(replace(attribute, large=True).room for attribute in attributes)
    if least > _INODE_ROOM + _BLOCK_ROOM:  # before all that takes the square of their count
        raise _too_many(least)
    divided = _placed(attributes)
    if divided:
        return divided
    kept = list(attributes)
    filled = [attribute for attribute in attributes if attribute.value]
    for attribute in sorted(filled, key=lambda attribute: len(attribute.value), reverse=True):
        kept[kept.index(attribute)] = replace(attribute, large=True)
        divided = _placed(kept)
        if divided:
            return divided
    raise _too_many(least)


def _too_many(room: int) -> Invalid:
    most = _INODE_ROOM + _BLOCK_ROOM
    said = f"extended attributes whose names take {room} bytes, more than ext4 can hold ({most})"
    return Invalid(said, hint="make the image without them")


def _placed(attributes: list[Attribute]) -> tuple[list[Attribute], list[Attribute]] | None:
    """The same with these values large: all in one of the two places, if one has room for all; None where they do not fit."""
    total = sum(attribute.room for attribute in attributes)
    if total <= _INODE_ROOM and not any(attribute.large for attribute in attributes):
        return attributes, []
    if total <= _BLOCK_ROOM:
        return [], attributes
    inside: list[Attribute] = []
    left = _INODE_ROOM
    for attribute in attributes:
        if attribute.room <= left and not attribute.large:
            inside.append(attribute)
            left -= attribute.room
    outside = [attribute for attribute in attributes if attribute not in inside]
    return (inside, outside) if sum(attribute.room for attribute in outside) <= _BLOCK_ROOM else None


def _packed(attributes: list[Attribute], size: int, origin: int) -> tuple[bytes, list[int]]:
    """Entries from the front and values from the back of ``size`` bytes; value offsets count from ``-origin``."""
    image = bytearray(size)
    at, end, hashes = 0, size, []
    for attribute in attributes:
        value = b"" if attribute.large else attribute.value
        end -= len(value) + 3 & ~3
        image[end : end + len(value)] = value
        offset = end + origin if value else 0
        hashes.append(attribute.hash)
        _ENTRY.pack_into(image, at, len(attribute.name), attribute.index, offset, 0, len(attribute.value), hashes[-1])
        image[at + _ENTRY.size : at + _ENTRY.size + len(attribute.name)] = attribute.name
        at += _ENTRY.size + len(attribute.name) + 3 & ~3
    return bytes(image), hashes


def _in_inode(attributes: list[Attribute]) -> bytes:
    return _MAGIC.to_bytes(4, "little") + _packed(attributes, _IN_INODE - 4, 0)[0]


def _in_block(attributes: list[Attribute]) -> bytes:
    head = np.zeros(1, dtype=ATTRIBUTE_HEADER)
    body, hashes = _packed(attributes, BLOCK_SIZE - ATTRIBUTE_HEADER.itemsize, ATTRIBUTE_HEADER.itemsize)
    head["h_magic"], head["h_blocks"], head["h_hash"] = _MAGIC, 1, chain(hashes)
    return head.tobytes() + body
