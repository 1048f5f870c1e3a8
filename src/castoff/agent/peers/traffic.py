"""How much this host sends to whom, and how fast lately."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["Traffic"]

_WINDOW: Final = 5.0
"""Seconds over which a rate is taken."""
_STEP: Final = 0.5
_LATELY: Final = 30.0
"""Seconds for which who got something is told of."""
_MOST: Final = 4096
_OTHERS: Final = "others"


class _Sent:
    __slots__ = ("last", "steps", "total")

    def __init__(self) -> None:
        self.total = 0
        self.last = float("-inf")
        self.steps: deque[tuple[float, int]] = deque()
        """When a step began, and the bytes of it."""


class Traffic:
    """Counts bytes by whoever gets them.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sent: dict[str, _Sent] = {}

    def count(self, who: str, size: int) -> None:
        """So many bytes were sent; of more than 4,096 askers the rest is one."""
        if who not in self._sent and len(self._sent) >= _MOST:
            who = _OTHERS
        now, sent = self._clock(), self._sent.setdefault(who, _Sent())
        sent.total += size
        sent.last = now
        if sent.steps and now - sent.steps[-1][0] < _STEP:
            began, before = sent.steps[-1]
            sent.steps[-1] = began, before + size
        else:
            sent.steps.append((now, size))
        _drop(sent, now)

    def lately(self) -> list[tuple[str, int, int]]:
        """Who got something lately: name, bytes since the start, bytes a second now."""
        now = self._clock()
        found = []
        for who, sent in self._sent.items():
            if sent.last >= now - _LATELY:
                _drop(sent, now)
                found.append((who, sent.total, round(sum(size for _, size in sent.steps) / _WINDOW)))
        return found


def _drop(sent: _Sent, now: float) -> None:
    while sent.steps and sent.steps[0][0] < now - _WINDOW:
        sent.steps.popleft()
