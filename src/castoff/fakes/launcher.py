"""A launcher whose machines run in memory. They outlive it: another launcher over the same :class:`World` takes them up."""

from __future__ import annotations

import asyncio
import hashlib

from castoff.errors import NotFound, Unavailable
from castoff.lifecycle.config import MachineConfig
from castoff.lifecycle.launcher import ExecRequest, ExecResult, Launch, ProcessStat, Run, RunExit
from castoff.machine.model import MachineId

__all__ = ["FakeLauncher", "FakeRun", "World"]


class World:
    """The host's machines, apart from any agent.

    Attributes:
        running: Those that run.
        disks: Those that have something on disk; how often each was begun anew.
        launches: Every launch, in order.
        missing: Images that do not exist.
        failing: Images whose launch fails.
    """

    def __init__(self) -> None:
        self.running: dict[str, FakeRun] = {}
        self.disks: dict[str, int] = {}
        self.launches: list[Launch] = []
        self.missing: set[str] = set()
        self.failing: set[str] = set()

    def exit(self, machine: str, code: int = 0, *, out_of_memory: bool = False) -> None:
        """A machine's command ends by itself."""
        self.running[machine].end(RunExit(code=code, out_of_memory=out_of_memory))


class FakeRun:
    """A run in memory; suspendable. Its ``execute`` gives back what it is given."""

    def __init__(self, world: World, launch: Launch) -> None:
        self.launch = launch
        self.signals: list[int] = []
        self._world = world
        self._exit: RunExit | None = None
        self._ended = asyncio.Event()

    def end(self, exit: RunExit) -> None:
        """It ends."""
        if self._exit is None:
            self._exit = exit
            self._ended.set()
            self._world.running.pop(self.launch.machine, None)

    async def wait(self) -> RunExit:
        """See the port."""
        await self._ended.wait()
        assert self._exit is not None
        return self._exit

    async def stop(self, signal: int, grace: float) -> None:
        """See the port."""
        self.end(RunExit(code=128 + signal, signal=signal))

    async def kill(self) -> None:
        """See the port."""
        self.end(RunExit(code=137, signal=9))

    async def signal(self, number: int) -> None:
        """See the port."""
        self.signals.append(number)

    async def execute(self, request: ExecRequest) -> ExecResult:
        """See the port."""
        if self._exit is not None:
            raise Unavailable("the machine ended")
        return ExecResult(exit_code=0, exit_signal=0, stdout=" ".join(request.argv).encode() + request.stdin, stderr=b"")

    async def processes(self) -> list[ProcessStat]:
        """See the port."""
        return [ProcessStat(pid=1, stime=0, rtime=0, cpu=0, rss=4096, command="init", directory="/")]

    async def suspend(self) -> None:
        """See the port."""
        self.end(RunExit(code=-1, message="suspended"))

    async def detach(self) -> None:
        """See the port."""


class FakeLauncher:
    """Implements castoff.lifecycle.launcher.Launcher.

    Args:
        world: Where its machines run.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def check(self, config: MachineConfig) -> None:
        """See the port."""

    async def resolve(self, image: str) -> str:
        """See the port."""
        if image in self._world.missing:
            raise NotFound(f"no image {image!r}")
        return f"sha256:{hashlib.sha256(image.encode()).hexdigest()}"

    async def launch(self, launch: Launch) -> Run:
        """See the port."""
        await asyncio.sleep(0)
        if launch.config.image in self._world.failing:
            raise Unavailable(f"{launch.config.image} does not boot")
        self._world.launches.append(launch)
        self._world.disks[launch.machine] = self._world.disks.get(launch.machine, 0) + launch.fresh
        run = self._world.running[launch.machine] = FakeRun(self._world, launch)
        return run

    async def reattach(self, launch: Launch) -> Run | None:
        """See the port."""
        return self._world.running.get(launch.machine)

    async def discard(self, machine: MachineId) -> None:
        """See the port."""
        if machine in self._world.running:
            await self._world.running[machine].kill()
        self._world.disks.pop(machine, None)

    async def machines(self) -> list[MachineId]:
        """See the port."""
        return [MachineId(machine) for machine in self._world.disks]
