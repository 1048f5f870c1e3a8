"""The host's end of the guest channel: a connection to the guest's init, and through it to the machine's command and others.

One task reads the socket and sorts frames into sessions (castoff.vmm.guest_session).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from castoff.errors import CastoffError, Unavailable
from castoff.vmm import frames
from castoff.vmm.guest import GuestSettings, encode_settings
from castoff.vmm.guest_session import Event, GuestSession

if TYPE_CHECKING:
    from castoff.vmm.guest_processes import GuestProcess
    from castoff.vmm.vmm import VmmHandle

__all__ = ["GuestChannel", "GuestSilent"]

_MAX_SESSIONS: Final = 0xFFFF


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
        from castoff.vmm.guest_processes import LISTING, read_processes  # a run that nobody asks for a list goes without

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
