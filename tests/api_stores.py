"""Volumes without files, for tests of the API alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from castoff.errors import Conflict, Invalid, NotFound

__all__ = ["MemoryVolumes"]


@dataclass(frozen=True)
class MemoryVolume:
    """A volume."""

    id: str
    app: str
    name: str
    size: int
    state: str = "created"
    region: str = "local"
    fstype: str = "ext4"
    machine: str | None = None
    snapshot_retention: int = 5
    auto_backup: bool = True
    created: int = 1


@dataclass(frozen=True)
class MemorySnapshot:
    """A snapshot."""

    id: str
    size: int
    volume_size: int
    digest: str = "sha256:0"
    status: str = "created"
    retention_days: int = 5
    created: int = 1


@dataclass
class MemoryVolumes:
    """Implements castoff.api.ports.Volumes."""

    volumes: dict[str, MemoryVolume] = field(default_factory=dict)
    taken: dict[str, list[MemorySnapshot]] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def list(self, app: str | None = None) -> Sequence[MemoryVolume]:
        """See the port."""
        return [volume for volume in self.volumes.values() if app in (None, volume.app)]

    def get(self, app: str | None, id: str) -> MemoryVolume:
        """See the port."""
        found = self.volumes.get(id)
        if found is None or app not in (None, found.app):
            raise NotFound(f"volume {id[:60]!r} not found")
        return found

    async def create(
        self,
        app: str,
        name: str,
        *,
        size: int | None,
        fstype: str,
        snapshot: str | None,
        source: str | None,
        snapshot_retention: int,
        auto_backup: bool,
    ) -> MemoryVolume:
        """See the port."""
        if source is not None:
            self.get(app, source)
        made = MemoryVolume(f"vol_{next(self.numbers)}", app, name, size or 1024**3)
        return self._put(replace(made, fstype=fstype, snapshot_retention=snapshot_retention, auto_backup=auto_backup))

    def _put(self, volume: MemoryVolume) -> MemoryVolume:
        self.volumes[volume.id] = volume
        return volume

    async def update(self, app: str, id: str, *, snapshot_retention: int | None, auto_backup: bool | None) -> MemoryVolume:
        """See the port."""
        found = self.get(app, id)
        retention = found.snapshot_retention if snapshot_retention is None else snapshot_retention
        return self._put(
            replace(found, snapshot_retention=retention, auto_backup=found.auto_backup if auto_backup is None else auto_backup)
        )

    async def delete(self, app: str, id: str) -> MemoryVolume:
        """See the port."""
        return self.volumes.pop(self.get(app, id).id)

    async def extend(self, app: str, id: str, size: int) -> MemoryVolume:
        """See the port."""
        found = self.get(app, id)
        if size <= found.size:
            raise Invalid("size_gb: a volume only grows")
        return self._put(replace(found, size=size))

    def snapshots(self, app: str, id: str) -> Sequence[MemorySnapshot]:
        """See the port."""
        return self.taken.get(self.get(app, id).id, [])

    async def snapshot(self, app: str, id: str) -> MemorySnapshot:
        """See the port."""
        found = self.get(app, id)
        made = MemorySnapshot(f"vs_{next(self.numbers)}", found.size, found.size)
        self.taken.setdefault(id, []).append(made)
        return made

    async def attach(self, app: str, volume: str, machine: str) -> str:
        """See castoff.lifecycle.launches.VolumeFiles."""
        found = self.get(app, volume)
        if found.machine not in (None, machine):
            raise Conflict(f"volume {volume} is attached to another machine")
        self._put(replace(found, machine=machine))
        return f"/nowhere/{volume}"

    async def detach(self, machine: str) -> None:
        """See castoff.lifecycle.launches.VolumeFiles."""
        for found in self.list():
            if found.machine == machine:
                self._put(replace(found, machine=None))
