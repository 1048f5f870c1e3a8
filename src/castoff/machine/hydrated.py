"""The root filesystems that machines run on while their data comes in: they are in no store, but people ask how far they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from castoff.hydrate.record import PRESENT, STATE
from castoff.store.machines import machine_rootfs
from castoff.store.rootfs import RootfsName
from castoff.store.usage import MachineUsage, RootfsUsage, Usage

__all__ = ["hydrating"]


def hydrating(machines: Path, usage: Usage) -> tuple[RootfsUsage, ...]:
    """One for each rootfs, by the name that it will have in the store; of several machines the one that lacks most counts.

    Args:
        machines: The directory of all machines.
        usage: The store's, for what they take on disk.
    """
    taken = {machine.id: machine for machine in usage.machines}
    found: dict[str, RootfsUsage] = {}
    for directory, record in machine_rootfs(machines):
        if RootfsName.parse(record.state.get("rootfs", "")) is None or directory.name.startswith("."):
            continue
        try:
            one = _rootfs(directory, record.provider, record.layers, record.state, taken.get(directory.name))
        except FileNotFoundError:
            continue  # removed meanwhile
        other = found.get(one.name)
        found[one.name] = one if other is None else _joined(other, one)
    return tuple(found.values())


def _rootfs(
    directory: Path, provider: str, layers: tuple[str, ...], state: Mapping[str, str], taken: MachineUsage | None
) -> RootfsUsage:
    made = (directory / "rootfs.json").stat().st_mtime
    return RootfsUsage(
        name=state["rootfs"],
        provider=provider,
        reference=state.get("reference", ""),
        image=state.get("image", ""),
        size=int(state["rootfs"].rpartition("-")[2]),
        created=made,
        last_used=made,
        layers=layers,
        allocated=taken.allocated if taken else 0,
        own=taken.own if taken else 0,
        machines=(directory.name,),
        hydrated=_part(directory),
    )


def _part(directory: Path) -> float:
    """How much of a machine's data is here; the states are gone when all of it is."""
    try:
        states = (directory / STATE).read_bytes()
    except FileNotFoundError:
        return 1.0
    return states.count(PRESENT) / len(states) if states else 1.0


def _joined(one: RootfsUsage, other: RootfsUsage) -> RootfsUsage:
    return replace(
        one,
        last_used=max(one.last_used, other.last_used),
        created=min(one.created, other.created),
        allocated=one.allocated + other.allocated,
        own=one.own + other.own,
        machines=(*one.machines, *other.machines),
        hydrated=min(one.hydrated, other.hydrated),
    )
