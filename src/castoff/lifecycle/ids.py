"""ULIDs: 26 characters that sort by when they were made (https://github.com/ulid/spec)."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Ulids", "milliseconds"]

_DIGITS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM_BITS: Final = 80
_PAIRS: Final = [first + second for first in _DIGITS for second in _DIGITS]
_SHIFTS: Final = range(120, -1, -10)


def milliseconds() -> int:
    """Unix time."""
    return time.time_ns() // 1_000_000


class Ulids:
    """Makes ULIDs, each greater than the one before, also where the clock goes back.

    They name things and guard nothing, so their random bits come of a generator that the kernel seeds once: a create takes
    several, and each would be a system call.

    Args:
        clock: Unix milliseconds.
    """

    def __init__(self, clock: Callable[[], int] = milliseconds) -> None:
        self._clock = clock
        self._last = 0
        self._bits = random.Random(os.urandom(32)).getrandbits

    def next(self) -> str:
        """The next one."""
        fresh = self._clock() << _RANDOM_BITS | self._bits(_RANDOM_BITS - 1)
        last = self._last = max(fresh, self._last + 1)
        return "".join([_PAIRS[last >> shift & 1023] for shift in _SHIFTS])

    def after(self, known: str) -> None:
        """From now on only greater ones than ``known``, one of an earlier process."""
        number = 0
        for letter in known:
            number = number << 5 | _DIGITS.index(letter)
        self._last = max(self._last, number)
