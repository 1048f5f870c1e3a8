"""The host's end of the guest channel: the command's streams, exit and signals, and commands executed beside it.

One task reads the socket and sorts frames into sessions; each session's consumer takes its events and thereby lets the
guest send more, so a slow reader of one stream holds up nothing else, loses nothing and costs at most the windows of
castoff.vmm.frames in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from castoff.errors import CastoffError, Invalid, Unavailable
from castoff.vmm import frames
from castoff.vmm.guest import GuestSettings, encode_settings

if TYPE_CHECKING:
    from castoff.vmm.guest_processes import GuestProcess
    from castoff.vmm.vmm import VmmHandle

__all__ = ["Event", "Exit", "GuestChannel", "GuestSession", "GuestSilent", "Output", "Ready", "Told"]

_ACKNOWLEDGE_EVERY: Final = 64 * 1024
_MAX_EVENTS: Final = 4096
"""Events of one session that may wait: a guest that switches streams at every byte would otherwise cost much memory."""
_MAX_SESSIONS: Final = 0xFFFF


@dataclass(frozen=True, slots=True)
class Ready:
    """The command runs. Seconds since the guest's kernel started its clock.

    Attributes:
        init_seconds: When the guest init started.
        driver_seconds: How long the kernel then took to load drivers and mount the root: all that one with both built in
            does before its init starts.
        exec_seconds: When the command took over.
    """

    init_seconds: float
    driver_seconds: float
    exec_seconds: float


@dataclass(frozen=True, slots=True)
class Told:
    """The command, or something that it started, ran ``castoff ready``: it does what it is there for."""


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes that the command wrote to stream 1 (stdout; with a terminal: both) or 2 (stderr), from ``offset`` on."""

    stream: int
    data: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class Exit:
    """The command ended.

    Attributes:
        code: Its exit code, or 128 + ``signal``; 125 to 127 with a ``message``: it was never started.
        signal: The signal that ended it, or 0.
        out_of_memory: The guest's kernel killed a process for want of memory while it ran.
        message: Why there was no command; empty if there was.
    """

    code: int
    signal: int
    out_of_memory: bool
    message: str


Event = Ready | Told | Output | Exit


