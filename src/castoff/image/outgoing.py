"""What is pushed: a blob in memory or in a file, read in pieces as often as it takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from castoff.errors import Invalid, Unavailable
from castoff.image.digest import Digest

__all__ = ["Body", "OutgoingBlob"]

_PIECE = 256 << 10
"""Bytes handed to a socket at once; each has the settings' ``read_timeout`` to be taken."""


@dataclass(frozen=True, slots=True)
class OutgoingBlob:
    """A blob on its way to a registry. ``what`` names it in errors."""

    what: str
    digest: Digest
    size: int
    source: bytes | Path = field(repr=False)

    @classmethod
    def of(cls, what: str, data: bytes) -> OutgoingBlob:
        """A small one."""
        return cls(what, Digest.of(data), len(data), data)


class Body:
    """Bytes ``start`` to ``end`` of a blob: a request's body, gone through anew at each try. Blocks while it is read."""

    def __init__(self, blob: OutgoingBlob, start: int, end: int) -> None:
        self._blob = blob
        self._start = start
        self._end = end

    def __len__(self) -> int:
        return self._end - self._start

    def __iter__(self) -> Iterator[bytes]:
        """Raises Unavailable, Invalid: the file cannot be read, or is not as long as it was."""
        source = self._blob.source
        if isinstance(source, bytes):
            yield from (source[at : min(at + _PIECE, self._end)] for at in range(self._start, self._end, _PIECE))
            return
        try:
            with source.open("rb", buffering=0) as file:
                for at in range(self._start, self._end, _PIECE):
                    piece = os.pread(file.fileno(), min(_PIECE, self._end - at), at)
                    if len(piece) != min(_PIECE, self._end - at):
                        raise Invalid(f"{source} ended before byte {self._end}", hint="it was changed meanwhile")
                    yield piece
        except OSError as error:
            raise Unavailable(f"{source}: {error.strerror}") from error
