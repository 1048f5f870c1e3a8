"""Which sources are left alone, and for how long.

One that sent wrong bytes, or failed where another did not, is asked nothing for a while: first for a moment, since a bit may
flip anywhere on the way and it may be the only one that has the chunk, then twice as long each time that it does so again soon.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Quarantine"]

_FIRST = 256  # the part of the longest time that the first one takes
_GOOD = 16  # right chunks after which the past is forgotten


@dataclass(slots=True)
class _Record:
    offences: int = 0
    until: float = float("-inf")
    reason: str = ""
    good: int = 0


class Quarantine:
    """Sources that are left alone, by name. Shared by whoever asks sources and whoever checks what they send.

    Args:
        longest: Seconds.
        clock: Seconds that only grow.

    Attributes:
        told: Called with the name of each that is put there.
    """

    def __init__(self, longest: float = 60.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest = longest
        self._clock = clock
        self._records: dict[str, _Record] = {}
        self.told: Callable[[str], None] = lambda name: None

    def put(self, name: str, reason: str) -> None:
        """The source is left alone from now on. What it had under way when it was put there counts once."""
        record = self._records.setdefault(name, _Record())
        now = self._clock()
        if now < record.until:
            return
        record.offences += 1
        record.until = now + min(self._longest, self._longest / _FIRST * 2 ** min(record.offences - 1, 32))
        record.reason, record.good = reason, 0
        self.told(name)

    def good(self, name: str) -> None:
        """It sent a chunk that was right."""
        record = self._records.get(name)
        if record is not None:
            record.good += 1
            if record.good >= _GOOD and self._clock() >= record.until:
                del self._records[name]

    def why(self, name: str) -> str | None:
        """Why the source is left alone now, for people; None: it is not."""
        record = self._records.get(name)
        left = record.until - self._clock() if record is not None else 0.0
        return f"{record.reason}; left alone for {left:.1f} s more" if record is not None and left > 0 else None

    def names(self) -> dict[str, str]:
        """The sources that are left alone now, and why."""
        return {name: why for name in self._records if (why := self.why(name)) is not None}
