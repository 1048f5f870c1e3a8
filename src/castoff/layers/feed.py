"""Compressed bytes on their way from the event loop into a conversion's threads."""

from __future__ import annotations

import asyncio
import threading

from castoff.layers.pipeline import Channel, Pipeline

__all__ = ["Feed"]

_HIGH = 4 << 20
_LOW = 2 << 20


class Feed:
    """A queue with an asynchronous end and a blocking one, holding a few MiB.

    The event loop is woken only when the queue has fallen from its high mark to its low one, not for each piece: a
    wake-up is a write to the loop's own pipe.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._pieces: Channel[bytes] = pipeline.channel()
        self._lock = threading.Lock()
        self._queued = 0
        self._waiting = False

    async def put(self, piece: bytes) -> None:
        """Hands a piece over; waits while the queue is full."""
        self._pieces.put(piece)
        with self._lock:
            self._queued += len(piece)
            self._waiting = self._queued > _HIGH
        if self._waiting:
            await self._room.wait()
            self._room.clear()

    def close(self) -> None:
        """The blob has ended."""
        self._pieces.close()

    def get(self) -> bytes | None:
        """The next piece, None at the blob's end; called by one thread.

        Raises:
            Stopped: The pipeline was stopped.
        """
        return self._pieces.get()

    def release(self, count: int) -> None:
        """``count`` bytes of pieces that were got are done with, so that as many may come in."""
        with self._lock:
            self._queued -= count
            wake = self._waiting and self._queued < _LOW
            if wake:
                self._waiting = False
        if wake:
            self._loop.call_soon_threadsafe(self._room.set)
