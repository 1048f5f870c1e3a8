"""How much this host sends to others, and when: what a guest waits for at once, the rest within a limit and in turns."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from castoff.agent.peers.traffic import Traffic

__all__ = ["Uplink"]

_LONGEST = 0.05
"""Seconds that a part of bulk gives way to what a guest waits for, at most: an urgent chunk takes a few milliseconds, and where
guests everywhere wait all the time, it is bulk that ends that."""
_BOOTING = 0.01
"""Seconds that a part of bulk waits while this host boots a machine: those who ask for it may be booting the same image."""
_TICK = 0.005
_BURST = 0.1


class Uplink:
    """The link to the other hosts, as far as this one sends.

    Args:
        limit: Bytes a second for all that nobody waits for; 0: none but the link's own.
        busy: Whether this host boots a machine now: then bulk is sent in smaller measure.
        traffic: Counts by who asked.

    Attributes:
        given_urgent: Bytes that a guest waited for.
        given_bulk: The others.
        refused: Requests that were turned away.
    """

    def __init__(self, limit: int = 0, busy: Callable[[], bool] = lambda: False, traffic: Traffic | None = None) -> None:
        self._limit = limit
        self._busy = busy
        self._urgent = 0
        self._free_at = 0.0
        self._traffic = traffic or Traffic()
        self.given_urgent = self.given_bulk = self.refused = 0

    @contextlib.asynccontextmanager
    async def urgent(self) -> AsyncIterator[None]:
        """For the block bulk gives way."""
        self._urgent += 1
        try:
            yield
        finally:
            self._urgent -= 1

    async def turn(self, size: int) -> None:
        """Waits until so many bytes of bulk may be sent."""
        if self._busy():
            await asyncio.sleep(_BOOTING)
        end = time.monotonic() + _LONGEST
        while self._urgent and time.monotonic() < end:  # noqa: ASYNC110 - the last one to leave would wake all at once
            await asyncio.sleep(_TICK)
        if self._limit:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - _BURST) + size / self._limit
            if self._free_at > now:
                await asyncio.sleep(self._free_at - now)

    def count(self, who: str, size: int, *, urgent: bool) -> None:
        """So much was sent."""
        if urgent:
            self.given_urgent += size
        else:
            self.given_bulk += size
        self._traffic.count(who, size)
