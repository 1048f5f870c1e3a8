"""POSIX ACLs: from the form in which Linux hands them to programs to the one that ext4 keeps.

Source: include/uapi/linux/posix_acl_xattr.h for the first, fs/ext4/acl.h for the second, fs/posix_acl.c (``posix_acl_valid``,
``posix_acl_equiv_mode``) for what is valid.
"""

from __future__ import annotations

import struct

from castoff.errors import Invalid

__all__ = ["disk_acl", "mode_of_acl"]

_XATTR_VERSION, _DISK_VERSION = 2, 1
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_ENTRY = struct.Struct("<HHI")
_SHORT = struct.Struct("<HH")
_NAMED = (_USER, _GROUP)
_ONCE = (_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER)

Entry = tuple[int, int, int]


def _entries(value: bytes) -> list[Entry]:
    """Reads and checks an ACL: (tag, permissions, id)."""
    if len(value) < 4 or (len(value) - 4) % _ENTRY.size or struct.unpack_from("<I", value)[0] != _XATTR_VERSION:
        raise Invalid("an ACL that is none")
    entries: list[Entry] = list(_ENTRY.iter_unpack(value[4:]))
    tags = [tag for tag, _, _ in entries]
    known = all(tag in (*_NAMED, *_ONCE) and permissions <= 7 for tag, permissions, _ in entries)
    once = all(tags.count(tag) == 1 for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER)) and tags.count(_MASK) <= 1
    masked = _MASK in tags or not any(tag in tags for tag in _NAMED)
    if entries and not (known and once and masked and tags == sorted(tags)):
        raise Invalid("an ACL with entries that Linux does not allow")
    return entries


def mode_of_acl(value: bytes) -> int:
    """The permission bits that setting an access ACL gives its file; -1 for an empty one, which gives none.

    Raises:
        Invalid: It is no valid ACL.
    """
    entries = {tag: permissions for tag, permissions, _ in _entries(value) if tag in _ONCE}
    if not entries:
        return -1
    group = entries.get(_MASK, entries[_GROUP_OBJ])
    return entries[_USER_OBJ] << 6 | group << 3 | entries[_OTHER]


def disk_acl(value: bytes, *, access: bool) -> bytes | None:
    """The ACL as ext4 keeps it; None where the mode says it all, or where it is empty.

    Raises:
        Invalid: It is no valid ACL.
    """
    entries = _entries(value)
    if not entries or (access and all(tag in (_USER_OBJ, _GROUP_OBJ, _OTHER) for tag, _, _ in entries)):
        return None
    parts = [struct.pack("<I", _DISK_VERSION)]
    for tag, permissions, identity in entries:
        parts.append(_ENTRY.pack(tag, permissions, identity) if tag in _NAMED else _SHORT.pack(tag, permissions))
    return b"".join(parts)
