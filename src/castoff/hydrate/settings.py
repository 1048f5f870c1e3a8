"""Settings of lazy root filesystems: how their chunks come in."""

from __future__ import annotations

import msgspec

__all__ = ["HydrateSettings"]


class HydrateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How chunks come in. A machine keeps what held when it was created, in its ``lazy.json``."""

    give_up: float = 120.0
    """Seconds that a guest's read waits for sources that fail; then it ends in EIO, and a later read tries anew. A full disk
    makes reads wait without end: it is for the operator to make room."""
    background: bool = True
    """Whether the rest is fetched when the machine is ready, so that its root becomes a plain file."""
    background_after: float = 60.0
    """Seconds after the attach from which the background fetches although nobody said that the machine is ready."""
    background_limit: int = 0
    """Bytes of packs a second that the background fetches at most; 0: no limit but that it yields."""
    read_ahead: int = 8
    """Most chunks after a miss that are fetched too, where the round trip to the source costs more than their bytes; 0: none."""
