"""One header block of a tar: fields, numbers and checksum (POSIX.1-1988 ustar, V7, GNU and star variants)."""

from __future__ import annotations

from zlib import adler32

from castoff.errors import Invalid

__all__ = ["is_sound", "number", "owner", "path", "text"]

_SPACES = 8 * 0x20
_CACHE = 1 << 16
_checksums: dict[bytes, int] = {}
_owners: dict[bytes, tuple[int, int, int]] = {}


def text(field: bytes) -> bytes:
    """A field up to its first NUL."""
    return field.partition(b"\0")[0]


def number(field: bytes) -> int:
    """A numeric field: octal digits, or base-256 (GNU, star) where the first bit is set; signed, at most 64 bits.

    Raises:
        Invalid: It is neither.
    """
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False) - (1 << (8 * len(field) - 1))
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        if not -(1 << 63) <= value < 1 << 63:
            raise Invalid(f"the number {field.hex()} in a tar header is over 64 bits")
        return value
    digits = text(field.strip(b" \0"))
    if not digits:
        return 0
    try:
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass
    raise Invalid(f"a tar header has {field.decode('latin-1')!a} where an octal number should be")


def is_sound(header: bytes) -> bool:
    """Whether the header's checksum is right, as the sum of unsigned bytes or, as some old tars had it, of signed ones.

    Adler-32's lower half is one plus the sum of the bytes modulo 65,521, which C computes thirty times faster than
    ``sum`` does; only a header that fails by it is added up.
    """
    field = header[148:156]
    wanted = _checksums.get(field)
    if wanted is None:
        if len(_checksums) >= _CACHE:
            _checksums.clear()
        try:
            value = number(field)
        except Invalid:
            return False
        wanted = (1 + value + sum(field) - _SPACES) % 65521 if 0 <= value < 65521 else -1
        _checksums[field] = wanted
    if adler32(header) & 0xFFFF == wanted:
        return True
    value = number(field)
    total = sum(header) - sum(field) + _SPACES
    high = sum(1 for byte in header[:148] + header[156:] if byte & 0x80)
    return value in (total, total - 256 * high)


def owner(field: bytes) -> tuple[int, int, int]:
    """Mode, uid and gid of the three fields at 100; images have few distinct ones, so they are remembered."""
    known = _owners.get(field)
    if known is None:
        if len(_owners) >= _CACHE:
            _owners.clear()
        known = _owners[field] = (number(field[:8]), number(field[8:16]), number(field[16:24]))
    return known


def path(header: bytes) -> bytes:
    """The entry's name, with the prefix that ustar (155 bytes) and star (131) keep apart; GNU has other things there."""
    name = header[:100].partition(b"\0")[0]
    if header[345] and header[257:263] == b"ustar\0":
        length = 131 if header[508:512] == b"tar\0" else 155
        prefix = text(header[345 : 345 + length])
        if prefix:
            return prefix + b"/" + name
    return name
