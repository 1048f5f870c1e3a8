"""Settings of the store."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["StoreSettings"]


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where and how layers and root filesystems are kept on this host."""

    backing: Literal["auto", "native", "loop"] = "auto"
    """``native``: the filesystem of the state directory as it is, reflinking or not. ``loop``: an XFS in a sparse file,
    mounted as the store (root only). ``auto``: native where that reflinks, else loop where that can be had, else native."""
    loop_size: int = 0
    """Bytes of the loop-mounted XFS when it is made; sparse, so only what is used is taken. 0: as much as is free."""
    size_limit: int = 0
    """Bytes that layers and root filesystems may take; the least recently used that no machine uses go first. 0: no limit."""
    reserve: int = 64 << 20
    """Bytes of free disk that conversions leave alone: they stop with an error before the disk is full."""