class GuestSession:
    """A process in the guest: the machine's command, or one executed beside it. Made by :class:`GuestChannel`."""

    def __init__(self, channel: GuestChannel, number: int) -> None:
        self._channel = channel
        self._number = number
        self._events: deque[Ready | Told | Exit | frames.Data] = deque()
        self._wake = asyncio.Event()
        self._received: dict[int, int | None] = {1: None, 2: None}
        self._taken = {1: 0, 2: 0}
        self._acknowledged = {1: 0, 2: 0}
        self._sent: int | None = None
        self._window = asyncio.Event()
        self._input_taken = 0
        self.exit: Exit | None = None
        """How the command ended; None as long as its consumer was not told."""
        self.before_taken: Callable[[Exit], Awaitable[None]] | None = None
        """Awaited with the exit before the guest is told that it is taken: nobody can ask for it again then."""

    async def events(self) -> AsyncIterator[Event]:
        """What happens, in order; ends after the :class:`Exit`. For one consumer.

        Raises:
            Unavailable: The machine or the connection ended before the command did.
            Invalid: The guest broke the protocol.
        """
        while self.exit is None:
            while not self._events:
                self._channel.check()
                self._wake.clear()
                await self._wake.wait()
            event = self._events.popleft()
            self._channel.resume()
            if isinstance(event, frames.Data):
                yield Output(event.stream, event.data, event.offset)
                await self._take(event)
            elif isinstance(event, Exit):
                if self.before_taken is not None:
                    await self.before_taken(event)
                self.exit = event
                await self._channel.close_session(self._number)
                yield event
            else:
                yield event

    async def send_stdin(self, data: bytes | memoryview) -> None:
        """Sends input; returns when the guest has room for all of it.

        Raises:
            Unavailable: The machine or the connection ended.
        """
        view = memoryview(data)
        while view:
            room = await self._room()
            if not room:
                return  # the command ended: as a pipe's reader that is gone
            part = bytes(view[: min(room, frames.MAX_INPUT)])
            assert self._sent is not None
            frame = frames.encode_data(self._number, self._sent, part)
            self._sent += len(part)
            view = view[len(part) :]
            await self._channel.send(frame)

    async def close_stdin(self) -> None:
        """Ends the input."""
        await self._channel.send(frames.encode_end(self._number))

    async def signal(self, number: int) -> None:
        """Sends a signal to the process; SIGINT, SIGQUIT, SIGTSTP and SIGCONT to its whole group, as a terminal does."""
        await self._channel.send(frames.encode_signal(self._number, number))

    async def resize(self, rows: int, columns: int) -> None:
        """Tells the terminal's size."""
        await self._channel.send(frames.encode_resize(self._number, rows, columns))

    async def _room(self) -> int:
        """Bytes of input that the guest has room for, at least one; 0 when there is nobody left to read them."""
        while True:
            if self.exit is not None or any(isinstance(event, Exit) for event in self._events):
                return 0
            self._channel.check()
            if self._sent is not None and (room := frames.INPUT_WINDOW - (self._sent - self._input_taken)) > 0:
                return room
            self._window.clear()
            await self._window.wait()

    async def _take(self, event: frames.Data) -> None:
        stream = event.stream
        self._taken[stream] = event.offset + len(event.data)
        if self._taken[stream] - self._acknowledged[stream] >= _ACKNOWLEDGE_EVERY:
            self._acknowledged[stream] = self._taken[stream]
            await self._channel.acknowledge(self._number, stream, self._taken[stream])

    # --- what the channel's reader calls -----------------------------------------------------------------------------

    def wake(self) -> None:
        """Lets whoever waits look again."""
        self._wake.set()
        self._window.set()

    def is_full(self) -> bool:
        """Whether the reader should stop until the consumer has caught up."""
        return len(self._events) >= _MAX_EVENTS

    def receive(self, frame: frames.GuestFrame) -> None:
        """Takes a frame of the guest's.

        Raises:
            Invalid: It cannot follow what came before.
        """
        match frame:
            case frames.Data():
                self._receive_data(frame)
            case frames.End():
                if self._received[frame.stream] not in (None, frame.offset):
                    raise Invalid(f"the guest ended stream {frame.stream} in the wrong place", hint="stop the machine")
            case frames.Acknowledge():
                self._receive_acknowledge(frame.offset)
            case frames.Ready():
                self._events.append(Ready(frame.init_ns / 1e9, frame.drivers_ns / 1e9, frame.exec_ns / 1e9))
            case frames.Told():
                self._events.append(Told())
            case frames.Exit():
                self._events.append(Exit(frame.code, frame.signal, frame.out_of_memory, frame.message))
        self.wake()

    def _receive_data(self, frame: frames.Data) -> None:
        expected = self._received[frame.stream]
        if expected is None:  # a client that comes late begins where its predecessor stopped
            self._taken[frame.stream] = self._acknowledged[frame.stream] = expected = frame.offset
        end = frame.offset + len(frame.data)
        if frame.offset != expected or end - self._acknowledged[frame.stream] > frames.OUTPUT_WINDOW:
            raise Invalid(f"the guest sent what it must not on stream {frame.stream}", hint="stop the machine")
        self._received[frame.stream] = end
        last = self._events[-1] if self._events else None
        if isinstance(last, frames.Data) and last.stream == frame.stream and len(last.data) < 16384:
            self._events[-1] = frames.Data(frame.session, frame.stream, last.offset, last.data + frame.data)
        else:
            self._events.append(frame)

    def _receive_acknowledge(self, offset: int) -> None:
        if self._sent is None:
            self._sent = offset
        elif not self._input_taken <= offset <= self._sent:
            raise Invalid("the guest acknowledged input that it was not given", hint="stop the machine")
        self._input_taken = offset


class GuestSilent(Unavailable):
    """A guest did not answer in time. It may be slow, stopped or hung: that it ended nobody has said."""


