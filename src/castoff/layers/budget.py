"""Memory that all conversions of a process share: each takes its part before it starts, in the order in which they came."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["Budget", "shared"]


class Budget:
    """Bytes in use, and who waits for some. Safe for several event loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used = 0
        self._waiting: deque[tuple[int, int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def take(self, need: int, limit: int) -> AsyncIterator[None]:
        """Holds ``need`` bytes for the block, once all in use are at most ``limit``; who needs more than that runs alone."""
        granted = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.append((need, limit, granted))
            self._grant()
        try:
            await asyncio.shield(granted)
            yield
        finally:
            with self._lock:
                if (need, limit, granted) in self._waiting:  # cancelled while waiting
                    self._waiting.remove((need, limit, granted))
                else:
                    self._used -= need
                self._grant()

    def _grant(self) -> None:
        while self._waiting:
            need, limit, granted = self._waiting[0]
            if self._used and self._used + need > limit:
                return
            self._waiting.popleft()
            self._used += need
            loop = granted.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, granted)


def _resolve(granted: asyncio.Future[None]) -> None:
    if not granted.done():
        granted.set_result(None)


shared = Budget()
"""The process's own."""
