"""What the store holds, what it takes on disk, and who needs it.

With reflinks a block may belong to a segment, to several root filesystems and to many machines, so the bytes that files
say they take (``st_blocks``) add up to more than the disk has. The truth is in the extent maps: what is taken is the union
of all files' physical extents, and a file's *own* bytes are those that no other file here has. Where the filesystem keeps
no such map nothing is shared, and ``st_blocks`` is the truth.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from castoff.store.extents import extents
from castoff.store.have import part_here
from castoff.store.layers import layer_directories
from castoff.store.machines import MachineRootfs, machine_rootfs
from castoff.store.rootfs import read_record, rootfs_names

__all__ = ["LayerUsage", "MachineUsage", "RootfsUsage", "Shares", "Usage", "shares_of", "store_usage"]


@dataclass(frozen=True, slots=True)
class LayerUsage:
    """A layer. Bytes are those on disk."""

    diff_id: str
    allocated: int
    last_used: float
    rootfs: tuple[str, ...]
    """Names of the root filesystems that share its segment."""
    machines: tuple[str, ...]
    hydrated: float = 1.0
    """How much of it is here, 0 to 1: less than 1 while it comes in."""


@dataclass(frozen=True, slots=True)
class RootfsUsage:
    """A rootfs: ``allocated`` is what it would take alone, ``own`` what would be free without it (its layers stay)."""

    name: str
    provider: str
    reference: str
    image: str
    size: int
    created: float
    last_used: float
    layers: tuple[str, ...]
    allocated: int
    own: int
    machines: tuple[str, ...]
    hydrated: float = 1.0
    """How much of its data is here, 0 to 1: less than 1 of those that machines run on while they come in
    (castoff.machine.hydrated)."""


@dataclass(frozen=True, slots=True)
class MachineUsage:
    """A machine's directory: ``own`` is what it alone has."""

    id: str
    provider: str
    rootfs: str
    allocated: int
    own: int


@dataclass(frozen=True, slots=True)
class Usage:
    """The whole store."""

    layers: tuple[LayerUsage, ...]
    rootfs: tuple[RootfsUsage, ...]
    machines: tuple[MachineUsage, ...]
    cached: int
    """Bytes on disk that layers and root filesystems take together, what they share counted once."""
    total: int
    """Bytes on disk of all that the store holds, likewise."""
    free: int
    limit: int
    """``store.size_limit``; 0: none."""


@dataclass(slots=True)
class Shares:
    """Physical ranges and whose they are, to be counted once or by owner."""

    ranges: list[tuple[int, int, str]] = field(default_factory=list)
    allocated: dict[str, int] = field(default_factory=dict)
    unmapped: dict[str, int] = field(default_factory=dict)

    def add(self, owner: str, files: Iterable[Path]) -> None:
        """Adds files to what ``owner`` has; one that vanished takes nothing."""
        self.allocated.setdefault(owner, 0)
        for path in files:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError:
                continue
            try:
                self._add(owner, descriptor)
            finally:
                os.close(descriptor)

    def remove(self, owner: str) -> None:
        """Forgets what ``owner`` has."""
        self.ranges = [one for one in self.ranges if one[2] != owner]
        self.allocated.pop(owner, None)
        self.unmapped.pop(owner, None)

    def _add(self, owner: str, descriptor: int) -> None:
        taken = os.fstat(descriptor).st_blocks * 512
        self.allocated[owner] += taken
        found = extents(descriptor)
        if found is None:
            self.unmapped[owner] = self.unmapped.get(owner, 0) + taken
        else:
            self.ranges.extend((extent.physical, extent.physical + extent.length, owner) for extent in found)

    def count(self) -> tuple[int, dict[str, int]]:
        """(bytes of the union, owner -> bytes that are its alone)."""
        total = sum(self.unmapped.values())
        own = {owner: self.unmapped.get(owner, 0) for owner in self.allocated}
        edges = sorted(
            [(start, 1, owner) for start, _, owner in self.ranges] + [(end, -1, owner) for _, end, owner in self.ranges]
        )
        owners: dict[str, int] = {}
        last = 0
        for place, change, owner in edges:
            if owners:
                total += place - last
                if len(owners) == 1:
                    own[next(iter(owners))] += place - last
            last = place
            owners[owner] = owners.get(owner, 0) + change
            if owners[owner] == 0:
                del owners[owner]
        return total, own


def store_usage(root: Path, *, free: int, limit: int) -> Usage:
    """Looks at everything in the store; takes milliseconds per thousand extents. Blocks: call it in a thread."""
    machines = {path.name: machine for path, machine in machine_rootfs(root / "machines")}
    names = [str(name) for name in rootfs_names(root)]
    cached = shares_of(root, ("layers", "rootfs"))
    shares = shares_of(root, tuple(entry.name for entry in sorted(root.iterdir()) if entry.is_dir()))
    total, own = shares.count()
    rootfs = tuple(_rootfs(root / "rootfs" / name, shares, own, machines) for name in names)
    return Usage(
        layers=tuple(_layer(path, shares, rootfs, machines) for path in layer_directories(root)),
        rootfs=rootfs,
        machines=tuple(
            MachineUsage(name, one.provider, one.rootfs, shares.allocated[f"machines/{name}"], own[f"machines/{name}"])
            for name, one in machines.items()
        ),
        cached=cached.count()[0],
        total=total,
        free=free,
        limit=limit,
    )


def shares_of(root: Path, areas: Iterable[str]) -> Shares:
    """What each entry of the areas has, under ``area/name``."""
    shares = Shares()
    for area in areas:
        for entry in sorted((root / area).iterdir()):
            shares.add(f"{area}/{entry.name}", [entry] if entry.is_file() else entry.rglob("*"))
    return shares


def _rootfs(path: Path, shares: Shares, own: Mapping[str, int], machines: Mapping[str, MachineRootfs]) -> RootfsUsage:
    record = read_record(path)
    return RootfsUsage(
        name=path.name,
        provider=record.provider,
        reference=record.reference,
        image=record.image,
        size=int(path.name.rpartition("-")[2]),
        created=record.created,
        last_used=path.stat().st_mtime,
        layers=record.layers,
        allocated=shares.allocated[f"rootfs/{path.name}"],
        own=own[f"rootfs/{path.name}"],
        machines=tuple(name for name, machine in machines.items() if machine.rootfs == path.name),
    )


def _layer(path: Path, shares: Shares, rootfs: Iterable[RootfsUsage], machines: Mapping[str, MachineRootfs]) -> LayerUsage:
    diff_id = f"sha256:{path.name}"
    return LayerUsage(
        diff_id=diff_id,
        allocated=shares.allocated[f"layers/{path.name}"],
        last_used=path.stat().st_mtime,
        rootfs=tuple(one.name for one in rootfs if diff_id in one.layers),
        machines=tuple(name for name, machine in machines.items() if diff_id in machine.layers),
        hydrated=part_here(path / "have"),
    )
