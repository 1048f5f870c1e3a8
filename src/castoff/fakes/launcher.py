"""A launcher whose machines run in memory. They outlive it: another launcher over the same :class:`World` takes them up."""

from __future__ import annotations

import asyncio
import hashlib
import signal as signals
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from castoff.errors import Conflict, NotFound, Unavailable, Unsupported
from castoff.lifecycle.config import MachineConfig
from castoff.lifecycle.launcher import Connection, ExecRequest, ExecResult, Launch, Probe, ProcessStat, Run, RunExit
from castoff.lifecycle.statistics import Statistics
from castoff.machine.model import MachineId

__all__ = ["FakeLauncher", "FakeRun", "World"]

T = TypeVar("T")


class World:
    """The host's machines, apart from any agent.

    Attributes:
        running: Those that run.
        disks: Those that have something on disk; how often each was begun anew.
        launches: Every launch, in order.
        missing: Images that do not exist.
        failing: Images whose launch fails.
        hanging: Images whose launch takes for ever.
        ending: Images whose command ends at once, with that exit code.
        stubborn: Images whose command heeds no signal.
        unsuspendable: Images whose machines cannot be suspended.
        stalling: Images whose machines take for ever to suspend.
        forgetful: Images whose machines' memory turns out to be broken.
        suspended: Machines whose memory is kept.
        resumed: How often a machine went on from its memory.
        files: What each machine has at a path: tar archives.
        rigid: Images whose VMM cannot tell the guest of a larger drive.
        grown: Volumes that grew while a machine had them: its id, the file, and bytes.
        synced: Volumes that a machine flushed: its id and the file.
        unreachable: Machines of which nobody can tell whether they run.
        ports: What servers in machines answer to a probe, by port; None: they never do. At other ports nobody listens.
        probes: Every probe that was made: the machine, and of what.
        ready: Machines of which it was told that they are, as often as it was.
    """

    def __init__(self) -> None:
        self.running: dict[str, FakeRun] = {}
        self.disks: dict[str, int] = {}
        self.launches: list[Launch] = []
        self.missing: set[str] = set()
        self.failing: set[str] = set()
        self.hanging: set[str] = set()
        self.ending: dict[str, int] = {}
        self.stubborn: set[str] = set()
        self.unsuspendable: set[str] = set()
        self.stalling: set[str] = set()
        self.forgetful: set[str] = set()
        self.suspended: set[str] = set()
        self.resumed: dict[str, int] = {}
        self.unreachable: set[str] = set()
        self.rigid: set[str] = set()
        self.grown: list[tuple[str, str, int]] = []
        self.synced: list[tuple[str, str]] = []
        self.ports: dict[int, str | None] = {}
        self.probes: list[tuple[str, Probe]] = []
        self.ready: list[str] = []

        self.files: dict[tuple[str, str], bytes] = {}

    def exit(self, machine: str, code: int = 0, *, out_of_memory: bool = False) -> None:
        """A machine's command ends by itself."""
        self.running[machine].end(RunExit(code=code, out_of_memory=out_of_memory))


