"""Durations as the Machines API writes them: Go's strings, ``"1m30s"``, or numbers of nanoseconds."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Final

from castoff.errors import Invalid

__all__ = ["seconds"]

_UNITS: Final = MappingProxyType({"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0})
_PART: Final = re.compile(r"(\d{1,12}(?:\.\d{0,9})?|\.\d{1,9})(ns|us|µs|ms|s|m|h)")
_LONGEST: Final = 366 * 86400.0


def seconds(duration: str | int | float) -> float:
    """Seconds of a duration.

    Raises:
        Invalid: It is none, negative, or over a year.
    """
    if isinstance(duration, str):
        parts = _PART.findall(duration) if re.fullmatch(f"(?:{_PART.pattern})+|0", duration[:100]) else None
        if parts is None:
            raise Invalid(f"{duration[:60]!r} is not a duration", hint="write it as 10s or 1m30s")
        found = sum(float(amount) * _UNITS[unit] for amount, unit in parts)
    else:
        found = duration / 1e9
    if not 0 <= found <= _LONGEST:
        raise Invalid(f"the duration {str(duration)[:60]!r} is not between 0 and a year")
    return found
