"""Boots the agent's machines on this host: each launch is a create as `castoff run` does it, and outlives the agent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from castoff.agent.launch.logs import Logs, LogWriter
from castoff.agent.launch.request import check_config, machine_request
from castoff.agent.launch.run import HostRun, Surroundings, remembered
from castoff.agent.network.network import HostNetwork
from castoff.create import create, opened
from castoff.errors import CastoffError, Conflict, NotFound, Unavailable
from castoff.host import Host
from castoff.lifecycle.config import MachineConfig
from castoff.lifecycle.launcher import Launch, RunExit
from castoff.machine.drivers import open_vmm
from castoff.machine.hydration import Hydration
from castoff.machine.known import Known
from castoff.machine.machine import Machine
from castoff.machine.model import MachineId, MachineRecord, MachineRequest, MachineState, parse_machine_id
from castoff.machine.removal import end_machine, remove_machine
from castoff.machine.resume import resume
from castoff.machine.suspension import end_suspended, forget, is_kept, wake
from castoff.store.builds import uninterrupted
from castoff.store.durable import fsync_path, replace_file
from castoff.vmm.channel import GuestChannel, GuestSilent
from castoff.vmm.guest import GuestSettings
from castoff.vmm.limits import group_of, leave, why_killed
from castoff.vmm.rates import Rates, granted
from castoff.vmm.vmm import PortForward, VmmHandle

__all__ = ["HostLauncher"]

_ROOT: Final = "root.ext4"
_KEPT: Final = "kept"
_SURROUNDINGS: Final = "guest.json"
_CONNECT: Final = 30.0
_POWER_OFF: Final = 10.0
"""Seconds that one has to unmount its disk."""


class HostLauncher:
    """Implements castoff.lifecycle.launcher.Launcher, Remembering, Keeping and Ending.

    Args:
        host: Where machines run.
        logs: Gets what they write.
        rootfs_directories: Where prepared root filesystems may lie.
        patience: Seconds in which a guest that an earlier agent left answers.
        network: What machines are let into; None: each has its VMM's user network.
        publish: Addresses of this host whose ports lead to machines, where that is so.
    """

    def __init__(
        self,
        host: Host,
        logs: Logs,
        rootfs_directories: Sequence[Path] = (),
        network: HostNetwork | None = None,
        publish: Sequence[str] = (),
        *,
        patience: float = _CONNECT,
    ) -> None:
        self._network = network
        self._publish = publish
        self._host = host
        self._logs = logs
        self._allowed = tuple(rootfs_directories)
        self._patience = patience
        self._known = Known()

    def check(self, config: MachineConfig) -> None:
        """See the port."""
        check_config(config, self._allowed)
        self._rates(config)

    def _rates(self, config: MachineConfig) -> Rates:
        return granted(self._host.config.vmm.rates, config.rates, card=self._network is not None)

    async def resolve(self, image: str) -> str:
        """See the port."""
        async with opened(image, None, config=self._host.config, store=self._host.store, known=self._known) as (_, found):
            return str(found.digest)

    async def launch(self, launch: Launch) -> HostRun:
        """See the port."""
        began_cold = ""
        if launch.resume:
            try:
                return await self._resume(launch)
            except CastoffError as error:
                began_cold = str(error)
                self._host.providers.notice(f"machine {launch.machine} does not go on from its memory: {error}")
        existing = await self._clear(launch)
        request = machine_request(launch, self._allowed, existing, reflink=self._host.store.reflink)
        request = replace(request, **await self._card(launch))
        try:
            machine = await create(
                request,
                config=self._host.config,
                store=self._host.store,
                providers=self._host.providers,
                records=self._host.machines,
                known=self._known,
            )
        except BaseException:
            await asyncio.shield(self._close_ports(launch.machine))
            raise
        try:
            assert machine.guest is not None
            surroundings = _surroundings(request, machine.guest, launch.version)
            log = await uninterrupted(self._begin, machine.directory, surroundings, launch.machine, existing)
            return HostRun(machine, log, surroundings, ended=partial(self._close_ports, launch.machine), began_cold=began_cold)
        except BaseException:
            await asyncio.shield(machine.kill())
            await asyncio.shield(machine.close())
            raise

    def _begin(self, directory: Path, surroundings: Surroundings, machine: MachineId, existing: Path | None) -> LogWriter:
        """What is on disk of a run that has begun: how it was begun, and its log."""
        if existing is not None:
            existing.unlink()
        replace_file(directory / _SURROUNDINGS, msgspec.json.encode(surroundings), mode=0o600)
        return self._logs.writer(machine)

    async def _card(self, launch: Launch) -> dict[str, Any]:
        """What a request says of the network. Asked again, it is the same."""
        if self._network is None:
            return {
                "ports": tuple(
                    PortForward(port.host_port, port.guest_port, address) for port in launch.ports for address in self._publish
                )
            }
        # A machine that runs since before there was this network has no address until its next start.
        return {"tap": await self._network.admit(launch, self._rates(launch.config))} if launch.address else {}

    async def _resume(self, launch: Launch) -> HostRun:
        """The machine, which goes on from its memory.

        Raises:
            CastoffError: It cannot.
        """
        record = await self._record(launch.machine)
        if record is None or not is_kept(record):
            raise NotFound("nothing of its memory was kept")
        surroundings = await asyncio.to_thread(_read_surroundings, self._host.machines.path(record.id))
        if surroundings.version != launch.version:
            raise Conflict(f"it was suspended as version {surroundings.version}, and is {launch.version} now")
        await self._card(launch)
        machine = await resume(
            record, settings=self._host.config.vmm, records=self._host.machines, providers=self._host.providers
        )
        try:
            log = self._logs.writer(record.id, resume=True)
            return HostRun(machine, log, surroundings, ended=partial(self._close_ports, record.id))
        except BaseException:
            await asyncio.shield(machine.kill())
            await asyncio.shield(machine.close())
            raise

    async def keeps(self, machine: MachineId) -> bool:
        """See castoff.lifecycle.launcher.Keeping."""
        record = await self._record(machine)
        return record is not None and is_kept(record)

    async def forget(self, machine: MachineId) -> None:
        """See castoff.lifecycle.launcher.Keeping."""
        record = await self._record(machine)
        if record is not None and record.suspended is not None:
            await forget(record, self._host.machines, self._host.config.vmm)

    async def reattach(self, launch: Launch) -> HostRun | None:
        """See the port."""
        record = await self._record(launch.machine)
        if record is None or record.state == MachineState.EXITED:
            return None
        if not record.vmm:  # the agent was killed between its VMM's start, if it came that far, and the record of it
            await end_machine(record, self._host.machines, self._host.config.vmm)
            return None
        if is_kept(record):  # the agent was killed before its VMM was
            await end_suspended(record, self._host.machines, self._host.config.vmm)
            return None
        directory = self._host.machines.path(record.id)
        handle = await open_vmm(record.vmm, self._host.config.vmm, self._host.store.state).reattach(record.vmm_state)
        if handle is None:
            await self._over(record)
            return None
        await self._card(launch)
        async with contextlib.AsyncExitStack() as undo:
            log = self._logs.writer(record.id, resume=True)
            undo.callback(log.close)
            try:
                surroundings = _read_surroundings(directory)
                woken = await wake(record, handle, self._host.machines)
                channel = await GuestChannel.connect(handle, self._patience)
                if woken:
                    await channel.set_clock()
            except GuestSilent:
                if record.exit_code is None:
                    raise  # it runs: stopped, or on a host that is. Whoever asks again may find that it answers
                await _ends(handle)  # its end was taken: it powers off
                await handle.kill()
                await self._over(record)
                return None
            except (CastoffError, OSError):
                if record.exit_code is not None:  # that was taken: it powers off
                    await _ends(handle)
                await handle.kill()  # its launch was not over when the agent ended, or nobody is in there any more
                await self._over(record)
                return None
            undo.pop_all()
        lazy = Hydration(self._host.store.state, directory, self._host.providers.notice) if record.lazy else None
        machine = Machine(
            record, records=self._host.machines, providers=self._host.providers, handle=handle, channel=channel, hydration=lazy
        )
        return HostRun(machine, log, surroundings, ended=partial(self._close_ports, record.id))

    async def last_exit(self, machine: MachineId) -> RunExit | None:
        """See castoff.lifecycle.launcher.Remembering."""
        record = await self._record(machine)
        return None if record is None else remembered(record)

    async def end(self, machine: MachineId) -> None:
        """See castoff.lifecycle.launcher.Ending."""
        record = await self._record(machine)
        if record is not None:
            await end_machine(record, self._host.machines, self._host.config.vmm)
            await self._over(record)

    async def discard(self, machine: MachineId) -> None:
        """See the port. The record goes last: by it the rest is found again."""
        record = await self._record(machine)
        if record is not None:
            await end_machine(record, self._host.machines, self._host.config.vmm)
        await asyncio.to_thread(self._kept(machine).unlink, missing_ok=True)
        if self._network is not None:
            await self._network.dismiss(machine)
        if record is not None:
            await remove_machine(record, self._host.machines, self._host.providers)

    async def machines(self) -> list[MachineId]:
        """See the port. Also those of which only a root filesystem that was kept is left."""
        records = await asyncio.to_thread(list, self._host.machines)
        kept = await asyncio.to_thread(_kept_machines, self._host.store.root / _KEPT)
        return list(dict.fromkeys([*(record.id for record in records if record.agent), *kept]))

    async def _record(self, machine: MachineId) -> MachineRecord | None:
        with contextlib.suppress(NotFound):
            return await asyncio.to_thread(self._host.machines.get, machine)
        return None

    async def _close_ports(self, machine: MachineId) -> None:
        """Has who connects to a machine that does not run refused, instead of waiting; where that fails, they wait."""
        if self._network is not None:
            try:
                await self._network.close_ports(machine)
            except CastoffError as error:
                self._host.providers.notice(f"machine {machine} has ended, and its ports are still open: {error}")

    async def _over(self, record: MachineRecord) -> None:
        """Writes down that nothing runs, and what the host knows of why."""
        await self._close_ports(record.id)
        group = group_of(record.vmm_state)
        if record.exit_code is None and (killed := why_killed(group)):
            record = msgspec.structs.replace(record, exit_code=-1, out_of_memory=True, exit_message=killed)
        await asyncio.to_thread(self._host.machines.update, msgspec.structs.replace(record, state=MachineState.EXITED))
        await leave(group)

    def _kept(self, machine: MachineId) -> Path:
        """Where a root filesystem waits between two runs: on the filesystem of the machines."""
        return self._host.store.root / _KEPT / f"{machine}.ext4"

    async def _clear(self, launch: Launch) -> Path | None:
        """Removes what the last run left; the root filesystem, where it is to be kept, is set aside."""
        kept = self._kept(launch.machine)
        record = await self._record(launch.machine)
        if record is None and not kept.exists():
            return None
        if record is not None:
            await end_machine(record, self._host.machines, self._host.config.vmm)
            # Without a VMM it never ran, and its root filesystem may be half a copy, or one whose data is not here.
            if record.vmm and not launch.fresh and not record.lazy:
                await uninterrupted(_set_aside, self._host.machines.path(record.id) / _ROOT, kept)
            await remove_machine(record, self._host.machines, self._host.providers)
        if launch.fresh:
            await asyncio.to_thread(kept.unlink, missing_ok=True)
        return kept if kept.exists() else None


def _surroundings(request: MachineRequest, guest: GuestSettings, version: str) -> Surroundings:
    """What commands that are executed in the machine later begin with."""
    volumes = tuple((str(volume.path), mount.path) for volume, mount in zip(request.volumes, guest.mounts, strict=True))
    return Surroundings(env=guest.env, cwd=guest.cwd, user=guest.user, volumes=volumes, version=version)


def _read_surroundings(directory: Path) -> Surroundings:
    try:
        return msgspec.json.decode((directory / _SURROUNDINGS).read_bytes(), type=Surroundings)
    except (OSError, msgspec.MsgspecError) as error:
        raise Unavailable(f"{directory / _SURROUNDINGS} cannot be read: {error}") from error


async def _ends(handle: VmmHandle) -> None:
    """Waits for it, a while."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_POWER_OFF):
            await handle.wait()


def _set_aside(root: Path, kept: Path) -> None:
    """Durably, before the directory that it is in is removed."""
    kept.parent.mkdir(exist_ok=True, mode=0o700)
    with contextlib.suppress(FileNotFoundError):  # it was, before a crash
        root.rename(kept)
        fsync_path(kept.parent)


def _kept_machines(directory: Path) -> list[MachineId]:
    with contextlib.suppress(FileNotFoundError):
        return [parse_machine_id(path.stem) for path in directory.iterdir()]
    return []
