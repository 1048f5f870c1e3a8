"""A machine that runs on this host, as its lifecycle knows it: its output goes to its log, its end is told to whoever waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from castoff.agent.launch.control import Control
from castoff.agent.launch.logs import LogWriter
from castoff.disk.clone import volume_role
from castoff.disk.volume import lengthen
from castoff.errors import CastoffError, Invalid, NotFound, Unavailable, Unsupported
from castoff.lifecycle.launcher import Connection, ExecRequest, ExecResult, ListenSocket, Probe, ProcessStat, RunExit
from castoff.lifecycle.statistics import Statistics
from castoff.machine.machine import Machine, MachineLost
from castoff.machine.model import MachineRecord, MachineState
from castoff.machine.suspension import check_suspendable, suspend
from castoff.store.builds import uninterrupted
from castoff.vmm.guest import GuestSettings
from castoff.vmm.guest_processes import LISTING, GuestProcess, read_processes
from castoff.vmm.guest_session import Exit, GuestSession, Output
from castoff.vmm.guest_statistics import asking_statistics, read_statistics
from castoff.vmm.guest_tasks import (
    finish,
    growing_volume,
    read_files,
    reading_files,
    syncing_volume,
    write_files,
    writing_files,
)
from castoff.vmm.vmm import GrowingDrives

__all__ = ["HostRun", "Surroundings", "remembered"]

T = TypeVar("T")

_LISTING: Final = 10.0
"""Seconds that the list of processes may take, and statistics."""
_POWER_OFF: Final = 10.0
"""Seconds that a guest has to unmount its disk after its command's end."""
_KILL: Final = 9
_VOLUME: Final = 30.0
"""Seconds that the guest may take to flush a volume, or to grow it."""
_TICKS: Final = 100
"""A second's clock ticks, as clients of the API count."""


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine's command was given, for commands that are executed beside it; ``guest.json`` of its directory."""

    env: tuple[str, ...]
    cwd: str
    user: str
    volumes: tuple[tuple[str, str], ...] = ()
    """Their files, and where they are mounted; in the order of their drives."""
    version: str = ""
    """Of the configuration."""


