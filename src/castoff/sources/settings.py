"""Settings of how chunks are fetched."""

from __future__ import annotations

import msgspec

__all__ = ["SourceSettings"]


class SourceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How patiently, and over how many connections, chunks are fetched while machines run."""

    connections: int = 4
    """Requests that one fetch of many chunks has under way at a time."""
    timeout: float = 10.0
    """Seconds of silence after which a request counts as broken and is made again. Shorter than `image.read_timeout`, since
    a machine may be waiting."""
    retries: int = 3
    """Tries after the first, of one request; what still fails then fails for the fetch, and whoever asked tries again."""
    quarantine: float = 60.0
    """Seconds: the longest that a source which sent wrong bytes is left alone. The first time it is a 256th of it, and twice
    as long with each time after that; sixteen right chunks begin the count anew."""
