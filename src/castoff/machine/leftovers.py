"""What machines leave whose process is gone: killed, crashed, or lost with the host.

A machine that ``castoff run`` made belongs to that process. When it is gone the VMM, what the rootfs' provider holds for
the machine, and the directory are nobody's, and whoever starts next gives them back. Machines to be kept keep their
directory, and their record tells that they ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from castoff.errors import CastoffError
from castoff.machine.model import MachineRecord, MachineState
from castoff.machine.records import MachineRecords
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.release import release_machine
from castoff.timeline import step
from castoff.vmm.settings import VmmSettings

__all__ = ["end_machine", "remove_machine", "sweep"]


async def sweep(
    records: MachineRecords, settings: VmmSettings, providers: ProviderContext, notice: Callable[[str], None] = lambda line: None
) -> None:
    """Ends and removes every machine whose process is gone. One that cannot be is told of and tried again next time.

    Args:
        records: The machines of this host.
        settings: Of the VMM drivers.
        providers: Of the rootfs' providers.
        notice: Told of failures: they must not keep a new machine from starting.
    """
    with step("machine.leftovers"):
        for record in await asyncio.to_thread(_orphans, records):
            try:
                await end_machine(record, records, settings)
                if not record.keep:
                    await remove_machine(record, records, providers)
            except CastoffError as error:
                notice(f"machine {record.id} was left behind and cannot be removed: {error}")
        await asyncio.to_thread(records.sweep_debris)


def _orphans(records: MachineRecords) -> list[MachineRecord]:
    return [
        record for record in records if not record.owner.alive() and not (record.keep and record.state == MachineState.EXITED)
    ]


async def end_machine(record: MachineRecord, records: MachineRecords, settings: VmmSettings) -> None:
    """Kills a machine's VMM, where it still runs, and writes its end down. The command's exit code is lost with its owner."""
    directory = records.path(record.id)
    if record.vmm:
        from castoff.machine.drivers import open_vmm

        handle = await open_vmm(record.vmm, settings, directory).reattach(record.vmm_state)
        if handle is not None:
            await handle.kill()
    else:
        # Its owner died between the VMM's start and the record of it: look for a process that says it is this machine.
        for pid in _monitors(record.id, directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if record.keep:
        await asyncio.to_thread(records.update, msgspec.structs.replace(record, state=MachineState.EXITED))


async def remove_machine(record: MachineRecord, records: MachineRecords, providers: ProviderContext) -> None:
    """Gives back what an ended machine holds, and deletes its directory. Idempotent."""
    await release_machine(record.id, records.path(record.id), providers)
    await asyncio.to_thread(records.remove, record.id)


def _monitors(machine_id: str, directory: Path) -> Iterator[int]:
    """VMM processes of a machine that nobody wrote down: named after it (an argument of theirs is ``castoff-<id>``) and
    holding files of its directory open. One of the two alone could be anybody's, a person's ``pgrep`` or ``less``."""
    name = f"castoff-{machine_id}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended while we looked, or is another user's
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if name in words and any(link.readlink().is_relative_to(directory) for link in (entry / "fd").iterdir()):
                yield int(entry.name)