class HostRun:
    """Implements castoff.lifecycle.launcher.Run, Reachable, HasVolumes, Suspendable and Resumed, and
    castoff.lifecycle.statistics.Measured.

    Args:
        machine: The machine, whose command was started.
        log: Gets its output.
        surroundings: Of its command.
        ended: Called when its command has ended, or it is suspended; raises nothing.
        began_cold: Why it did not go on from its memory, though it should have; empty: it did, or should not.
    """

    def __init__(
        self,
        machine: Machine,
        log: LogWriter,
        surroundings: Surroundings,
        *,
        ended: Callable[[], Awaitable[None]],
        began_cold: str = "",
    ) -> None:
        self.began_cold = began_cold
        self._ended = ended
        self._machine = machine
        self._log = log
        self._surroundings = surroundings
        self._control = Control(machine.handle)
        machine.remember_exit(lambda: uninterrupted(log.flush))
        self._ending = asyncio.create_task(self._end())

    async def wait(self) -> RunExit:
        """See the port."""
        return await asyncio.shield(self._ending)

    async def stop(self, signal: int, grace: float) -> None:
        """See the port. By force: the guest ends its command and unmounts; where it does not even that, its VMM is killed."""
        with contextlib.suppress(CastoffError):  # it ends just now
            await self._machine.signal(signal)
        if await self._ends_within(grace if signal != _KILL else _POWER_OFF):
            return
        with contextlib.suppress(CastoffError):
            await self._control.shutdown()
        if not await self._ends_within(_POWER_OFF):
            await self.kill()

    async def kill(self) -> None:
        """See the port."""
        await self._machine.kill()
        await self.wait()

    async def signal(self, number: int) -> None:
        """See the port."""
        await self._machine.signal(number)

    async def execute(self, request: ExecRequest) -> ExecResult:
        """See the port."""
        settings = GuestSettings(
            argv=request.argv,
            env=(*self._surroundings.env, *(f"{name}={value}" for name, value in request.env.items())),
            cwd=self._surroundings.cwd,
            user=self._surroundings.user,
            stdin=bool(request.stdin),
        )
        try:
            async with asyncio.timeout(request.timeout):
                return await self._control.execute(settings, lambda session: _collect(session, request))
        except TimeoutError as error:
            raise Unavailable(
                f"the command did not end within {request.timeout:g} s and was killed", hint="give it more timeout"
            ) from error

    async def processes(self) -> list[ProcessStat]:
        """See the port."""
        try:
            async with asyncio.timeout(_LISTING):
                found = await self._control.execute(LISTING, read_processes)
        except TimeoutError as error:
            raise Unavailable(
                f"the guest did not list its processes within {_LISTING:g} s",
                hint="one of them keeps whoever looks at it waiting",
            ) from error
        return [_stat(process) for process in found]

    async def statistics(self) -> Statistics:
        """See castoff.lifecycle.statistics.Measured."""
        group = self._machine.handle.group
        usage = await asyncio.to_thread(group.usage) if group is not None else None
        limit = await asyncio.to_thread(group.memory_limit) if group is not None else -1
        paths = ("/", *(path for _, path in self._surroundings.volumes))
        try:
            async with asyncio.timeout(_LISTING):
                guest = await self._control.execute(asking_statistics(paths), lambda session: read_statistics(session, paths))
        except TimeoutError:
            return Statistics(host=usage, memory_limit=limit, why=f"the guest did not answer within {_LISTING:g} s")
        except CastoffError as error:
            return Statistics(host=usage, memory_limit=limit, why=str(error))
        return Statistics(host=usage, memory_limit=limit, guest=guest)

    async def probe(self, probe: Probe) -> str:
        """See castoff.lifecycle.launcher.Reachable."""
        from castoff.agent.launch.probe import ask  # here: TLS and an HTTP parser, for those who have checks

        return await self._control.dial(probe.port, lambda connection: ask(connection, probe), probe=True)

    async def dial(self, port: int, use: Callable[[Connection], Awaitable[T]]) -> T:
        """See castoff.lifecycle.launcher.Reachable."""
        return await self._control.dial(port, use)

    def ready(self) -> None:
        """See castoff.lifecycle.launcher.Reachable."""
        self._machine.mark_ready()

    async def read_files(self, path: str, sink: Callable[[bytes], Awaitable[None]]) -> None:
        """See the port. Whoever takes nothing for long is to be cancelled: the guest waits."""
        await self._control.execute(reading_files(path), lambda session: read_files(session, sink))

    async def write_files(self, path: str, archive: AsyncIterator[bytes]) -> None:
        """See the port."""
        await self._control.execute(writing_files(path), lambda session: write_files(session, archive))

    async def grow_volume(self, file: str, size: int) -> None:
        """See castoff.lifecycle.launcher.HasVolumes."""
        role, path = self._volume(file)
        handle = self._machine.handle
        if not isinstance(handle, GrowingDrives):
            raise Unsupported("this machine's VMM cannot tell it of a larger drive", hint="restart it")
        await asyncio.to_thread(lengthen, Path(file), size)
        async with _answer("grow the volume"):
            await handle.grow_drive(role, size)
            await self._control.execute(growing_volume(path, size), finish)

    async def sync_volume(self, file: str) -> None:
        """See castoff.lifecycle.launcher.HasVolumes."""
        _, path = self._volume(file)
        async with _answer("flush the volume"):
            await self._control.execute(syncing_volume(path), finish)

    def _volume(self, file: str) -> tuple[str, str]:
        """The role of a volume's drive, and where it is mounted."""
        for number, (one, path) in enumerate(self._surroundings.volumes):
            if one == file:
                return volume_role(number), path
        raise NotFound(f"this machine has not mounted {Path(file).parent.name}", hint="restart it")

    def check_suspend(self) -> None:
        """See the port."""
        check_suspendable(self._machine.record, self._machine.handle, self._machine.directory)

    async def suspend(self) -> None:
        """See the port. Commands that are executed beside the machine's are lost."""
        await suspend(self._machine)
        await self._machine.detach()
        await self._machine.kill()
        await self.wait()

    async def detach(self) -> None:
        """See the port."""
        self._ending.cancel()
        await asyncio.gather(self._ending, return_exceptions=True)
        self._log.close()  # it may have been cancelled before it began
        await self._control.close()
        await self._machine.detach()

    async def _ends_within(self, seconds: float) -> bool:
        done, _ = await asyncio.wait((self._ending,), timeout=seconds)
        return bool(done)

    async def _end(self) -> RunExit:
        """Takes the command's output as it comes, until its end and the VMM's. What goes wrong on the way is told by the exit's
        message: a machine whose end nobody is told would be believed to run for ever."""
        try:
            try:
                async for output in self._machine.output():
                    # In a thread: lines cost time, and a full page cache waits for the disk; all machines share the loop.
                    await uninterrupted(self._log.write, output.stream, output.data, output.offset)
                exit = _as_run_exit(self._machine.exit)
            except CastoffError as error:
                memory = isinstance(error, MachineLost) and error.out_of_memory
                exit = remembered(self._machine.record) or RunExit(code=-1, out_of_memory=memory, message=str(error))
            await self._control.close()
            await self._ended()
            if self._machine.record.state == MachineState.SUSPENDED:
                return RunExit(code=-1, message="it is suspended")
            try:
                await self._machine.close()
            except (CastoffError, OSError) as error:
                exit = replace(exit, message=exit.message or f"its end is not written down: {error}")
            return exit
        finally:
            await uninterrupted(self._log.close)


