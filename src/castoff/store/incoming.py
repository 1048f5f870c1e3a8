"""The segment of a layer that comes in: chunks are written, flushed, and only then said to be here.

A bit in ``have`` is a promise that survives the host, so it is set after the flush; a chunk counts as here, for whoever has
this open, as soon as it is written.
"""

from __future__ import annotations

import os
import threading

from castoff.store.have import CHUNK
from castoff.store.hydration import HaveMap
from castoff.store.layers import StoredLayer

__all__ = ["IncomingSegment"]


class IncomingSegment:
    """A layer's segment and ``have``, open. Its methods block; any thread may call them. Close it.

    Args:
        layer: Pinned by the caller for as long.

    Raises:
        NotFound, Invalid: Its ``have`` is gone, or broken.
        OSError: Its segment cannot be opened.
    """

    def __init__(self, layer: StoredLayer) -> None:
        self._have = HaveMap.open(layer.path)
        try:
            self.descriptor = os.open(layer.segment, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except BaseException:
            self._have.close()
            raise
        self._lock = threading.Lock()
        self._written: set[int] = set()
        """Here, and not flushed yet."""

    def has(self, number: int) -> bool:
        """Whether the chunk is here."""
        return number in self._written or self._have.has(number)

    @property
    def unflushed(self) -> int:
        """Chunks that are here without a bit that says so."""
        return len(self._written)

    def write(self, number: int, data: bytes) -> None:
        """Writes a verified chunk.

        Raises:
            OSError: The disk failed, or is full; nothing is lost but the chunk.
        """
        at, view = number * CHUNK, memoryview(data)
        while view:
            count = os.pwrite(self.descriptor, view, at)
            at, view = at + count, view[count:]
        with self._lock:
            self._written.add(number)

    def flush(self) -> None:
        """Has what was written survive the host, then says so in ``have``.

        Raises:
            OSError: The disk failed: the bits stay unset.
        """
        with self._lock:
            written = sorted(self._written)
        if written:
            os.fdatasync(self.descriptor)
            self._have.set_many(written)
            with self._lock:
                self._written.difference_update(written)

    def finish(self) -> None:
        """Flushes, and declares the layer complete if every chunk of it is here: others may have brought some."""
        self.flush()
        self._have.refresh()
        if not self._have.is_complete and not self._have.missing():
            self._have.complete()

    def close(self) -> None:
        """Closes it, after ``finish`` or at the end."""
        os.close(self.descriptor)
        self._have.close()
