"""What nobody knows any more is removed, at the agent's start and every minute: machines on disk without a row, logs without
a machine, and what processes left in the store that were killed, earlier agents above all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from castoff.agent.launch.logs import Logs
from castoff.errors import CastoffError, Conflict
from castoff.lifecycle.launcher import Launcher
from castoff.lifecycle.machines import Machines
from castoff.lifecycle.states import State

__all__ = ["Reconciled", "reconcile", "reconcile_forever", "refuse_unknown"]

_EVERY: Final = 60.0


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What was removed."""

    machines: int
    logs: int
    leftovers: int


async def refuse_unknown(machines: Machines, launcher: Launcher) -> None:
    """Guards against a database that was lost, or is an old backup: a machine's row is written before anything else of it, and
    outlives it, so no crash leaves a machine without one. Whoever runs without a row may be somebody's only copy.

    Raises:
        Conflict: There are such machines.
    """
    known = {machine.id for machine in machines.list(include_deleted=True)}
    unknown = [machine for machine in await launcher.machines() if machine not in known]
    if unknown:
        raise Conflict(
            f"{len(unknown)} machines are on this host that castoff.db does not know: {', '.join(unknown[:5])}",
            hint="was it lost, or is it an old backup? Put the right one there; or end and remove them with --discard-unknown",
        )


async def reconcile(
    machines: Machines, launcher: Launcher, logs: Logs, sweep: Callable[[], Awaitable[int]], notice: Callable[[str], None]
) -> Reconciled:
    """Removes what is left of machines that are not, or are destroyed. What cannot be is told of, and tried again.

    Args:
        machines: The machines that there are.
        launcher: Knows which are on this host.
        logs: Theirs.
        sweep: Removes what other processes left, and counts it: Host.sweep.
        notice: Called with a line for people.
    """
    on_disk, logged = await launcher.machines(), await asyncio.to_thread(logs.machines)
    known = {machine.id: machine.state for machine in machines.list(include_deleted=True)}  # after: what is new is known
    removed = 0
    for machine in on_disk:
        if known.get(machine, State.DESTROYED) != State.DESTROYED:
            continue
        try:
            await launcher.discard(machine)
            removed += 1
        except CastoffError as error:
            notice(f"machine {machine} is nobody's and cannot be removed: {error}")
    stale = [name for name in logged if name not in known]
    for name in stale:
        await asyncio.to_thread(logs.remove, name)
    return Reconciled(removed, len(stale), await sweep())


async def reconcile_forever(
    machines: Machines, launcher: Launcher, logs: Logs, sweep: Callable[[], Awaitable[int]], notice: Callable[[str], None]
) -> None:
    """Does so every minute."""
    while True:
        try:
            found = await reconcile(machines, launcher, logs, sweep, notice)
            if found != Reconciled(0, 0, 0):
                what = f"{found.machines} machines, {found.logs} logs, {found.leftovers} leftovers of killed processes"
                notice(f"removed what was left: {what}")
        except (CastoffError, OSError) as error:  # a disk that refuses now may not in a minute
            notice(f"what is left cannot be looked for: {error}")
        await asyncio.sleep(_EVERY)
