"""Decompression of a layer's blob: gzip (by igzip), zstd or none, into buffers of the caller.

What a blob is compressed with is told by its first bytes, as containerd does: archives and registries exist whose media
types say gzip of a plain tar.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from castoff.errors import Invalid

__all__ = ["Decompressor", "open_decompressor", "zstd_window"]

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_INPUT = 256 << 10
_MAX_GZIP_HEADER = 1 << 20
_ZSTD_WINDOW = 8 << 20
_MAX_ZSTD_WINDOW = 128 << 20


class Decompressor(Protocol):
    """Yields the uncompressed stream; like a raw file."""

    def readinto(self, view: memoryview, /) -> int:
        """Fills ``view`` from its start; fewer bytes only near the stream's end, 0 at it."""
        ...


class _Input:
    """The compressed stream as the file that igzip and zstandard want; ``get`` yields its pieces, None at the end."""

    def __init__(self, get: Callable[[], bytes | None], first: bytes) -> None:
        self._get = get
        self._piece = first
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


def zstd_window(head: bytes) -> int:
    """Bytes that the decoder of a zstd stream starting with ``head`` keeps; 0 for other streams."""
    if not head.startswith(_ZSTD):
        return 0
    import zstandard

    try:
        return zstandard.get_frame_parameters(head[:18]).window_size
    except zstandard.ZstdError as error:
        raise Invalid(f"not a zstd stream: {error}") from error


def open_decompressor(get: Callable[[], bytes | None], window: int) -> Decompressor:
    """The decompressor for the blob whose pieces ``get`` yields (None at the end).

    Args:
        get: Blocks until the next piece is there.
        window: The most that a zstd frame may make the decoder keep.

    Raises:
        Invalid: The blob is empty.
    """
    head = b""
    while len(head) < 18 and (piece := get()) is not None:
        head += piece
    source = _Input(get, head)
    if head.startswith(_GZIP):
        return _Gzip(source)
    if head.startswith(_ZSTD):
        return _Zstd(source, window)
    return source


class _Gzip:
    """All members of a gzip stream, their CRCs checked."""

    def __init__(self, source: _Input) -> None:
        from isal import igzip_lib, isal_zlib

        self._errors: tuple[type[Exception], ...] = (OSError, igzip_lib.error)
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
