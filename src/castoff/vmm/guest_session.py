"""A process in the guest, as its host has it: what happens to it, in order, and what is sent to it.

Its consumer takes its events and thereby lets the guest send more, so a slow reader of one stream holds up nothing else, loses
nothing and costs at most the windows of castoff.vmm.frames in memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from castoff.errors import Invalid
from castoff.vmm import frames

if TYPE_CHECKING:
    from castoff.vmm.channel import GuestChannel

__all__ = ["Event", "Exit", "GuestSession", "Output", "Ready", "Told"]

_ACKNOWLEDGE_EVERY: Final = 64 * 1024
_MAX_EVENTS: Final = 4096
"""Events of one session that may wait: a guest that switches streams at every byte would otherwise cost much memory."""


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
