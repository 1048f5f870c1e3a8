"""Which sources are left alone, and for how long.

One that sent wrong bytes is asked only when no other source gives what is wanted: first for a moment, since a bit may flip
anywhere on the way, and twice as long each time that it does so again. And right after it did so it is not asked at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Quarantine"]

_FIRST = 64  # the part of the longest time that the first one takes
_REST = 256  # the part of it for which nobody asks
_GOOD = 100  # chunks after which the past is forgotten


@dataclass(slots=True)
class _Record:
    offences: int = 0
    until: float = float("-inf")
    rest: float = float("-inf")
    reason: str = ""
    good: int = 0


class Quarantine:
    """Sources that are left alone, by name. Shared by whoever asks sources and whoever checks what they send.

    Args:
        longest: Seconds.
        clock: Seconds that only grow.
    """

    def __init__(self, longest: float = 60.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest = longest
        self._clock = clock
        self._records: dict[str, _Record] = {}

    def put(self, name: str, reason: str) -> None:
        """The source is left alone from now on. What it had under way when it was put there counts once."""
        record = self._records.setdefault(name, _Record())
        now = self._clock()
        if now < record.rest:
            return
        record.offences += 1
        record.rest = now + self._longest / _REST
        record.until = now + min(self._longest, self._longest / _FIRST * 2 ** min(record.offences - 1, 32))
        record.reason, record.good = reason, 0

    def good(self, name: str) -> None:
        """It sent a chunk that was right."""
        record = self._records.get(name)
        if record is not None:
            record.good += 1
            if record.good >= _GOOD:
                del self._records[name]

    def why(self, name: str) -> str | None:
        """Why the source is left to the last now, for people; None: it is not."""
        record = self._records.get(name)
        left = record.until - self._clock() if record is not None else 0.0
        return f"{record.reason}; left alone for {left:.1f} s more" if record is not None and left > 0 else None

    def rests(self, name: str) -> bool:
        """Whether the source is not to be asked at all."""
        record = self._records.get(name)
        return record is not None and self._clock() < record.rest

    def names(self) -> dict[str, str]:
        """The sources that are left alone now, and why."""
        return {name: why for name in self._records if (why := self.why(name)) is not None}
