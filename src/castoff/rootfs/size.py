"""How large a root filesystem is for which nobody asked a size."""

from __future__ import annotations

from castoff.rootfs.settings import RootfsSettings

__all__ = ["default_size"]

_MAX_SIZE = 16 << 40


def default_size(settings: RootfsSettings, used: int) -> int:
    """Bytes of the rootfs of an image whose segments have ``used`` bytes: the setting, doubled until half of it is free."""
    size = settings.size
    while size < 2 * used and size < _MAX_SIZE:
        size *= 2
    return min(size, _MAX_SIZE)
