"""Records of pax extended headers (POSIX.1-2001 pax, "pax Extended Header"): ``LENGTH KEY=VALUE\\n``."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from castoff.errors import Invalid
from castoff.layers.names import show

__all__ = ["integer", "parse", "timestamp", "xattrs"]

_SCHILY = b"SCHILY.xattr."
_LIBARCHIVE = b"LIBARCHIVE.xattr."
_TIME = re.compile(rb"(-?)([0-9]{1,19})(?:\.([0-9]*))?\Z")
_TEXT = frozenset((b"path", b"linkpath", b"uname", b"gname", b"GNU.sparse.name"))


def parse(data: bytes) -> list[tuple[bytes, bytes]]:
    """The records of one extended header, in order (sparse format 0.0 repeats keys).

    Raises:
        Invalid: A record is malformed.
    """
    records: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + 20)
        digits = data[at:space] if space > 0 else b""
        end = at + int(digits) if digits.isdigit() else 0
        equals = data.find(b"=", space + 1, max(end - 1, 0))
        if end > len(data) or equals <= space + 1 or data[end - 1] != 0x0A:
            raise Invalid(f"a pax header has a malformed record: {show(data[at : at + 60])}")
        key, value = data[space + 1 : equals], data[equals + 1 : end - 1]
        if b"\0" in key or (key in _TEXT and b"\0" in value):
            raise Invalid(f"the pax record {show(key)} has a NUL in it")
        records.append((key, value))
        at = end
    return records


def integer(key: bytes, value: bytes, limit: int = 1 << 63) -> int:
    """A decimal number of 0 to ``limit`` - 1."""
    if not value.isdigit() or len(value) > 20 or int(value) >= limit:
        raise Invalid(f"the pax record {show(key)} has the value {show(value)}, which is no number in its range")
    return int(value)


def timestamp(key: bytes, value: bytes) -> tuple[int, int]:
    """Seconds since 1970, rounded down, and nanoseconds after them; digits past the ninth are cut off, as Go does."""
    match = _TIME.match(value)
    if match is None:
        raise Invalid(f"the pax record {show(key)} has the value {show(value)}, which is no time")
    seconds = int(match[2])
    nanoseconds = int(((match[3] or b"") + b"000000000")[:9])
    if match[1]:
        seconds = -seconds
        if nanoseconds:
            seconds, nanoseconds = seconds - 1, 1_000_000_000 - nanoseconds
    if not -(1 << 63) <= seconds < 1 << 63:
        raise Invalid(f"the pax record {show(key)} has the value {show(value)}, which is no time that fits in 64 bits")
    return seconds, nanoseconds


def xattrs(records: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """The extended attributes among ``records``, by whole name.

    star, GNU tar, Go and libarchive write ``SCHILY.xattr.NAME`` with the raw value, GNU tar and libarchive with ``%`` and
    ``=`` of the name escaped (Go's archive/tar does not know of that); libarchive adds ``LIBARCHIVE.xattr.NAME`` with the
    name percent-encoded and the value in base64 without padding.
    """
    found: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key.startswith(_LIBARCHIVE):
            try:
                found.setdefault(unquote_to_bytes(key[len(_LIBARCHIVE) :]), base64.b64decode(value + b"=" * (-len(value) % 4)))
            except binascii.Error as error:
                raise Invalid(f"the pax record {show(key)} is not base64") from error
        elif key.startswith(_SCHILY):
            found[key[len(_SCHILY) :].replace(b"%3D", b"=").replace(b"%25", b"%")] = value
    return found
