"""The hours in which an order may work: ``01:00-05:00`` by the clock and in the time zone of each host."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Final

from castoff.errors import Invalid

__all__ = ["ALWAYS", "Window", "parse_window"]

_TEXT: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Window:
    """From ``start`` on, until before ``end``; past midnight where ``end`` is the earlier. The same twice: always."""

    start: time = time()
    end: time = time()

    def is_open(self, now: datetime) -> bool:
        """Whether it is open at a host's local time."""
        at = now.time()
        if self.start < self.end:
            return self.start <= at < self.end
        return self.start == self.end or at >= self.start or at < self.end

    def opens_in(self, now: datetime) -> float:
        """Seconds until it opens; 0: it is open. An hour wrong, at most, where clocks are put forward meanwhile: look again."""
        return 0.0 if self.is_open(now) else _until(now, self.start)

    def closes_in(self, now: datetime) -> float:
        """Seconds until it closes; 0: it is closed; infinite: it does not. As wrong as :meth:`opens_in`."""
        if self.start == self.end:
            return float("inf")
        return _until(now, self.end) if self.is_open(now) else 0.0

    def __str__(self) -> str:
        return "" if self.start == self.end else f"{self.start:%H:%M}-{self.end:%H:%M}"


ALWAYS: Final = Window()


def parse_window(text: str) -> Window:
    """Reads ``HH:MM-HH:MM``; an empty text is always.

    Raises:
        Invalid: It is something else, or begins when it ends.
    """
    if not text:
        return ALWAYS
    match = _TEXT.match(text)
    if match is None or text[:5] == text[6:]:
        raise Invalid(f"{text[:40]!r} are no hours", hint="FROM-TO, like 01:00-05:00; past midnight where TO is the earlier")
    hours = [int(part) for part in match.groups()]
    return Window(time(hours[0], hours[1]), time(hours[2], hours[3]))


def _until(now: datetime, at: time) -> float:
    """Seconds until a clock next shows ``at``."""
    then = now.replace(hour=at.hour, minute=at.minute, second=0, microsecond=0)
    return ((then if then > now else then + timedelta(days=1)) - now).total_seconds()