@contextlib.asynccontextmanager
async def _answer(what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_VOLUME):
            yield
    except TimeoutError as error:
        raise Unavailable(f"the guest did not {what} within {_VOLUME:g} s", hint="is its disk well?") from error


def _as_run_exit(exit: Exit | None) -> RunExit:
    """None: it was killed."""
    if exit is None:
        return RunExit(code=128 + _KILL, signal=_KILL)
    return RunExit(code=exit.code, signal=exit.signal, out_of_memory=exit.out_of_memory, message=exit.message)


def remembered(record: MachineRecord) -> RunExit | None:
    """How a machine's command ended, as it is written down; None: it is not."""
    if record.exit_code is None:
        return None
    return RunExit(
        code=record.exit_code, signal=record.exit_signal, out_of_memory=record.out_of_memory, message=record.exit_message
    )


async def _collect(session: GuestSession, request: ExecRequest) -> ExecResult:
    """Feeds a session and gathers what it writes; what is over the limit is taken and thrown away."""
    kept = {1: bytearray(), 2: bytearray()}
    feeding = asyncio.create_task(_feed(session, request.stdin)) if request.stdin else None
    exit: Exit | None = None
    try:
        async for event in session.events():
            if isinstance(event, Output):
                kept[event.stream] += event.data[: max(0, request.limit - len(kept[event.stream]))]
            elif isinstance(event, Exit):
                exit = event
    finally:
        if feeding is not None:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
    if exit is None:
        raise Unavailable("the machine ended before the command did")
    if exit.message:
        raise Invalid(f"the command cannot be executed: {exit.message}", hint="is it in the image?")
    code = -1 if exit.signal else exit.code
    return ExecResult(exit_code=code, exit_signal=exit.signal, stdout=bytes(kept[1]), stderr=bytes(kept[2]))


async def _feed(session: GuestSession, data: bytes) -> None:
    await session.send_stdin(data)
    await session.close_stdin()


def _stat(process: GuestProcess) -> ProcessStat:
    return ProcessStat(
        pid=process.pid,
        stime=round(process.system_seconds * _TICKS),
        rtime=round(process.started_seconds * _TICKS),
        cpu=round((process.user_seconds + process.system_seconds) * _TICKS),
        rss=process.rss,
        command=process.command or process.name,
        directory=process.directory,
        listen_sockets=tuple(ListenSocket(socket.protocol, socket.address) for socket in process.sockets),
    )
