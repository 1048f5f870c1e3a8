"""A running machine, as whoever created it holds it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from castoff.errors import CastoffError, Internal, NoSpace, Unavailable
from castoff.machine.model import MachineId, MachineRecord, MachineState
from castoff.machine.records import MachineRecords
from castoff.machine.removal import remove_machine
from castoff.rootfs.context import ProviderContext
from castoff.store.builds import uninterrupted
from castoff.timeline import step
from castoff.vmm.channel import GuestChannel
from castoff.vmm.guest import GuestSettings
from castoff.vmm.guest_session import Exit, Output, Ready, Told
from castoff.vmm.limits import why_killed
from castoff.vmm.process import last_lines
from castoff.vmm.vmm import VmmHandle

if TYPE_CHECKING:
    from castoff.machine.hydration import Hydration

__all__ = ["Machine", "MachineLost", "console_tail", "lost"]

_TAIL = 8 * 1024
_KILLED = 128 + signal.SIGKILL


class MachineLost(Unavailable):
    """The machine ended, or never began to answer, without its command's exit code.

    Args:
        what: What happened.
        console: The end of the guest kernel's console.
        out_of_memory: The host killed its VMM for want of memory.
    """

    def __init__(self, what: str, *, console: str, out_of_memory: bool = False) -> None:
        nothing = "its console is empty: give it more --memory, or another --kernel"
        beyond = "the VMM needs more than vmm.limits.memory gives it beyond its guest's, or the host has too many machines"
        super().__init__(what, hint=beyond if out_of_memory else "its console tells why" if console else nothing)
        self.console = console
        self.out_of_memory = out_of_memory


class Machine:
    """A machine whose command was started. An async context manager: its end removes the machine.

    Attributes:
        record: What is written down of it.
        directory: Its own directory.
        records: Where it is written down.
        guest: What it was told to run; None where it was found again.
    """

    def __init__(
        self,
        record: MachineRecord,
        *,
        records: MachineRecords,
        providers: ProviderContext,
        handle: VmmHandle,
        channel: GuestChannel,
        hydration: Hydration | None = None,
        guest: GuestSettings | None = None,
    ) -> None:
        self.record = record
        self.guest = guest
        self.directory = records.path(record.id)
        self.records = records
        self._handle = handle
        self._channel = channel
        self._providers = providers
        self._hydration = hydration
        self._events = channel.events()
        self._exit: Exit | None = None
        self._killed = False
        self._writing = asyncio.Lock()

    @property
    def id(self) -> MachineId:
        """Its id."""
        return self.record.id

    @property
    def console(self) -> Path:
        """The guest kernel's console output so far."""
        return self._handle.console

    @property
    def exit(self) -> Exit | None:
        """How its command ended; None before :meth:`wait` has returned."""
        return self._exit

    async def ready(self) -> Ready | None:
        """Waits until the command runs; None where it could not be executed (:meth:`wait` tells then).

        Raises:
            MachineLost: The machine ended.
        """
        with self._lost():
            async for event in self._events:
                if isinstance(event, Ready):
                    return event
                if isinstance(event, Exit):
                    self._exit = event
        return None

    async def output(self) -> AsyncIterator[Output]:
        """What the command writes, until it ends: ``stream`` 1 or 2 (with a terminal always 1) and ``data``.

        Raises:
            MachineLost: The machine ended before the command did.
        """
        while self._exit is None:
            event = None
            with self._lost():
                event = await anext(self._events, None)
            if isinstance(event, Exit):
                self._exit = event
            if isinstance(event, Output | Told) or (isinstance(event, Exit) and event.code == 0):
                self.mark_ready()
            if isinstance(event, Output):
                yield event
            elif event is None:
                return

    async def wait(self) -> int:
        """The command's exit code: its own, 128 + n where signal n ended it, 126 or 127 where it could not be executed.

        Output that nobody took is thrown away: the guest would wait for ever with it.

        Raises:
            MachineLost: The machine ended before the command did.
        """
        async for _ in self.output():
            pass
        return _KILLED if self._exit is None else self._exit.code

    async def write(self, data: bytes) -> None:
        """Gives the command input; waits while it reads slowly. What comes after its end is thrown away."""
        await self._channel.send_stdin(data)

    async def close_input(self) -> None:
        """Ends the command's input."""
        await self._channel.close_stdin()

    async def signal(self, number: int) -> None:
        """Sends a signal to the command, by its Linux number."""
        await self._channel.signal(number)

    async def resize(self, *, columns: int, rows: int) -> None:
        """Tells the terminal's size."""
        await self._channel.resize(rows, columns)

    async def stop(self, grace: float = 10.0) -> int:
        """Asks the command to end, kills it after ``grace`` seconds, and waits.

        Returns:
            The exit code, as :meth:`wait`.
        """
        await self._channel.shutdown(grace)
        return await self.wait()

    async def kill(self) -> None:
        """Ends the machine now; its command's exit code is 137 then. Idempotent."""
        self._killed = True
        await self._handle.kill()

    def remember_exit(self, before: Callable[[], Awaitable[None]]) -> None:
        """Has the command's exit written down before the guest is told that it is taken, and powers off: nobody could ask for it
        again, and whoever holds this machine may be killed at any instant.

        Args:
            before: Awaited first: what else was taken until then.
        """

        async def remember(exit: Exit) -> None:
            await before()
            with contextlib.suppress(Internal, NoSpace):  # `close` writes it once more, and tells
                await self.write_down(lambda record: _with_exit(record, exit))

        self._channel.command.before_taken = remember

    async def write_down(self, change: Callable[[MachineRecord], MachineRecord]) -> None:
        """Changes its record, one change at a time; on the disk, too, when it returns, and also where that is cancelled.

        Raises:
            Unavailable: The machine is suspended: what its guest still said, it says again.
            Internal, NoSpace: The disk refuses; ``record`` is changed all the same.
        """
        async with self._writing:
            if self.record.state == MachineState.SUSPENDED:
                raise Unavailable("the machine is suspended", hint="start it")
            self.record = change(self.record)
            await uninterrupted(self.records.update, self.record)

    async def detach(self) -> None:
        """Lets go of the machine, which goes on; what it writes from now on waits for whoever takes it up."""
        await self._channel.close()
        if self._hydration is not None:
            await self._hydration.close()

    @property
    def handle(self) -> VmmHandle:
        """Its VMM."""
        return self._handle

    async def close(self) -> None:
        """Ends the machine, and removes all that it had, or writes its end down where it is to be kept. Idempotent."""
        await self.detach()
        if self.record.keep:
            await self._retire()
            return
        with step("machine.machine", remove=self.id):
            await self._handle.kill()
            await remove_machine(self.record, self.records, self._providers)

    async def __aenter__(self) -> Machine:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def mark_ready(self) -> None:
        """It has said its first word, or that it is ready, or passed a check, or was done without: what it was started for, it
        does. The first call counts."""
        if self._hydration is not None:
            self._hydration.ready()

    async def _retire(self) -> None:
        """Keeps the directory: the guest unmounts its disk and powers off, then the record tells that it ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                await self._handle.wait()
        await self._handle.kill()
        if self._exit is not None:
            self.record = _with_exit(self.record, self._exit)
        self.record = msgspec.structs.replace(self.record, state=MachineState.EXITED)
        await asyncio.to_thread(self.records.update, self.record)

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        """Tells a machine that was lost from one that we killed, and lets its console speak."""
        try:
            yield
        except CastoffError as error:
            if not self._killed:
                raise lost(error, self._handle) from error


def _with_exit(record: MachineRecord, exit: Exit) -> MachineRecord:
    return msgspec.structs.replace(
        record, exit_code=exit.code, exit_signal=exit.signal, out_of_memory=exit.out_of_memory, exit_message=exit.message
    )


def lost(error: CastoffError, handle: VmmHandle) -> MachineLost:
    """``error`` of the guest channel as the machine's end, with what its console says, or else its VMM."""
    if isinstance(error, Unavailable):  # how the connection broke is of no interest: it did when the VMM ended
        console = console_tail(handle.console)
        if killed := why_killed(handle.group):
            return MachineLost(f"the machine ended before its command did: {killed}", console=console, out_of_memory=True)
        said = "" if console else last_lines(handle.console.with_name("vmm.log"))
        return MachineLost(f"the machine ended before its command did{said and ': '}{said}", console=console)
    return MachineLost(error.what, console=console_tail(handle.console))


def console_tail(path: Path) -> str:
    """The end of a console log, a few lines of printable text."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            text = file.read(_TAIL).decode(errors="replace")
    except OSError:
        return ""
    lines = ["".join(letter for letter in line if letter.isprintable()) for line in text.splitlines()]
    return "\n".join([line for line in lines if line][-20:])
