"""How a machine ends for good: its VMM, then what its rootfs' provider holds for it, then its directory.

In this order, each idempotent, by any process: where a step fails the record is still there, and the next start tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from castoff.errors import Internal
from castoff.machine.model import MachineRecord, MachineState
from castoff.machine.records import MachineRecords
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.release import release_machine
from castoff.vmm.limits import end_groups, group_of, leave
from castoff.vmm.settings import VmmSettings

__all__ = ["end_machine", "end_unrecorded", "remove_machine"]

_DIES: Final = 10.0
"""Seconds that the kernel may take for the end of a killed VMM."""


async def end_machine(record: MachineRecord, records: MachineRecords, settings: VmmSettings) -> None:
    """Kills a machine's VMM, where it still runs, and writes its end down. The command's exit code is lost with its owner."""
    directory = records.path(record.id)
    if record.vmm:
        from castoff.machine.drivers import open_vmm

        handle = await open_vmm(record.vmm, settings, directory).reattach(record.vmm_state)
        if handle is not None:
            await handle.kill()
        else:
            await leave(group_of(record.vmm_state))
    if not record.vmm or record.state == MachineState.RESUMING:
        # Its owner died between the VMM's start and the record of it: look for a process that says it is this machine.
        await asyncio.to_thread(end_unrecorded, record.id, directory)
        await asyncio.to_thread(end_groups, record.id, records.directory, settings.limits)
    if record.keep:
        await asyncio.to_thread(records.update, msgspec.structs.replace(record, state=MachineState.EXITED, suspended=None))


async def remove_machine(record: MachineRecord, records: MachineRecords, providers: ProviderContext) -> None:
    """Gives back what an ended machine holds, and deletes its directory. Idempotent."""
    await release_machine(record.id, records.path(record.id), providers)
    await asyncio.to_thread(records.remove, record.id)


def end_unrecorded(machine_id: str, directory: Path) -> None:
    """Kills a machine's VMMs that nobody wrote down, and waits until they are gone: what a dying one still writes must not meet
    its successor on the same disk."""
    for pid in _monitors(machine_id, directory):
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(process, signal.SIGKILL)
                if not select.select([process], [], [], _DIES)[0]:
                    raise Internal(f"process {pid} of machine {machine_id} does not die", hint="is its disk stuck? see dmesg")
            finally:
                os.close(process)


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
