"""``have``: which chunks of a layer's segment are on this host, as a bitmap with a header (docs/formats.md).

A bit is set only after its chunk was verified and is on disk. A layer that was converted here gets a full bitmap, written
after everything else of it; one that is hydrated gets its bits one by one (castoff.store.hydration), and then COMPLETE.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from castoff.errors import Invalid

__all__ = ["CHUNK", "Have", "parse_have", "part_here"]

CHUNK = 256 * 1024
"""Bytes in a chunk. castoff.layers.toc has the same; it imports numpy, which the warm path must not."""

_MAGIC = b"castoffH"
_VERSION = 1
_COMPLETE = 1
_HEADER = struct.Struct("<8sHHIQII")


@dataclass(frozen=True, slots=True)
class Have:
    """The header of a ``have`` file.

    Attributes:
        segment_size: Bytes of the whole segment.
        chunks: Chunks in it.
        complete: Every chunk is here.
    """

    HEADER: ClassVar[int] = _HEADER.size
    """Bytes before the bitmap."""

    segment_size: int
    chunks: int
    complete: bool

    @classmethod
    def full(cls, segment_size: int) -> Have:
        """Of a segment that is here whole."""
        return cls(segment_size, -(-segment_size // CHUNK), complete=True)

    def to_bytes(self) -> bytes:
        """The file: header and bitmap, every bit as ``complete`` says; bits past the last chunk are 0."""
        header = _HEADER.pack(_MAGIC, _VERSION, _COMPLETE if self.complete else 0, CHUNK, self.segment_size, self.chunks, 0)
        bits = (1 << self.chunks) - 1 if self.complete else 0
        return header + bits.to_bytes(-(-self.chunks // 8), "little")

    @classmethod
    def read(cls, path: Path) -> Have | None:
        """Reads a file's header; None where there is none.

        Raises:
            Invalid: It is not a ``have`` file of this version.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            data = os.read(descriptor, _HEADER.size)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        return parse_have(data, size, path)


def parse_have(data: bytes, size: int, path: Path) -> Have:
    """The header at the start of ``data``.

    Args:
        data: The file's header, or more of it.
        size: Bytes of the file.
        path: Named in the error.

    Raises:
        Invalid: It is not a ``have`` file of this version.
    """
    if len(data) >= _HEADER.size:
        magic, version, flags, chunk, segment_size, chunks, _ = _HEADER.unpack_from(data)
        expected = (_MAGIC, _VERSION, CHUNK, -(-segment_size // CHUNK), _HEADER.size + -(-chunks // 8))
        if (magic, version, chunk, chunks, size) == expected:
            return Have(segment_size, chunks, complete=bool(flags & _COMPLETE))
    raise Invalid(f"{path} is not a `have` file of version {_VERSION}", hint="run `castoff store verify --repair`")


def part_here(path: Path) -> float:
    """Which part of a layer's chunks is here, 0 to 1; 0 where its ``have`` is not there, or broken."""
    try:
        data = path.read_bytes()
        have = parse_have(data, len(data), path)
    except (OSError, Invalid):
        return 0.0
    here = int.from_bytes(data[_HEADER.size :], "little").bit_count()
    return 1.0 if have.complete or not have.chunks else here / have.chunks
