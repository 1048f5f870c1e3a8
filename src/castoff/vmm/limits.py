"""A VMM's way into its control group: made before it, entered before its program is executed, removed after it.

The process waits at a gate (castoff.vmm.process) until it has been moved. So nothing of a machine runs, and no memory is
charged, outside of its limits; and a castoff that is killed meanwhile leaves none that waits for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from castoff.errors import CastoffError, Unavailable, Unsupported
from castoff.store.builds import uninterrupted
from castoff.timeline import step
from castoff.vmm.cgroups import Group, Limits, Tree, Usage, find_tree
from castoff.vmm.process import MonitorProcess
from castoff.vmm.settings import LimitSettings
from castoff.vmm.vmm import MachineSpec

__all__ = [
    "Entrance",
    "all_usage",
    "entrance",
    "group_of",
    "leave",
    "machine_limits",
    "missing_limits",
    "open_tree",
    "state_of",
    "sweep_groups",
    "try_limits",
    "why_killed",
]


def machine_limits(settings: LimitSettings, *, cpus: int, memory: int, emulated: bool) -> Limits:
    """What the VMM of a machine may take.

    Args:
        settings: What it gets on top of its guest.
        cpus: The guest's.
        memory: The guest's, in bytes.
        emulated: Whether its code is translated, which takes memory too.
    """
    return Limits(
        cpus=cpus + settings.cpus,
        weight=min(10_000, 100 * cpus),
        memory=memory + settings.memory + (settings.translation if emulated else 0),
        swap=settings.swap,
        pids=settings.pids + cpus,
    )


def open_tree(settings: LimitSettings, machines: Path) -> Tree:
    """Where the groups of a state directory's machines are.

    Args:
        settings: Of limits.
        machines: The directory of their records.

    Raises:
        Unsupported: There are none on this host, or none are wanted.
    """
    if settings.mode == "off":
        raise Unsupported("vmm.limits.mode is off")
    tree = find_tree(machines, parent=settings.parent)
    if settings.mode == "require" and tree.missing:
        raise Unsupported(f"this host's control groups have no {', '.join(tree.missing)}")
    return tree


def try_limits(settings: LimitSettings, machines: Path) -> Tree:
    """Makes a group with a limit of each kind, and removes it: where the groups are in which that works. Blocks.

    Args:
        settings: Of limits.
        machines: The directory of machines' records.

    Raises:
        Unsupported: It does not work.
        Unavailable: The group cannot be removed.
    """
    tree = open_tree(settings, machines)
    group = tree.make("trial")
    try:
        group.set_limits(machine_limits(settings, cpus=1, memory=1 << 30, emulated=True))
    except OSError as error:
        raise Unsupported(f"{error.filename}: {error.strerror}", hint="see docs/operations.md") from error
    finally:
        group.remove()
    return tree


def missing_limits(settings: LimitSettings, machines: Path) -> str:
    """To what this host cannot hold a VMM, for people; empty: it can, or shall not. Blocks.

    Args:
        settings: Of limits.
        machines: The directory of machines' records.
    """
    if settings.mode == "off":
        return ""
    try:
        missing = try_limits(settings, machines).missing
    except CastoffError as error:
        kept = (
            "every start is refused" if settings.mode == "require" else "machines run without limits of CPU, memory and processes"
        )
        return f"{kept}: {error}"
    return f"machines run without limits of {', '.join(missing)}: this host's control groups have none" if missing else ""


class Entrance:
    """What a VMM's start needs of its group.

    Attributes:
        group: The group; None: it starts without limits.
        gate: The descriptor that the process waits at; None: it need not.
    """

    def __init__(self, group: Group | None, *, required: bool) -> None:
        self.group = group
        self.gate: int | None = None
        self._opens = -1
        self._required = required
        if group is not None:
            self.gate, self._opens = os.pipe2(os.O_CLOEXEC)

    async def admit(self, process: MonitorProcess) -> None:
        """Moves the process into its group and lets it go on.

        Raises:
            Unavailable: It cannot be moved, and limits are required.
        """
        if self.group is None:
            return
        try:
            await uninterrupted(self.group.add, process.pid)
        except OSError as error:
            if self._required:
                raise Unavailable(f"process {process.pid} cannot be given its limits: {error.strerror}") from error
            await asyncio.to_thread(self._without)
        with contextlib.suppress(BrokenPipeError):  # it has ended; whoever waits for it tells why
            os.write(self._opens, b"\n")

    def close(self) -> None:
        """Closes the gate; a process that still waits there ends."""
        for descriptor in (self.gate, self._opens):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        self.gate, self._opens = None, -1

    def _without(self) -> None:
        group, self.group = self.group, None
        if group is not None:
            with contextlib.suppress(CastoffError):
                group.remove()


@contextlib.asynccontextmanager
async def entrance(spec: MachineSpec, settings: LimitSettings, *, emulated: bool) -> AsyncIterator[Entrance]:
    """The way into a new group for the block, in which the VMM is started; where that fails the group is removed.

    Args:
        spec: The machine.
        settings: Of limits.
        emulated: See :func:`machine_limits`.

    Raises:
        Unsupported: Limits are required, and this host has none.
    """
    required = settings.mode == "require"
    limits = machine_limits(settings, cpus=spec.cpus, memory=spec.memory, emulated=emulated)
    group: Group | None = None
    with step("vmm.limits", machine=spec.id) as current:
        try:
            group = await asyncio.to_thread(_make, settings, spec, limits)
        except Unsupported as error:
            if required:
                raise
            current.attributes["without"] = error.what
    door = Entrance(group, required=required)
    try:
        yield door
    except BaseException:
        door.close()
        if group is not None:
            with contextlib.suppress(CastoffError):
                await uninterrupted(group.remove)
        raise
    finally:
        door.close()


def _make(settings: LimitSettings, spec: MachineSpec, limits: Limits) -> Group:
    group = open_tree(settings, spec.directory.parent).make(spec.id)
    try:
        group.set_limits(limits)
    except OSError as error:
        with contextlib.suppress(CastoffError):
            group.remove()
        raise Unsupported(f"control group {error.filename} refuses a limit: {error.strerror}") from error
    return group


async def leave(group: Group | None) -> None:
    """Removes a group when its VMM has ended. Where it cannot be now, a sweep does it (castoff.machine.leftovers)."""
    if group is not None:
        with contextlib.suppress(Unavailable):
            await uninterrupted(group.remove)


def state_of(group: Group | None) -> dict[str, Any]:
    """What a VMM's state tells of its group."""
    return {} if group is None else {"cgroup": msgspec.to_builtins(group)}


