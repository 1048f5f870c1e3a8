"""The port between a machine's lifecycle and whatever boots it.

Lifecycle of what it makes: ``launch`` boots a machine and returns once its command runs; the :class:`Run` then tells the
command's end, and is the way to it meanwhile. A run outlives the process that launched it: ``detach`` lets go of it and
``reattach`` of a later process takes it up again, at the byte of output where the last one stopped. What a machine keeps on
disk between two runs (a persistent rootfs, a snapshot of its memory) stays until ``discard``.

The lifecycle (castoff.lifecycle.supervisor) decides when; the launcher knows how, and nothing of states.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

from castoff.lifecycle.config import MachineConfig
from castoff.lifecycle.ports import Published
from castoff.machine.model import MachineId
from castoff.vmm.guest import GuestFile

__all__ = [
    "Connection",
    "Ending",
    "ExecRequest",
    "ExecResult",
    "HasVolumes",
    "Keeping",
    "Launch",
    "Launcher",
    "ListenSocket",
    "Probe",
    "ProcessStat",
    "Reachable",
    "Remembering",
    "Resumed",
    "Run",
    "RunExit",
    "Suspendable",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One boot of a machine.

    Attributes:
        machine: Its id.
        name: Its name, and host name unless the configuration has one.
        app: The app that it belongs to.
        version: The configuration's version: a ULID.
        digest: Of the image, when that version was made: this one boots, wherever its tag has moved since. Empty: not known.
        config: What it shall run, and how.
        env: Variables on top of the image's and under ``config.env``: the app's secrets, FLY_* and CASTOFF_*.
        processes: For each of ``config.processes``, in order: all of its variables on top of the image's.
        files: Written into the root filesystem before the command starts: ``config.files``, with their secrets looked up.
        volumes: For each of ``config.mounts``, in order: the file or block device that holds the volume.
        address, address6: The machine's own addresses; empty: it has none.
        ports: Of the host, that lead to it.
        fresh: Whether the root filesystem begins anew; else it goes on as the last run left it, where it is still here.
        resume: Whether the machine goes on from its memory, where that was kept; else what was kept of it is dropped.
    """

    machine: MachineId
    name: str
    app: str
    version: str
    config: MachineConfig
    digest: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    processes: tuple[Mapping[str, str], ...] = ()
    files: tuple[GuestFile, ...] = ()
    volumes: tuple[str, ...] = ()
    address: str = ""
    address6: str = ""
    ports: tuple[Published, ...] = ()
    fresh: bool = True
    resume: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunExit:
    """How a run ended.

    Attributes:
        code: The command's exit code, 128 + ``signal`` where a signal ended it; -1: the machine was lost without one.
        signal: The signal, or 0.
        out_of_memory: The guest's kernel killed a process for want of memory.
        message: Why there was no command, or how the machine was lost; empty otherwise.
    """

    code: int
    signal: int = 0
    out_of_memory: bool = False
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecRequest:
    """A command to execute in a running guest.

    Attributes:
        argv: Its words.
        stdin: What it reads.
        env: Variables on top of the machine's.
        timeout: Seconds; then it is killed.
        limit: Bytes of each output stream that are kept; the rest is thrown away.
    """

    argv: tuple[str, ...]
    stdin: bytes = b""
    env: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 60.0
    limit: int = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """How it ended, and what it wrote."""

    exit_code: int
    exit_signal: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True)
