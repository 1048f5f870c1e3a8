"""When and how long to wait before a request is tried again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime

from castoff.errors import CastoffError
from castoff.image.settings import ImageSettings

__all__ = ["Backoff", "parse_retry_after"]


class Backoff:
    """The tries of one piece of work: exponential back-off with full jitter.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: a random delay under a growing ceiling keeps
    many clients that failed together from coming back together.

    Args:
        settings: Ceilings and count.
        retries: Tries after the first, where it is not the settings'.
        chance: A random number in [0, 1).
    """

    def __init__(
        self, settings: ImageSettings, *, retries: int | None = None, chance: Callable[[], float] = random.random
    ) -> None:
        self._settings = settings
        self._retries = settings.retries if retries is None else retries
        self._chance = chance
        self.failures = 0

    def progressed(self) -> None:
        """The work went on well: the count starts anew."""
        self.failures = 0

    def delay(self) -> float:
        """Seconds to wait after the failures so far; random."""
        ceiling = min(self._settings.retry_delay_limit, self._settings.retry_delay * 2.0 ** min(self.failures - 1, 32))
        return ceiling * self._chance()

    async def wait(self, failure: CastoffError, retry_after: float | None = None) -> None:
        """Counts a failure and waits; raises ``failure`` itself once there were too many.

        Args:
            failure: What happened.
            retry_after: Seconds that the server asks for; waited as far as the settings allow.
        """
        self.failures += 1
        if self.failures > self._retries:
            raise failure
        delay = self.delay()
        if retry_after is not None:
            delay = min(max(delay, retry_after), self._settings.retry_delay_limit)
        await asyncio.sleep(delay)


def parse_retry_after(text: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110 10.2.3: seconds or a date); None: it says nothing readable."""
    if not text:
        return None
    text = text.strip()
    if text.isdecimal() and len(text) < 10:
        return float(text)
    from email.utils import parsedate_to_datetime

    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
