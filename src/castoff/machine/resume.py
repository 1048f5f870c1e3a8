"""A machine that was suspended goes on."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from castoff.errors import NotFound, Unsupported
from castoff.machine.drivers import open_vmm
from castoff.machine.hardware import specification
from castoff.machine.machine import Machine
from castoff.machine.model import MachineRecord, MachineState
from castoff.machine.records import MachineRecords
from castoff.machine.suspension import MEMORY, check_files, end_suspended, wake
from castoff.rootfs.context import ProviderContext
from castoff.store.builds import uninterrupted
from castoff.timeline import step
from castoff.vmm.channel import GuestChannel
from castoff.vmm.settings import VmmSettings
from castoff.vmm.vmm import SnapshotVmm, VmmHandle

__all__ = ["resume"]

_ANSWERS: Final = 30.0
"""Seconds in which a guest that goes on answers."""


async def resume(record: MachineRecord, *, settings: VmmSettings, records: MachineRecords, providers: ProviderContext) -> Machine:
    """The machine, whose guest goes on where it was suspended, with its clock set; what was kept of it is gone then.

    Args:
        record: It is suspended.
        settings: Of the VMM drivers.
        records: Where it is written down.
        providers: Whoever gave it its rootfs is among them.

    Raises:
        CastoffError: It cannot go on; no VMM of it runs then.
    """
    with step("machine.resume", machine=record.id):
        record, handle = await _restored(record, settings, records, providers)
        try:
            await uninterrupted(records.update, record)
            await wake(record, handle, records)
            channel = await _greeted(handle)
        except BaseException:
            await asyncio.shield(handle.kill())
            raise
    return Machine(record, records=records, providers=providers, handle=handle, channel=channel)


async def _restored(
    record: MachineRecord, settings: VmmSettings, records: MachineRecords, providers: ProviderContext
) -> tuple[MachineRecord, VmmHandle]:
    """A VMM with the guest in it, which stands still; and the record that must be written down before it runs."""
    kept, hardware = record.suspended, record.hardware
    if kept is None or hardware is None:
        raise NotFound("nothing of the machine's memory was kept")
    vmm = open_vmm(record.vmm, settings, providers.store.state)
    if not isinstance(vmm, SnapshotVmm):
        raise Unsupported(f"{record.vmm} cannot go on from a machine's memory")
    await end_suspended(record, records, settings)
    await asyncio.to_thread(check_files, kept, hardware)
    # A VMM that runs before it is written down is looked for in this state alone.
    resuming = msgspec.structs.replace(record, state=MachineState.RESUMING)
    await uninterrupted(records.update, resuming)
    directory = records.path(record.id)
    handle = await vmm.restore(specification(hardware, record.id, record.user, directory), directory / MEMORY, kept.snapshot)
    started = msgspec.structs.replace(record, state=MachineState.STARTED, vmm_state=handle.state(), suspended=None)
    return started, handle


async def _greeted(handle: VmmHandle) -> GuestChannel:
    """The guest's channel. Its clock is set before anything else; what was executed beside its command ends."""
    channel = await GuestChannel.connect(handle, _ANSWERS)
    try:
        await channel.set_clock()
        async with await GuestChannel.connect(handle, _ANSWERS, control=True):
            return channel  # a client's hello ends what its predecessor executed
    except BaseException:
        await channel.close()
        raise
