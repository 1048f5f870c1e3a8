"""Blocks of tar archives, for tests of what no archiver writes."""

from __future__ import annotations

__all__ = ["END", "header", "padded", "pax"]

END = bytes(1024)
"""The end of an archive."""


def header(
    name: bytes = b"f",
    *,
    mode: bytes = b"0000644\0",
    uid: bytes = b"0000000\0",
    gid: bytes = b"0000000\0",
    size: bytes | int = 0,
    mtime: bytes = b"00000000000\0",
    kind: bytes = b"0",
    link: bytes = b"",
    magic: bytes = b"ustar\00000",
    device: bytes = b"0000000\x000000000\0",
    rest: bytes = b"",
    signed: bool = False,
) -> bytes:
    """One header block with a right checksum."""
    if isinstance(size, int):
        size = b"%011o\0" % size
    block = name.ljust(100, b"\0") + mode + uid + gid + size + mtime + b"        " + kind + link.ljust(100, b"\0")
    block = (block + magic + bytes(64) + device + rest).ljust(512, b"\0")
    assert len(block) == 512
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in block)
    return block[:148] + b"%06o\0 " % total + block[156:]


def padded(data: bytes) -> bytes:
    """Data as it follows a header."""
    return data + bytes(-len(data) % 512)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """A pax extended header."""
    data = b""
    for key, value in records:
        length = len(key) + len(value) + 3
        length += len(str(length + len(str(length))))
        data += b"%d %s=%s\n" % (length, key, value)
    return header(b"pax", kind=kind, size=len(data)) + padded(data)
