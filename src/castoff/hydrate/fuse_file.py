"""The bytes of a rootfs that exists as pieces: its metadata in a sparse file, its layers' segments as they are.

Nothing of it is copied or cloned to be served, so it works on filesystems without reflinks too.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Piece", "PiecedFile"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of the rootfs that are bytes of another file."""

    offset: int
    """In the rootfs."""
    length: int
    descriptor: int
    """Of the file that has them, readable."""
    at: int
    """Offset there."""


class PiecedFile:
    """A file of ``size`` bytes, read through its pieces.

    Args:
        size: Bytes.
        metadata: Descriptor of a sparse file of ``size`` bytes: what no piece covers.
        pieces: Ascending, not overlapping. Neighbours that continue each other become one.
    """

    def __init__(self, size: int, metadata: int, pieces: Iterable[Piece]) -> None:
        self.size = size
        self._pieces = _covered(size, metadata, pieces)
        self._starts = [piece.offset for piece in self._pieces]

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fills ``target`` with the bytes from ``offset`` on, all of which lie within the file.

        Raises:
            OSError: A file could not be read, or (EIO) is shorter than it should be: a hole must never stand for data.
        """
        number = bisect_right(self._starts, offset) - 1
        while target:
            piece = self._pieces[number]
            within = offset - piece.offset
            if within == piece.length:
                number += 1
                continue
            part = target[: piece.length - within]
            count = os.preadv(piece.descriptor, [part], piece.at + within)
            if count == 0:
                raise OSError(errno.EIO, f"descriptor {piece.descriptor} ends before {piece.at + within + len(part)}")
            target = target[count:]
            offset += count


def _covered(size: int, metadata: int, pieces: Iterable[Piece]) -> list[Piece]:
    """``pieces`` and, between them, the metadata file's."""
    found: list[Piece] = []
    end = 0
    for piece in pieces:
        if piece.offset < end or piece.length <= 0 or piece.offset + piece.length > size:
            raise ValueError(f"{piece} is out of place in a file of {size} bytes")
        if piece.offset > end:
            found.append(Piece(end, piece.offset - end, metadata, end))
        _append(found, piece)
        end = piece.offset + piece.length
    if end < size:
        found.append(Piece(end, size - end, metadata, end))
    return found


def _append(found: list[Piece], piece: Piece) -> None:
    if found:
        last = found[-1]
        if (
            last.descriptor == piece.descriptor
            and last.at + last.length == piece.at
            and last.offset + last.length == piece.offset
        ):
            found[-1] = Piece(last.offset, last.length + piece.length, last.descriptor, last.at)
            return
    found.append(piece)
