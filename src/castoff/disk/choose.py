"""Which clone a machine gets: the one asked for, or the best that the host can do."""

from __future__ import annotations

from pathlib import Path

from castoff.disk.clone import CloneKind, CloneStrategy, Drive
from castoff.errors import Unsupported
from castoff.store.store import Store

__all__ = ["BestClone", "clone_strategy"]


def clone_strategy(kind: CloneKind | None, store: Store) -> CloneStrategy:
    """The strategy of ``kind``; None: :class:`BestClone`. Imports only the one that it returns."""
    if kind is None:
        return BestClone(store)
    if kind is CloneKind.REFLINK:
        from castoff.disk.reflink import ReflinkClone

        return ReflinkClone()
    if kind is CloneKind.OVERLAY:
        from castoff.disk.overlay import OverlayClone

        return OverlayClone(store)
    from castoff.disk.copy import CopyClone

    return CopyClone(store)


class BestClone:
    """Reflink where that can be, else overlay: both cost milliseconds whatever the image's size.

    A reflink gives the machine a plain ext4 root, on which everything works (Docker inside the machine does not on an
    overlay: overlayfs does not stack on itself), so it comes first.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.kind = CloneKind.REFLINK if store.reflink else CloneKind.OVERLAY

    async def clone(self, rootfs: Path, directory: Path, *, size: int) -> list[Drive]:
        """See castoff.disk.clone."""
        if self._store.reflink:
            try:
                return await clone_strategy(CloneKind.REFLINK, self._store).clone(rootfs, directory, size=size)
            except Unsupported:  # a prepared rootfs on another filesystem than the store's
                pass
        return await clone_strategy(CloneKind.OVERLAY, self._store).clone(rootfs, directory, size=size)