class GuestChannel:
    """A connection to a guest's init. Made by :meth:`connect`; usable as a context manager.

    Attributes:
        command: The machine's own command (of its main channel only: the control channel tells nothing of it).
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, nonce: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = frames.Decoder(nonce)
        self._sessions: dict[int, GuestSession] = {}
        self._next = 1
        self._ended: CastoffError | None = None
        self._greeted = asyncio.Event()
        self._resumed = asyncio.Event()
        self.command = self._session(0)
        self._task = asyncio.create_task(self._read(), name="guest channel")

    @classmethod
    async def connect(cls, target: VmmHandle | Path, timeout: float, *, control: bool = False) -> GuestChannel:
        """Connects to a guest and waits until its init answers, which is when its kernel has booted.

        Args:
            target: The machine's handle, or the channel's socket.
            timeout: Seconds to wait, booting included.
            control: Connect to the handle's control channel: for a second client beside the one that has the streams.

        Raises:
            GuestSilent: Nobody answered in time.
            Unavailable: The machine ended.
            Invalid: Who answered is no guest init, or one of another version.
        """
        from castoff.vmm.sockets import connect_guest

        nonce = os.urandom(16)
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await connect_guest(target, control=control)
                channel = cls(reader, writer, nonce)
                try:
                    await channel.send(frames.encode_hello(nonce))
                    await channel._greeted.wait()
                    if not channel._decoder.welcome:
                        channel.check()  # what came after a welcome is told by the events, even if all ended since
                except BaseException:
                    await channel.close()
                    raise
        except TimeoutError as error:
            raise GuestSilent(
                f"the guest did not answer within {timeout:.0f} s", hint="its console log tells how far its kernel came"
            ) from error
        return channel

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection. The command goes on; what it writes from here on waits for the next client."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):  # it was broken already, which is as good as closed
            await self._writer.wait_closed()
        self._end(Unavailable("the connection to the guest was closed"))

    def events(self) -> AsyncIterator[Event]:
        """The command's events: see :meth:`GuestSession.events`."""
        return self.command.events()

    async def send_stdin(self, data: bytes | memoryview) -> None:
        """See :meth:`GuestSession.send_stdin`."""
        await self.command.send_stdin(data)

    async def close_stdin(self) -> None:
        """See :meth:`GuestSession.close_stdin`."""
        await self.command.close_stdin()

    async def signal(self, number: int) -> None:
        """See :meth:`GuestSession.signal`."""
        await self.command.signal(number)

    async def resize(self, rows: int, columns: int) -> None:
        """See :meth:`GuestSession.resize`."""
        await self.command.resize(rows, columns)

    async def shutdown(self, grace: float) -> None:
        """Asks the guest to end its command, by force after ``grace`` seconds, and to power off."""
        await self.send(frames.encode_shutdown(grace))

    async def set_clock(self) -> None:
        """Sets the guest's clock to the host's. A guest whose init knows nothing of that keeps its own."""
        await self.send(frames.encode_clock(time.time_ns()))

    async def execute(self, guest: GuestSettings) -> GuestSession:
        """Executes a command beside the machine's own; the settings' files and hostname are not used.

        Raises:
            Invalid: Settings that no process can be given.
            Unavailable: The machine or the connection ended.
        """
        settings = encode_settings(guest)
        while self._next in self._sessions:
            self._next = self._next % _MAX_SESSIONS + 1
        number = self._next
        self._next = self._next % _MAX_SESSIONS + 1
        session = self._session(number)
        for at in range(0, len(settings), frames.MAX_INPUT):
            await self.send(frames.encode_settings_part(number, settings[at : at + frames.MAX_INPUT]))
        await self.send(frames.encode_start(number))
        return session

    async def processes(self) -> list[GuestProcess]:
        """The guest's processes; see :func:`castoff.vmm.guest_processes.read_processes`."""
        from castoff.vmm.guest_processes import LISTING, read_processes  # here: it needs this module

        return await read_processes(await self.execute(LISTING))

    def _session(self, number: int) -> GuestSession:
        return self._sessions.setdefault(number, GuestSession(self, number))

    # --- what sessions call ------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises why the connection ended, if it did."""
        if self._ended is not None:
            raise self._ended

    def resume(self) -> None:
        """A session's consumer took something."""
        self._resumed.set()

    async def send(self, frame: bytes) -> None:
        """Writes a frame."""
        self.check()
        try:
            self._writer.write(frame)
            await self._writer.drain()
        except OSError as error:
            raise Unavailable(f"the connection to the guest broke: {error}", hint="did the machine end?") from error

    async def acknowledge(self, number: int, stream: int, offset: int) -> None:
        """Lets the guest send more of a stream; a connection that has ended is told by the next event."""
        if self._ended is None:
            await self.send(frames.encode_acknowledge(number, stream, offset))

    async def close_session(self, number: int) -> None:
        """Tells the guest that an exit code is taken."""
        if number:
            self._sessions.pop(number, None)
        if self._ended is None:
            await self.send(frames.encode_close(number))

    # --- the reader --------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(256 * 1024):
                for frame in self._decoder.feed(data):
                    await self._dispatch(frame)
                if self._decoder.welcome:
                    self._greeted.set()
            self._end(_machine_ended())
        except OSError:  # a reset: it ended with something of ours unread
            self._end(_machine_ended())
        except CastoffError as error:
            self._end(error)

    async def _dispatch(self, frame: frames.GuestFrame) -> None:
        session = self._sessions.get(frame.session)
        if session is None:
            return  # what a closed session still had to say
        while session.is_full():
            self._resumed.clear()
            await self._resumed.wait()
        session.receive(frame)

    def _end(self, error: CastoffError) -> None:
        self._ended = self._ended or error
        self._greeted.set()
        for session in self._sessions.values():
            session.wake()


def _machine_ended() -> Unavailable:
    return Unavailable("the machine ended before its command did", hint="its console log tells why")
