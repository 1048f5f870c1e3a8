"""Named files of an image on disk: a directory's, or a tar's members; and how a stretch of a file is streamed.

Everything is checked before it is read: only regular files, never more than the caller's limit. Opening is
non-blocking, so that a FIFO in the place of a blob is an error and not a hang.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from castoff.errors import Invalid, NotFound, Unavailable
from castoff.image.ahead import PIECE, read_ahead

__all__ = ["DirectoryFiles", "Files", "Span", "open_regular", "read_pieces", "read_span", "stream_span"]


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of an open file. ``what`` names it in errors."""

    what: str
    fd: int
    offset: int
    size: int


class Files(Protocol):
    """Files by name; names are relative, with ``/`` between parts."""

    what: str
    """The whole, for errors."""

    async def prepare(self) -> None:
        """Comes before the first ``open``; may take its time."""
        ...

    def open(self, name: str) -> AbstractContextManager[Span | None]:
        """The file of that name; None: there is none."""
        ...

    def close(self) -> None: ...


class DirectoryFiles:
    """The files of a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.what = str(directory)

    async def prepare(self) -> None:
        """A directory is its own index."""

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Span | None]:
        path = self._directory / name
        try:
            fd, size = open_regular(path)
        except NotFound:
            yield None
            return
        try:
            yield Span(str(path), fd, 0, size)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Nothing stays open."""


def open_regular(path: Path) -> tuple[int, int]:
    """Opens a regular file for reading: its descriptor, which is the caller's to close, and its size in bytes.

    Raises:
        NotFound: There is none.
        Invalid: It is something else, or may not be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{path} does not exist") from error
    except OSError as error:
        raise Invalid(f"{path} cannot be opened: {error.strerror}") from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise Invalid(f"{path} is not a regular file")
    return fd, status.st_size


def read_span(span: Span, limit: int) -> bytes:
    """The whole of a small span.

    Raises:
        Invalid: It is over ``limit`` bytes, or shorter than it was.
    """
    if span.size > limit:
        raise Invalid(f"{span.what} has {span.size} bytes", hint=f"at most {limit} are read of such a document")
    return b"".join(_read_batch(span, 0, span.size))


def stream_span(span: Span) -> AsyncGenerator[bytes, None]:
    """The span's bytes in pieces of at most a MiB, read in a thread.

    Raises:
        Invalid: The file is shorter than the span.
        Unavailable: The disk does not give it.
    """
    starts = iter(range(0, span.size, PIECE))
    return read_ahead(lambda: _read_batch(span, next(starts, span.size), PIECE))


def read_pieces(span: Span) -> Iterator[bytes]:
    """The span's bytes in pieces, blocking; raises as :func:`stream_span` does."""
    for start in range(0, span.size, PIECE):
        yield from _read_batch(span, start, PIECE)


def _read_batch(span: Span, start: int, length: int) -> list[bytes]:
    pieces = []
    end = min(span.size, start + length)
    while start < end:
        try:
            piece = os.pread(span.fd, min(PIECE, end - start), span.offset + start)
        except OSError as error:
            raise Unavailable(f"{span.what} cannot be read at byte {span.offset + start}: {error.strerror}") from error
        if not piece:
            raise Invalid(
                f"{span.what} ended after {start} of {span.size} bytes", hint="it is truncated, or was changed meanwhile"
            )
        pieces.append(piece)
        start += len(piece)
    return pieces
