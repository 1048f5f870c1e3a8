"""Decompression of a layer's blob: gzip (by igzip), zstd or none, into buffers of the caller.

What a blob is compressed with is told by its first bytes, as containerd does: archives and registries exist whose media
types say gzip of a plain tar.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, cast

from castoff.errors import Invalid, LimitExceeded
from castoff.layers.settings import Limits

__all__ = ["HEAD", "Decompressor", "Stream", "open_decompressor", "sniff"]

HEAD = 18
"""Bytes at a stream's start that tell its compression and window (zstd's longest frame header)."""

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"
_INPUT = 256 << 10
_MAX_GZIP_HEADER = 1 << 20
_WINDOW = 8 << 20
"""Bytes: the least that zstd decoders should allow (RFC 8878, 3.1.1.1.2); later frames may want it."""


class Decompressor(Protocol):
    """Yields the uncompressed stream; like a raw file."""

    def readinto(self, view: memoryview, /) -> int:
        """Fills ``view`` from its start; fewer bytes only near the stream's end, 0 at it."""
        ...


class _Input:
    """The compressed stream as the file that igzip and zstandard want; ``get`` yields its pieces, None at the end."""

    def __init__(self, get: Callable[[], bytes | None]) -> None:
        self._get = get
        self._piece = b""
        self._at = 0

    def _more(self) -> bool:
        while self._at == len(self._piece):
            piece = self._get()
            if piece is None:
                self._piece, self._at = b"", 0
                self._get = _ended
                return False
            self._piece, self._at = piece, 0
        return True

    def readinto(self, view: memoryview) -> int:
        """Copies some of the next bytes into ``view``."""
        if len(view) > _MAX_GZIP_HEADER:  # igzip grows its buffer until a member's whole header fits
            raise Invalid("a gzip header is longer than 1 MiB")
        if not self._more():
            return 0
        end = min(self._at + len(view), len(self._piece))
        count = end - self._at
        view[:count] = memoryview(self._piece)[self._at : end]
        self._at = end
        return count

    def read(self, size: int) -> bytes:
        """The rest of the current piece, of any size."""
        if not self._more():
            return b""
        piece = self._piece[self._at :] if self._at else self._piece
        self._at = len(self._piece)
        return piece


def _ended() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Stream:
    """What a blob is, by its first bytes."""

    compression: Literal["", "gzip", "zstd"]
    window: int = 0
    """Bytes that its decoder keeps besides small change."""


def sniff(head: bytes, limits: Limits) -> Stream:
    """Tells how a blob that starts with ``head`` (at least ``HEAD`` bytes, if there are so many) is compressed.

    Raises:
        Invalid: Its zstd header is broken.
        LimitExceeded: Its zstd window is over the limit.
    """
    if head.startswith(_GZIP):
        return Stream("gzip")
    if head[1:4] == _SKIPPABLE and head[0] & 0xF0 == 0x50:  # a zstd stream may begin with one (zstd:chunked, pzstd)
        return Stream("zstd", _WINDOW)
    if not head.startswith(_ZSTD):
        return Stream("")
    import zstandard

    try:
        window = zstandard.get_frame_parameters(head[:HEAD]).window_size
    except zstandard.ZstdError as error:
        raise Invalid(f"not a sound zstd stream: {error}") from error
    if window > limits.max_window:
        raise LimitExceeded(f"its zstd window of {window} bytes", limit=limits.max_window, setting="layers.max_window")
    return Stream("zstd", max(window, _WINDOW))


def open_decompressor(stream: Stream, get: Callable[[], bytes | None]) -> Decompressor:
    """The decompressor for the blob whose pieces ``get`` yields: it blocks until the next is there, None is the end."""
    source = _Input(get)
    if stream.compression == "gzip":
        return _Gzip(source)
    if stream.compression == "zstd":
        return _Zstd(source, stream.window)
    return source


class _Gzip:
    """All members of a gzip stream, their CRCs checked."""

    def __init__(self, source: _Input) -> None:
        from isal import igzip_lib, isal_zlib

        self._errors = (OSError, OverflowError, cast("type[Exception]", igzip_lib.error))  # its stub has it as an instance
        # The reader behind isal.igzip.IGzipFile: unlike that file and unlike decompressobj it writes into the caller's
        # buffer, so that nothing is allocated or copied for each piece.
        self._read = isal_zlib._GzipReader(source, _INPUT).readinto  # type: ignore[arg-type]

    def readinto(self, view: memoryview) -> int:
        try:
            return int(self._read(view))
        except EOFError as error:
            raise Invalid("the gzip stream ends in the middle") from error
        except self._errors as error:
            raise Invalid(f"not a sound gzip stream: {error}") from error


class _Zstd:
    """All frames of a zstd stream, skippable ones skipped."""

    def __init__(self, source: _Input, window: int) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        decompressor = zstandard.ZstdDecompressor(max_window_size=window)
        self._read = decompressor.stream_reader(source, read_across_frames=True).readinto  # type: ignore[arg-type]

    def readinto(self, view: memoryview) -> int:
        try:
            return self._read(view)
        except self._error as error:
            raise Invalid(f"not a sound zstd stream: {error}") from error
