"""Memory that all conversions of a process share: each takes its part before it starts, in the order in which they came."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

__all__ = ["Budget", "give_back", "many_entries", "shared"]


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

_MANY = 1 << 18
_one_at_a_time = threading.Lock()
_libc = ctypes.CDLL(None)
_trim, _mallopt = getattr(_libc, "malloc_trim", None), getattr(_libc, "mallopt", None)
_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD in glibc's malloc.h."""


@contextmanager
def many_entries(count: int) -> Iterator[None]:
    """Where memory grows with a layer's entries (writing its index, compiling its tables: 150 bytes and 2 us each), large layers
    go one after another, and leave nothing behind."""
    if count < _MANY:
        yield
        return
    with _one_at_a_time:
        if _trim is not None and _mallopt is not None:
            _mallopt(_MMAP_THRESHOLD, 4 << 20)
        try:
            yield
        finally:
            give_back(count)


def give_back(count: int) -> None:
    """Returns freed memory to the system after work on ``count`` entries.

    Once glibc has freed an array of 32 MiB, it keeps freed ones of up to that size, and in pieces (mallopt(3),
    M_MMAP_THRESHOLD): 60 MB with a million entries. Other C libraries have no malloc_trim, and no such habit.
    """
    if count >= _MANY and _trim is not None:
        _trim(0)
