"""A stand-in for a VMM whose machines are small processes of this host and answer at once, for tests and benches.

Nothing in it is a machine: what it starts has neither a kernel nor a disk, and commands run on this host (castoff.fakes.vmm_guest
says which). All else is as with a real one: a process for each machine that outlives who started it and is found again by pid and
start time, a console log, both channels with the guest's whole protocol. So what is measured or tortured with it is castoff.

A machine is a fork of one warm process (castoff.fakes.vmm_zygote), which this process starts for its first machine: about two
milliseconds, where a Python of its own would take a hundred. castoff.machine.drivers gives this driver only where ``vmm.order``
names it.
"""

from __future__ import annotations

import array
import asyncio
import atexit
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from castoff.errors import Unavailable
from castoff.timeline import step
from castoff.vmm.cgroups import Group
from castoff.vmm.limits import entrance, group_of, leave, state_of
from castoff.vmm.process import STATUS_UNKNOWN, MonitorProcess, owner_for
from castoff.vmm.settings import VmmSettings
from castoff.vmm.sockets import listen_unix
from castoff.vmm.vmm import MachineSpec

__all__ = ["StandInHandle", "StandInVmm"]

_CONSOLE: Final = "console.log"
_START_SECONDS: Final = 20.0
_KILLED: Final = -9

_zygote: socket.socket | None = None
"""Of this process: drivers come and go with every create."""


class StandInHandle:
    """A running stand-in.

    Args:
        process: It.
        directory: The machine's own.
        told: The machine's socket to its starter, which tells its end; None: somebody else started it.
        group: Its control group, where it has one.
    """

    channel_port: int | None = None
    control_port: int | None = None

    def __init__(self, process: MonitorProcess, directory: Path, told: socket.socket | None, group: Group | None = None) -> None:
        self.group = group
        self.process = process
        self._directory = directory
        self._told = told
        self._status: int | None = None if told is not None else STATUS_UNKNOWN
        self.pid = process.pid
        self.channel = directory / "channel.sock"
        self.control = directory / "control.sock"
        self.console = directory / _CONSOLE

    def state(self) -> dict[str, Any]:
        """What :meth:`StandInVmm.reattach` needs."""
        found = {"vmm": StandInVmm.name, "pid": self.pid, "started": self.process.started, "directory": str(self._directory)}
        return found | state_of(self.group)

    async def wait(self) -> int:
        """Waits for its end: 0 when the guest powered off, ``STATUS_UNKNOWN`` when an earlier process started it."""
        await self.process.wait()
        if self._status is None and self._told is not None:
            told, self._told = self._told, None
            try:
                self._status = 0 if told.recv(16) == b"0" else _KILLED
            except OSError:
                self._status = _KILLED
            told.close()
        return _KILLED if self._status is None else self._status

    async def stop(self, timeout: float) -> None:
        """Asks the guest to end its command and to power off; kills it when ``timeout`` seconds have passed."""
        from castoff.vmm.stopping import ask_to_stop

        await ask_to_stop(self, timeout)

    async def kill(self) -> None:
        """Ends it now; what its command started goes on where it heeds no end of its streams."""
        await self.process.kill()
        await self.wait()
        await leave(self.group)


class StandInVmm:
    """Starts stand-ins.

    Args:
        settings: The machines' settings: whose users the stand-ins are.
    """

    name = "stand-in"

    def __init__(self, settings: VmmSettings) -> None:
        self._settings = settings

    async def start(self, spec: MachineSpec) -> StandInHandle:
        """Starts a machine; see :class:`castoff.vmm.vmm.Vmm`. Drives, kernel and network are not used. It has limits only where
        they are required: moving it into them takes longer than all else that benches measure."""
        with step("fakes.vmm", machine=spec.id):
            if self._settings.limits.mode != "require":
                return await self._start(spec)
            async with entrance(spec, self._settings.limits, emulated=False) as door:
                handle = await self._start(spec)
                try:
                    await door.admit(handle.process)
                except BaseException:
                    await asyncio.shield(handle.kill())
                    raise
                handle.group = door.group
                return handle

    async def _start(self, spec: MachineSpec) -> StandInHandle:
        told, machines = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        told.setblocking(False)
        try:
            with machines:
                await self._ask(spec, machines)
            answer = await _answer(told)
            process = _found(answer)
        except BaseException:
            told.close()
            raise
        return StandInHandle(process, spec.directory, told)

    async def reattach(self, state: Mapping[str, Any]) -> StandInHandle | None:
        """The handle of one that an earlier process started; None when it has ended."""
        process = MonitorProcess.find(int(state["pid"]), int(state["started"]))
        return None if process is None else StandInHandle(process, Path(state["directory"]), None, group_of(state))

    async def _ask(self, spec: MachineSpec, machines: socket.socket) -> None:
        owner = owner_for(spec.id, self._settings, spec.user)
        request = {"initramfs": str(spec.initramfs), "name": spec.id, "owner": None if owner is None else owner.uid}
        try:
            with (
                listen_unix(spec.directory / "channel.sock") as channel,
                listen_unix(spec.directory / "control.sock") as control,
                (spec.directory / _CONSOLE).open("wb", buffering=0) as console,
            ):
                descriptors = array.array("i", [end.fileno() for end in (machines, channel, control, console)])
                await _send(json.dumps(request).encode(), descriptors)
        except OSError as error:
            raise Unavailable(f"machine {spec.id} cannot be started: {error}") from error


async def _send(message: bytes, descriptors: array.array[int]) -> None:
    while True:
        try:
            _warm().sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
            return
        except BlockingIOError:
            await asyncio.sleep(0.001)  # it has as many to fork as its queue holds


def _warm() -> socket.socket:
    """The socket of this process's zygote, started if there is none."""
    global _zygote
    if _zygote is None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with its:
            os.posix_spawn(
                sys.executable,
                [sys.executable, "-m", "castoff.fakes.vmm_zygote"],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, its.fileno(), 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
            )
        atexit.register(ours.close)
        _zygote = ours
    return _zygote


async def _answer(told: socket.socket) -> bytes:
    try:
        async with asyncio.timeout(_START_SECONDS):
            return await asyncio.get_running_loop().sock_recv(told, 1024)
    except TimeoutError as error:
        raise Unavailable(f"the stand-in did not start within {_START_SECONDS:.0f} s", hint="is this host busy?") from error


def _found(answer: bytes) -> MonitorProcess:
    if not answer.startswith(b"+"):
        raise Unavailable(f"the stand-in did not start: {answer[1:].decode(errors='replace') or 'its process ended'}")
    pid, started = answer[1:].split()
    process = MonitorProcess.find(int(pid), int(started))
    if process is None:
        raise Unavailable("the stand-in ended at its start")
    return process
