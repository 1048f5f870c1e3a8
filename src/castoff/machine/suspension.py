"""Machines whose memory waits on disk: suspended, resumed, and what a crash on the way leaves.

The record decides. It says ``suspended`` once the memory is durable and the guest stands still for good, and ``started`` again
before the guest runs on: then the memory is older than the disks, and rubbish whatever it looks like. So a crash at any instant
leaves a guest that runs, or one that was stopped (:func:`wake` lets it run), or one whose memory is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from castoff.disk.clone import Role
from castoff.errors import CastoffError, Conflict, Unavailable, Unsupported
from castoff.hydrate.record import STATE
from castoff.machine.drivers import open_vmm
from castoff.machine.model import Hardware, MachineRecord, MachineState, Suspension
from castoff.machine.records import MachineRecords
from castoff.machine.removal import end_unrecorded
from castoff.store.builds import uninterrupted
from castoff.store.durable import fsync_path
from castoff.store.space import free, require
from castoff.timeline import step
from castoff.vmm.limits import end_groups, group_of, leave
from castoff.vmm.settings import VmmSettings
from castoff.vmm.vmm import SnapshotHandle, VmmHandle

if TYPE_CHECKING:
    from castoff.machine.machine import Machine

__all__ = ["MEMORY", "check_files", "check_suspendable", "end_suspended", "forget", "is_kept", "suspend", "wake"]

MEMORY: Final = "memory"
_DEVICES: Final = 64 << 20
"""Bytes that the state of all but the memory takes at most."""


def check_suspendable(record: MachineRecord, handle: VmmHandle, directory: Path) -> Hardware:
    """Refuses a machine that cannot be suspended; what it was started with.

    Raises:
        Unsupported: Its VMM cannot, its root filesystem is not all here, or an older castoff started it.
    """
    if not isinstance(handle, SnapshotHandle):
        raise Unsupported("this machine's VMM cannot suspend it", hint="stop it instead")
    if record.hardware is None:
        raise Unsupported("this machine was started by an older castoff, which did not foresee it", hint="restart it once")
    if record.lazy and ((directory / STATE).exists() or any(drive.role == Role.BASE for drive in record.hardware.drives)):
        # Nobody would serve what is missing to a monitor that never asked for it.
        raise Unsupported("this machine's root filesystem is not all here yet", hint="wait until it is hydrated, or stop it")
    return record.hardware


async def suspend(machine: Machine) -> None:
    """Writes a machine's guest down. Its VMM is to be ended then; where it cannot be done the guest goes on.

    Raises:
        Unsupported: See :func:`check_suspendable`, or its VMM cannot.
        NoSpace, Unavailable: It cannot be written, or the command has ended.
    """
    handle, memory = machine.handle, machine.directory / MEMORY
    hardware = check_suspendable(machine.record, handle, machine.directory)
    assert isinstance(handle, SnapshotHandle)
    with step("machine.suspension", suspend=machine.id):
        await asyncio.to_thread(_make_room, memory, hardware.memory + _DEVICES)
        before = machine.record
        try:
            snapshot = await handle.snapshot(memory)
            await asyncio.to_thread(_flush, hardware)
            files = await asyncio.to_thread(_files, hardware)
            await machine.write_down(_suspended(Suspension(snapshot=snapshot, files=files)))
        except BaseException as error:
            if isinstance(error, CastoffError) or machine.record.state != MachineState.SUSPENDED:
                machine.record = before if machine.record.state == MachineState.SUSPENDED else machine.record
                with contextlib.suppress(CastoffError, OSError):  # the first error is what is told; the next agent tries again
                    await asyncio.shield(wake(machine.record, handle, machine.records))
            raise


def _suspended(kept: Suspension) -> Callable[[MachineRecord], MachineRecord]:
    def change(record: MachineRecord) -> MachineRecord:
        if record.exit_code is not None:
            raise Unavailable("the machine's command has ended")
        return msgspec.structs.replace(record, state=MachineState.SUSPENDED, suspended=kept)

    return change


async def wake(record: MachineRecord, handle: VmmHandle, records: MachineRecords) -> bool:
    """Lets a guest run that was stopped to be suspended, or that was read and never ran, where it was left so.

    Returns:
        Whether it was: then its clock may be late.

    Raises:
        Unavailable: Its VMM does not answer.
    """
    memory = records.path(record.id) / MEMORY
    if isinstance(handle, SnapshotHandle) and memory.exists():
        await uninterrupted(_emptied, memory)  # whatever a record says: nobody goes on from it any more
        await handle.go_on()
        await uninterrupted(_remove, memory)
        return True
    return False


def _emptied(memory: Path) -> None:
    for path in memory.iterdir():
        path.unlink()
    fsync_path(memory)


def is_kept(record: MachineRecord) -> bool:
    """Whether a machine's memory waits on disk."""
    return record.suspended is not None and record.state in (MachineState.SUSPENDED, MachineState.RESUMING)


async def end_suspended(record: MachineRecord, records: MachineRecords, settings: VmmSettings) -> None:
    """Ends what is left of a suspended machine's VMMs: the one that was written down, or of a resume that was cut."""
    handle = await open_vmm(record.vmm, settings, records.path(record.id)).reattach(record.vmm_state)
    if handle is not None:
        await handle.kill()
    else:
        await leave(group_of(record.vmm_state))
    if record.state == MachineState.RESUMING:
        await asyncio.to_thread(end_unrecorded, record.id, records.path(record.id))
        await asyncio.to_thread(end_groups, record.id, records.directory, settings.limits)


async def forget(record: MachineRecord, records: MachineRecords, settings: VmmSettings) -> None:
    """Drops a machine's memory: its disk is as if its power had been cut."""
    await end_suspended(record, records, settings)
    ended = msgspec.structs.replace(record, state=MachineState.EXITED, suspended=None)
    await uninterrupted(records.update, ended)
    await uninterrupted(_remove, records.path(record.id) / MEMORY)


def _make_room(memory: Path, needed: int) -> None:
    _remove(memory)
    require(memory, needed=needed, available=free(memory.parent))
    memory.mkdir(mode=0o700)


def _remove(memory: Path) -> None:
    if memory.exists():
        shutil.rmtree(memory)


def _flush(hardware: Hardware) -> None:
    """Makes the disks as durable as the memory that knows them; not every VMM does so when it stops."""
    for drive in hardware.drives:
        if not drive.read_only:
            try:
                fsync_path(Path(drive.path).resolve())
            except OSError as error:
                raise Unavailable(f"{drive.path} cannot be flushed: {error.strerror}") from error


def _files(hardware: Hardware) -> dict[str, tuple[int, int, int]]:
    """Their marks. Those of block devices tell nothing, and are left out."""
    found = {}
    for path in (hardware.kernel, *(drive.path for drive in hardware.drives)):
        try:
            status = Path(path).stat()
        except OSError as error:
            raise Unavailable(f"{path} is not there any more: {error.strerror}") from error
        if Path(path).is_file():
            found[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def check_files(kept: Suspension, hardware: Hardware) -> None:
    """Refuses a machine whose drives or kernel are not as they were.

    Raises:
        Conflict: They are others.
        Unavailable: They are gone.
    """
    found = _files(hardware)
    changed = [path for path, mark in kept.files.items() if found.get(path) != mark]
    if changed:
        raise Conflict(f"{changed[0]} was changed while the machine was suspended", hint="it is started anew")
