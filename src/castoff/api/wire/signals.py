"""Signals as clients name them: by name, with or without SIG, or by number."""

from __future__ import annotations

import signal

from castoff.errors import Invalid

__all__ = ["parse_signal"]


def parse_signal(value: str | int | None) -> int | None:
    """A signal's number; None where none is named.

    Raises:
        Invalid: There is no such signal.
    """
    if value is None or value == "":
        return None
    text = str(value).strip().upper()
    if text.isascii() and text.isdigit() and len(text) < 4:
        number = int(text)
    else:
        name = text if text.startswith("SIG") else f"SIG{text}"
        number = int(signal.Signals[name]) if name in signal.Signals.__members__ else 0
    if not 1 <= number <= 64:
        raise Invalid(f"signal: there is no signal {str(value)[:32]!r}", hint="say SIGTERM, say, or 15")
    return number