def group_of(state: Mapping[str, Any]) -> Group | None:
    """The group that a VMM's state tells of (``VmmHandle.state``); None: it has none."""
    try:
        return msgspec.convert(state["cgroup"], Group) if state.get("cgroup") else None
    except msgspec.ValidationError:
        return None


def why_killed(group: Group | None) -> str:
    """How the host's memory ended a VMM, for people; empty: it did not."""
    kind = "" if group is None else group.killed_for()
    if group is None or not kind:
        return ""
    if kind == "host":
        return "the host ran out of memory and killed it"
    limit = group.memory_limit()
    return "the host's limit killed it: its VMM took more memory than" + (f" {limit >> 20} MiB" if limit > 0 else " it may")


def end_groups(machine_id: str, machines: Path, settings: LimitSettings) -> None:
    """Removes all groups of a machine, with what is in them: nobody wrote down which one it has.

    Raises:
        Unavailable: What is in one does not die.
    """
    with contextlib.suppress(Unsupported):
        for group in open_tree(settings, machines).groups():
            if group.name.rpartition("-")[0] == machine_id:
                group.remove()


def sweep_groups(found: list[Group], wanted: set[str]) -> int:
    """Removes groups that no machine's record names, with what is in them.

    Args:
        found: The groups that there were.
        wanted: Names of groups that records name, and ids of machines that are just being made; gathered later than ``found``.

    Returns:
        How many were removed.

    Raises:
        Unavailable: What is in one does not die.
    """
    stale = [group for group in found if group.name not in wanted and group.name.rpartition("-")[0] not in wanted]
    for group in stale:
        group.remove()
    return len(stale)


def all_usage(settings: LimitSettings, machines: Path) -> Usage | None:
    """What all VMMs of a state directory take together, as the host counts it; None: it does not, or there are none."""
    try:
        group = open_tree(settings, machines).whole()
    except Unsupported:
        return None
    return group.usage() if group.exists() else None