class FakeRun:
    """A run in memory; suspendable. Its ``execute`` gives back what it is given."""

    def __init__(self, world: World, launch: Launch) -> None:
        self.launch = launch
        self.signals: list[int] = []
        self.began_cold = ""
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
        if self.launch.config.image in self._world.stubborn and signal != signals.SIGKILL:
            try:
                await asyncio.wait_for(self._ended.wait(), grace)
            except TimeoutError:
                await self.kill()
            return
        self.end(RunExit(code=128 + signal, signal=signal))

    async def kill(self) -> None:
        """See the port."""
        self.end(RunExit(code=137, signal=9))

    async def signal(self, number: int) -> None:
        """See the port."""
        if self._exit is not None:
            raise Unavailable("the machine ended")
        self.signals.append(number)
        if number == signals.SIGKILL:
            await self.kill()

    async def execute(self, request: ExecRequest) -> ExecResult:
        """See the port."""
        if self._exit is not None:
            raise Unavailable("the machine ended")
        return ExecResult(exit_code=0, exit_signal=0, stdout=" ".join(request.argv).encode() + request.stdin, stderr=b"")

    async def processes(self) -> list[ProcessStat]:
        """See the port."""
        return [ProcessStat(pid=1, stime=0, rtime=0, cpu=0, rss=4096, command="init", directory="/")]

    async def statistics(self) -> Statistics:
        """See castoff.lifecycle.statistics.Measured. A machine in no group, whose guest says nothing."""
        return Statistics(host=None, why="it has no guest")

    async def probe(self, probe: Probe) -> str:
        """See castoff.lifecycle.launcher.Reachable."""
        self._world.probes.append((self.launch.machine, probe))
        if self._exit is not None:
            raise Unavailable("the machine ended")
        if probe.port not in self._world.ports:
            raise Unavailable(f"connect to port {probe.port}: Connection refused")
        answer = self._world.ports[probe.port]
        if answer is None:
            await asyncio.Event().wait()
            raise AssertionError
        return answer

    async def dial(self, port: int, use: Callable[[Connection], Awaitable[T]]) -> T:
        """See castoff.lifecycle.launcher.Reachable. The server says what it is told."""
        if port not in self._world.ports:
            raise Unavailable(f"connect to port {port}: Connection refused")
        return await use(_Echo())

    def ready(self) -> None:
        """See castoff.lifecycle.launcher.Reachable."""
        self._world.ready.append(self.launch.machine)

    async def read_files(self, path: str, sink: Callable[[bytes], Awaitable[None]]) -> None:
        """See the port. What was written at ``path``."""
        if (self.launch.machine, path) not in self._world.files:
            raise NotFound(f"in the machine: {path}: No such file or directory")
        data = self._world.files[self.launch.machine, path]
        for at in range(0, len(data), 65536):
            await sink(data[at : at + 65536])

    async def write_files(self, path: str, archive: AsyncIterator[bytes]) -> None:
        """See the port."""
        self._world.files[self.launch.machine, path] = b"".join([piece async for piece in archive])

    async def grow_volume(self, file: str, size: int) -> None:
        """See castoff.lifecycle.launcher.HasVolumes."""
        if self.launch.config.image in self._world.rigid:
            raise Unsupported("this machine's VMM cannot tell it of a larger drive")
        self._world.grown.append((self.launch.machine, file, size))

    async def sync_volume(self, file: str) -> None:
        """See castoff.lifecycle.launcher.HasVolumes."""
        if self._exit is not None:
            raise Unavailable("the machine ended")
        self._world.synced.append((self.launch.machine, file))

    def check_suspend(self) -> None:
        """See the port."""
        if self.launch.config.image in self._world.unsuspendable:
            raise Unsupported("this machine cannot be suspended")

    async def suspend(self) -> None:
        """See the port."""
        if self._exit is not None:
            raise Unavailable("the machine ended")
        if self.launch.config.image in self._world.stalling:
            await asyncio.Event().wait()
        self._world.suspended.add(self.launch.machine)
        self.end(RunExit(code=-1, message="suspended"))

    async def detach(self) -> None:
        """See the port."""


class _Echo:
    """A connection to a server that says what it is told."""

    def __init__(self) -> None:
        self._said: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self) -> bytes:
        return await self._said.get()

    async def write(self, data: bytes | memoryview) -> None:
        self._said.put_nowait(bytes(data))

    async def end(self) -> None:
        self._said.put_nowait(b"")


class FakeLauncher:
    """Implements castoff.lifecycle.launcher.Launcher, Keeping and Ending.

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
        world, image = self._world, launch.config.image
        if launch.machine in world.running:
            raise Conflict(f"machine {launch.machine} runs already")
        await self.resolve(image)
        if image in world.failing:
            raise Unavailable(f"{image} does not boot")
        if image in world.hanging:
            await asyncio.Event().wait()
        world.launches.append(launch)
        kept = launch.machine in world.suspended and image not in world.forgetful
        if launch.resume and kept:
            world.resumed[launch.machine] = world.resumed.get(launch.machine, 0) + 1
        else:
            world.disks[launch.machine] = world.disks.get(launch.machine, 0) + launch.fresh
        world.suspended.discard(launch.machine)
        run = world.running[launch.machine] = FakeRun(world, launch)
        run.began_cold = "its memory is not what was written" if launch.resume and not kept else ""
        if image in world.ending:
            run.end(RunExit(code=world.ending[image]))
        return run

    async def reattach(self, launch: Launch) -> Run | None:
        """See the port."""
        if launch.machine in self._world.unreachable:
            raise Unavailable(f"machine {launch.machine} does not answer")
        return self._world.running.get(launch.machine)

    async def end(self, machine: MachineId) -> None:
        """See castoff.lifecycle.launcher.Ending."""
        if machine in self._world.running:
            await self._world.running[machine].kill()

    async def discard(self, machine: MachineId) -> None:
        """See the port."""
        if machine in self._world.running:
            await self._world.running[machine].kill()
        self._world.disks.pop(machine, None)
        self._world.suspended.discard(machine)

    async def keeps(self, machine: MachineId) -> bool:
        """See castoff.lifecycle.launcher.Keeping."""
        return machine in self._world.suspended

    async def forget(self, machine: MachineId) -> None:
        """See castoff.lifecycle.launcher.Keeping."""
        self._world.suspended.discard(machine)

    async def machines(self) -> list[MachineId]:
        """See the port."""
        return [MachineId(machine) for machine in self._world.disks]
