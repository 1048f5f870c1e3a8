"""Making room when the disk is full in the middle of everything."""

from __future__ import annotations

from typing import Final

from castoff.store.store import Store

__all__ = ["make_room"]

_STEP: Final = 1 << 30


async def make_room(store: Store) -> None:
    """Removes what no machine and no process needs, the least recently used first, until a GiB or so is free.

    Raises:
        CastoffError: The store is broken.
    """
    usage = await store.usage()
    await store.prune(limit=max(usage.cached - _STEP, 1))
