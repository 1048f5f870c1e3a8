"""A name for every request, in its answer and in the log."""

from __future__ import annotations

import secrets
import time

__all__ = ["request_id"]

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def request_id(region: str) -> str:
    """A new one, in the form of Fly's: a ULID and the region that answered."""
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5)) + f"-{region}"