class ListenSocket:
    """Where a process listens: ``proto`` is tcp or udp, ``address`` has the port behind a colon."""

    proto: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStat:
    """A process of a guest, in clock ticks (proc(5)): ``stime`` of the kernel's work for it, ``rtime`` from the guest's boot
    to its start, ``cpu`` of all its work. ``rss`` in bytes."""

    pid: int
    stime: int
    rtime: int
    cpu: int
    rss: int
    command: str
    directory: str
    listen_sockets: tuple[ListenSocket, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A question to one of a machine's TCP ports.

    Attributes:
        port: Which.
        http: Whether a request is made, and its answer must be a 2xx; else it is enough that somebody listens.
        method, path: Of the request.
        headers: Of the request, in order, on top of Host and User-Agent.
        tls: Whether it goes over TLS.
        verify: Whether the server's certificate must be one that this host trusts, for ``server_name``.
        server_name: The name that TLS asks for; empty: the Host header's.
    """

    port: int
    http: bool = False
    method: str = "GET"
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    tls: bool = False
    verify: bool = True
    server_name: str = ""


class Connection(Protocol):
    """A connection to a port of a machine; for one reader and one writer."""

    async def read(self) -> bytes:
        """What came next; empty at the end."""
        ...

    async def write(self, data: bytes | memoryview) -> None:
        """Sends; returns when the machine has room for all of it."""
        ...

    async def end(self) -> None:
        """Sends no more; the server may still answer."""
        ...


class Run(Protocol):
    """A machine that runs."""

    async def wait(self) -> RunExit:
        """Waits for its end: the command's and then the VMM's. Any number of callers. Never raises for how it ended."""
        ...

    async def stop(self, signal: int, grace: float) -> None:
        """Sends ``signal`` to the command, kills the machine ``grace`` seconds later; returns at its end."""
        ...

    async def kill(self) -> None:
        """Ends it now. Idempotent."""
        ...

    async def signal(self, number: int) -> None:
        """Sends a signal to its command."""
        ...

    async def execute(self, request: ExecRequest) -> ExecResult:
        """Executes a command beside its own.

        Raises:
            Unavailable: It ended meanwhile.
            Invalid: No process can be given that.
        """
        ...

    async def processes(self) -> list[ProcessStat]:
        """The guest's processes, as its kernel tells."""
        ...

    async def read_files(self, path: str, sink: Callable[[bytes], Awaitable[None]]) -> None:
        """Gives ``sink`` a tar archive of the guest's file or directory at ``path``, piece by piece.

        Raises:
            NotFound: There is none; nothing was given then.
            CastoffError: What was given is not all.
        """
        ...

    async def write_files(self, path: str, archive: AsyncIterator[bytes]) -> None:
        """Puts a tar archive's files into the guest's directory at ``path``; or its one entry there, where nothing is.

        Raises:
            NotFound: There is no directory for it.
            CastoffError: It is no archive, or there is no room for it.
        """
        ...

    async def detach(self) -> None:
        """Lets go of it without ending it; what it writes from now on waits for the next one."""
        ...


@runtime_checkable
class Suspendable(Protocol):
    """A run whose VMM can keep its memory in a file."""

    def check_suspend(self) -> None:
        """Refuses at once what is known not to be possible.

        Raises:
            Unsupported: It cannot be done with this machine.
        """
        ...

    async def suspend(self) -> None:
        """Writes memory and devices down durably and ends the VMM; ``Launcher.launch`` with ``resume`` goes on from there.

        Raises:
            CastoffError: It cannot be done; it goes on running.
        """
        ...


@runtime_checkable
class Reachable(Protocol):
    """A run whose TCP ports can be reached from here, whatever network it has."""

    async def probe(self, probe: Probe) -> str:
        """Asks one of its ports; what it answered, as a line. The caller sets a time limit.

        Raises:
            CastoffError: It did not answer as it should; the message tells how.
        """
        ...

    async def dial(self, port: int, use: Callable[[Connection], Awaitable[T]]) -> T:
        """Connects to one of its ports; what ``use`` makes of the connection, which ends with it.

        Raises:
            Invalid: There is no such port.
            Unavailable: Nobody listens there, or the machine ended.
            Unsupported: An older castoff booted it.
        """
        ...

    def ready(self) -> None:
        """A check has passed: the machine does what it was started for. The first call counts."""
        ...


@runtime_checkable
class HasVolumes(Protocol):
    """A run whose volumes can be looked after while it has them mounted; each is named by its file, as in ``Launch.volumes``."""

    async def grow_volume(self, file: str, size: int) -> None:
        """Grows a volume's file, drive and filesystem to ``size`` bytes.

        Raises:
            Unsupported: It cannot be done with this machine while it runs.
            CastoffError: It could not be done; the machine's next start does it.
        """
        ...

    async def sync_volume(self, file: str) -> None:
        """Has the guest flush a volume's filesystem.

        Raises:
            CastoffError: It does not, or not in time.
        """
        ...


@runtime_checkable
class Resumed(Protocol):
    """A run that knows whether it went on from its memory."""

    began_cold: str
    """Why it did not, though it should have; empty: it did, or should not."""


class Launcher(Protocol):
    """Boots machines."""

    def check(self, config: MachineConfig) -> None:
        """Refuses a configuration of which it knows that it cannot be booted here.

        Raises:
            Unsupported: It asks for what this host, or castoff, has not.
            Invalid: It contradicts itself.
        """
        ...

    async def resolve(self, image: str) -> str:
        """The digest (``sha256:...``) of the image that a reference names now, for this host's platform.

        Raises:
            CastoffError: It is no reference, or there is no such image.
        """
        ...

    async def launch(self, launch: Launch) -> Run:
        """Boots a machine; returns once its command runs. What a failed launch made is undone.

        Raises:
            CastoffError: It could not be booted.
        """
        ...

    async def reattach(self, launch: Launch) -> Run | None:
        """Takes up a machine that an earlier process launched; None when it does not run.

        Args:
            launch: What it is; without environment, files and volumes.

        Raises:
            CastoffError: Nobody can tell whether it runs.
        """
        ...

    async def discard(self, machine: MachineId) -> None:
        """Ends the machine where it runs and deletes all that it has on disk. Idempotent."""
        ...

    async def machines(self) -> list[MachineId]:
        """Those that have something on disk here, for reconciliation."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """A launcher that knows how a machine ended though whoever waited for that was killed."""

    async def last_exit(self, machine: MachineId) -> RunExit | None:
        """How its last run ended; None: it goes on, was lost or killed, or nobody knows."""
        ...


@runtime_checkable
class Keeping(Protocol):
    """A launcher whose runs may be suspended."""

    async def keeps(self, machine: MachineId) -> bool:
        """Whether a machine's memory is kept, whole."""
        ...

    async def forget(self, machine: MachineId) -> None:
        """Drops a machine's memory; its root filesystem stays. Idempotent."""
        ...


@runtime_checkable
class Ending(Protocol):
    """A launcher that can end what does not answer."""

    async def end(self, machine: MachineId) -> None:
        """Ends what runs of a machine at once; what it has on disk stays. Idempotent."""
        ...
