"""How much this host sends to others, and when: what a guest waits for at once, the rest within a limit and in turns."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

__all__ = ["Uplink"]

_LONGEST = 1.0
"""Seconds that bulk gives way to others at most, each time: it must end too."""
_TICK = 0.005
_BURST = 0.1


class Uplink:
    """The link to the other hosts, as far as this one sends.

    Args:
        limit: Bytes a second for all that nobody waits for; 0: none but the link's own.
        busy: Whether this host boots a machine now: then nothing is sent that nobody waits for, for as long as others bear it.

    Attributes:
        sent: Bytes, by who asked.
    """

    def __init__(self, limit: int = 0, busy: Callable[[], bool] = lambda: False) -> None:
        self._limit = limit
        self._busy = busy
        self._urgent = 0
        self._free_at = 0.0
        self.sent: dict[str, int] = {}

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
        end = time.monotonic() + _LONGEST
        while (self._urgent or self._busy()) and time.monotonic() < end:  # noqa: ASYNC110 - a boot sets no event
            await asyncio.sleep(_TICK)
        if self._limit:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - _BURST) + size / self._limit
            if self._free_at > now:
                await asyncio.sleep(self._free_at - now)

    def count(self, who: str, size: int) -> None:
        """So much was sent."""
        if who not in self.sent and len(self.sent) >= 4096:
            who = "others"
        self.sent[who] = self.sent.get(who, 0) + size
