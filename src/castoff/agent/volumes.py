"""Volumes on a host that has none yet: every list is empty, and whatever wants one is told so."""

from __future__ import annotations

from typing import Any, NoReturn

from castoff.errors import NotFound, Unsupported

__all__ = ["NoVolumes"]


class NoVolumes:
    """Implements castoff.api.ports.Volumes and castoff.lifecycle.launches.VolumeFiles."""

    def list(self, app: str | None = None) -> list[Any]:
        """None."""
        return []

    def get(self, app: str | None, id: str) -> NoReturn:
        """There is none.

        Raises:
            NotFound: Always.
        """
        raise NotFound(f"volume not found: {id[:80]!r}", hint="this host has no volumes")

    async def create(self, app: str, name: str, **wanted: Any) -> NoReturn:
        """Cannot be.

        Raises:
            Unsupported: Always.
        """
        raise Unsupported("volumes are not served yet", hint="rootfs.persist = always keeps a machine's own disk")

    async def update(self, app: str, id: str, **wanted: Any) -> NoReturn:
        """See :meth:`get`."""
        self.get(app, id)

    async def delete(self, app: str, id: str) -> NoReturn:
        """See :meth:`get`."""
        self.get(app, id)

    async def extend(self, app: str, id: str, size: int) -> NoReturn:
        """See :meth:`get`."""
        self.get(app, id)

    def snapshots(self, app: str, id: str) -> NoReturn:
        """See :meth:`get`."""
        self.get(app, id)

    async def snapshot(self, app: str, id: str) -> NoReturn:
        """See :meth:`get`."""
        self.get(app, id)

    async def attach(self, app: str, volume: str, machine: str) -> NoReturn:
        """See :meth:`get`."""
        self.get(app, volume)

    async def detach(self, machine: str) -> None:
        """Nothing is attached."""
