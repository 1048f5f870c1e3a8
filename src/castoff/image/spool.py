"""Compressed archives: told by their first bytes, decompressed once into a file without a name."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from castoff.errors import Invalid, LimitExceeded, NoSpace, Unavailable, Unsupported
from castoff.image.files import Span, read_span
from castoff.image.media import Compression
from castoff.image.settings import ImageSettings

__all__ = ["compression_at", "unpack"]

_PIECE = 1 << 20
_KEEP_FREE = 64 << 20  # bytes of the disk that a spool leaves alone
_MAX_WINDOW = 128 << 20  # bytes of memory that a zstd frame may ask for: what zstd -d allows without --long


def compression_at(span: Span) -> Compression:
    """How the bytes of a span are compressed.

    Raises:
        Unsupported: In a way that castoff does not read.
    """
    magic = read_span(Span(span.what, span.fd, span.offset, min(6, span.size)), 6)
    if magic.startswith(b"\x1f\x8b"):
        return "gzip"
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return "zstd"
    for start, name, tool in ((b"BZh", "bzip2", "bunzip2"), (b"\xfd7zXZ\0", "xz", "unxz")):
        if magic.startswith(start):
            raise Unsupported(f"{span.what} is compressed with {name}", hint=f"decompress it first: {tool} -k FILE")
    return "none"


async def unpack(
    span: Span, compression: Compression, settings: ImageSettings, scratch: Path, advance: Callable[[int], None]
) -> int:
    """Decompresses a span into a nameless file under ``scratch``: its descriptor, which is the caller's to close.

    Args:
        advance: Told of the compressed bytes read.

    Raises:
        Invalid: The stream is broken.
        LimitExceeded: It is longer than the settings allow.
        NoSpace: The disk would become full.
    """
    stop = threading.Event()
    running = asyncio.get_running_loop().run_in_executor(
        None, _unpack, span, compression, settings.max_archive_size, scratch, advance, stop
    )
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([running])
        if not running.cancelled() and running.exception() is None:
            os.close(running.result())
        raise


def _unpack(
    span: Span, compression: Compression, limit: int, scratch: Path, advance: Callable[[int], None], stop: threading.Event
) -> int:
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=scratch) as spool, _reader(span, compression, advance) as reader:
        size = 0
        while not stop.is_set():
            piece = _read(reader, span.what)
            if not piece:
                break
            size += len(piece)
            if size > limit:
                raise LimitExceeded(f"{span.what}, decompressed, in bytes,", limit=limit, setting="image.max_archive_size")
            _write(spool.fileno(), piece, scratch)
        return os.dup(spool.fileno())


def _read(reader: IO[bytes], what: str) -> bytes:
    import zstandard

    try:
        return reader.read(_PIECE)
    # isal raises EOFError for a stream that ends early, OSError and its own error (a zlib.error's like) for a broken one.
    except (EOFError, OSError, zstandard.ZstdError, _isal_error()) as error:
        raise Invalid(
            f"{what} cannot be decompressed: {error}", hint="it is truncated or broken; save or copy it again"
        ) from error


def _isal_error() -> type[Exception]:
    from isal import isal_zlib

    return cast(type[Exception], isal_zlib.error)


def _write(fd: int, piece: bytes, scratch: Path) -> None:
    status = os.statvfs(scratch)
    available = status.f_bavail * status.f_frsize
    if available < len(piece) + _KEEP_FREE:
        raise NoSpace(str(scratch), needed=len(piece) + _KEEP_FREE, available=available)
    try:
        view = memoryview(piece)
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(str(scratch), needed=len(piece), available=0) from error
        raise Unavailable(f"{scratch} cannot be written: {error.strerror}") from error


class _SpanFile(io.RawIOBase):
    """A span as a file object, for the decompressors."""

    def __init__(self, span: Span, advance: Callable[[int], None]) -> None:
        self._span = span
        self._advance = advance
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        piece = os.pread(self._span.fd, min(len(buffer), self._span.size - self._at), self._span.offset + self._at)
        buffer[: len(piece)] = piece
        self._at += len(piece)
        self._advance(len(piece))
        return len(piece)


@contextlib.contextmanager
def _reader(span: Span, compression: Compression, advance: Callable[[int], None]) -> Iterator[IO[bytes]]:
    source = io.BufferedReader(_SpanFile(span, advance), _PIECE)
    if compression == "gzip":
        from isal import igzip

        gzip_file: Any = igzip.GzipFile  # its constructor has no types
        with gzip_file(fileobj=source, mode="rb") as reader:
            yield reader
        return
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    with decompressor.stream_reader(source, read_across_frames=True) as stream:
        yield cast(IO[bytes], stream)
