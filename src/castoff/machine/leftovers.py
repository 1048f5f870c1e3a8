"""What machines leave whose process is gone: killed, crashed, or lost with the host.

A machine that ``castoff run`` made belongs to that process. When it is gone the VMM, what the rootfs' provider holds for
the machine, and the directory are nobody's, and whoever starts next gives them back. Machines to be kept keep their
directory, and their record tells that they ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from castoff.errors import CastoffError
from castoff.machine.model import MachineRecord, MachineState
from castoff.machine.records import MachineRecords
from castoff.machine.removal import end_machine, remove_machine
from castoff.rootfs.context import ProviderContext
from castoff.timeline import step
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
        try:
            removed += await asyncio.to_thread(records.sweep_debris)
        except CastoffError as error:
            notice(f"what is left of a machine cannot be deleted: {error}")
    return removed


def _orphans(records: MachineRecords) -> list[MachineRecord]:
    return [
        record
        for record in records
        if not record.agent and not record.owner.alive() and not (record.keep and record.state == MachineState.EXITED)
    ]
