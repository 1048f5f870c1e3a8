"""Durations as the Machines API writes them: Go's strings, ``"1m30s"``, or numbers of nanoseconds."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Final

from castoff.errors import Invalid

__all__ = ["go_seconds", "seconds"]

_UNITS: Final = MappingProxyType({"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0})
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_LONGEST_TEXT: Final = 64
_LONGEST: Final = 366 * 86400.0


def go_seconds(text: str) -> float | None:
    """Seconds of Go's string for a duration; None where it is none (https://pkg.go.dev/time#ParseDuration, without a sign)."""
    if text == "0":
        return 0.0
    if len(text) > _LONGEST_TEXT or re.fullmatch(f"(?:{_PART.pattern})+", text) is None:
        return None
    return sum(float(amount) * _UNITS[unit] for amount, unit in _PART.findall(text))


def seconds(duration: str | int | float) -> float:
    """Seconds of a duration.

    Raises:
        Invalid: It is none, negative, or over a year.
    """
    found = go_seconds(duration) if isinstance(duration, str) else duration / 1e9
    if found is None:
        raise Invalid(f"{str(duration)[:60]!r} is not a duration", hint="write it as 10s or 1m30s")
    if not 0 <= found <= _LONGEST:
        raise Invalid(f"the duration {str(duration)[:60]!r} is not between 0 and a year")
    return found
