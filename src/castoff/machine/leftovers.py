"""What machines leave whose process is gone: killed, crashed, or lost with the host.

A machine that ``castoff run`` made belongs to that process. When it is gone the VMM, what the rootfs' provider holds for
the machine, and the directory are nobody's, and whoever starts next gives them back. Machines to be kept keep their
directory, and their record tells that they ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from castoff.errors import CastoffError, Unsupported
from castoff.machine.model import MachineRecord, MachineState
from castoff.machine.records import MachineRecords
from castoff.machine.removal import end_machine, remove_machine
from castoff.rootfs.context import ProviderContext
from castoff.timeline import step
from castoff.vmm.limits import group_of, open_tree, sweep_groups
from castoff.vmm.settings import VmmSettings

__all__ = ["sweep"]


async def sweep(
    records: MachineRecords, settings: VmmSettings, providers: ProviderContext, notice: Callable[[str], None] = lambda line: None
) -> int:
    """Ends and removes every machine whose process is gone. One that cannot be is told of and tried again next time.

    Args:
        records: The machines of this host.
        settings: Of the VMM drivers.
        providers: Of the rootfs' providers.
        notice: Told of failures: they must not keep a new machine from starting.

    Returns:
        How many were removed, half-made and half-deleted ones too.
    """
    removed = 0
    with step("machine.leftovers"):
        for record in await asyncio.to_thread(_orphans, records):
            try:
                await end_machine(record, records, settings)
                if not record.keep:
                    await remove_machine(record, records, providers)
                    removed += 1
            except CastoffError as error:
                notice(f"machine {record.id} was left behind and cannot be removed: {error}")
        for clean in (records.sweep_debris, partial(_sweep_groups, records, settings)):
            try:
                removed += await asyncio.to_thread(clean)
            except CastoffError as error:
                notice(f"what is left of a machine cannot be deleted: {error}")
    return removed


def _sweep_groups(records: MachineRecords, settings: VmmSettings) -> int:
    """Control groups that no machine has: left by processes that were killed, and by VMMs that ended while nobody looked."""
    try:
        found = open_tree(settings.limits, records.directory).groups()
    except Unsupported:
        return 0
    if not found:
        return 0
    wanted = set[str]()  # after they were found: a machine's record is there before its group
    for directory, _ in records.broken():
        wanted.add(directory.name)
    for record in records:
        if group := group_of(record.vmm_state):
            wanted.add(group.name)
        elif record.state != MachineState.EXITED:
            wanted.add(record.id)
    return sweep_groups(found, wanted)


def _orphans(records: MachineRecords) -> list[MachineRecord]:
    return [
        record
        for record in records
        if not record.agent and not record.owner.alive() and not (record.keep and record.state == MachineState.EXITED)
    ]
