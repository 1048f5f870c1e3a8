"""What a machine of castoff.fakes.vmm does: the guest init's part of the guest channel, in a process of this host.

It serves both channels as guest/channel.c and guest/session.c do, from one loop without asyncio, so that a machine costs a
fork and no imports. Of several processes it runs the first.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable

from castoff.fakes.vmm_channel import Channel
from castoff.fakes.vmm_session import EXIT, WELCOME, WINDOW, Session, frame_of
from castoff.fakes.vmm_settings import Command, parse_settings

__all__ = ["Guest"]


class Guest:
    """A machine's inside.

    Args:
        listeners: Of the main channel and of the control channel.
        command: The machine's command.
        said: Writes a line to the console.
    """

    def __init__(self, listeners: tuple[socket.socket, socket.socket], command: Command, said: Callable[[str], None]) -> None:
        self._born = time.monotonic()
        self._channels = tuple(Channel(listener) for listener in listeners)
        for listener in listeners:
            listener.setblocking(False)
        self._command = Session(0, command, self._born)
        self._channels[0].sessions[0] = self._command
        self._closed = False
        self._kill_at: float | None = None
        self._waits_since: float | None = None
        said(f"stand-in: runs {command.argv[0]}")

    def run(self) -> None:
        """Serves until the command has ended and the host knows, as far as it wants to."""
        wakes, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        while not self._is_over():
            self._serve(wakes)
        for channel in self._channels:
            for session in channel.sessions.values():
                session.close()
            channel.hang_up()

    def _is_over(self) -> bool:
        if self._command.code is None:
            return False
        if self._closed:
            return True
        if self._channels[0].client is not None and not self._command.exit_sent:
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = time.monotonic()
        return self._waits_since is not None and time.monotonic() - self._waits_since > self._command.command.linger

    def _serve(self, wakes: int) -> None:
        poller = select.poll()
        poller.register(wakes, select.POLLIN)
        for channel in self._channels:
            if channel.client is None:
                poller.register(channel.listener, select.POLLIN)
            else:
                poller.register(channel.client, select.POLLIN | (select.POLLOUT if channel.out else 0))
            for session in channel.sessions.values():
                for stream in session.streams:
                    if stream.pipe >= 0 and len(stream.data) < WINDOW:
                        poller.register(stream.pipe, select.POLLIN)
                if session.input and session.input_pipe >= 0:
                    poller.register(session.input_pipe, select.POLLOUT)
        ready = {descriptor for descriptor, _ in poller.poll(self._timeout())}
        if wakes in ready:
            os.read(wakes, 4096)
        for number, channel in enumerate(self._channels):
            self._serve_channel(number, channel, ready)
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._command.signalled(signal.SIGKILL)

    def _serve_channel(self, number: int, channel: Channel, ready: set[int]) -> None:
        if channel.client is None:
            if channel.listener.fileno() in ready:
                channel.accept()
        elif channel.client.fileno() in ready:
            for frame in channel.read():
                self._take(number, channel, *frame)
        for session in channel.sessions.values():
            session.look()
            for stream in session.streams:
                if stream.pipe in ready:
                    stream.read()
            session.feed()
        channel.write()

    def _timeout(self) -> int | None:
        """Milliseconds until something is to be done without being asked."""
        times = [session.ends_at for channel in self._channels for session in channel.sessions.values() if session.code is None]
        if self._command.code is None:
            times.append(self._kill_at)
        else:
            times.append((self._waits_since or time.monotonic()) + self._command.command.linger)
        soonest = min((at for at in times if at is not None), default=float("inf"))
        return None if soonest == float("inf") else max(0, int((soonest - time.monotonic()) * 1000) + 1)

    def _take(self, number: int, channel: Channel, kind: int, stream: int, session: int, payload: bytes) -> None:
        if kind == 1 and len(payload) == 16:
            self._greet(channel, payload)
        elif not channel.greeted:
            return
        elif kind == 7:
            channel.gathered.setdefault(session, bytearray()).extend(payload)
        elif kind == 8:
            self._execute(channel, session)
        elif kind == 10 and len(payload) == 4:
            self._shut_down(struct.unpack("<I", payload)[0] / 1000)
        else:
            known = self._command if session == 0 else channel.sessions.get(session)
            if known is not None:
                self._take_for(channel, known, kind, stream, payload)

    def _greet(self, channel: Channel, nonce: bytes) -> None:
        channel.greeted = True
        channel.out.clear()
        channel.gathered.clear()
        channel.out += frame_of(WELCOME, b"castoff\n" + nonce + struct.pack("<I", 1))
        for number, session in list(channel.sessions.items()):
            if number == 0:
                session.forget_client()
            else:
                channel.sessions.pop(number).close()

    def _execute(self, channel: Channel, number: int) -> None:
        try:
            command = parse_settings(bytes(channel.gathered.pop(number, b"")))
        except ValueError as error:
            channel.out += frame_of(EXIT, struct.pack("<iiI", 125, 0, 0) + str(error).encode(), session=number)
            return
        if number not in channel.sessions:
            channel.sessions[number] = Session(number, command, self._born, self._command.command.argv)

    def _shut_down(self, grace: float) -> None:
        at = time.monotonic() + grace
        if self._kill_at is None:
            self._command.signalled(self._command.command.stop_signal)
        self._kill_at = at if self._kill_at is None else min(at, self._kill_at)

    def _take_for(self, channel: Channel, session: Session, kind: int, stream: int, payload: bytes) -> None:
        if kind == 2 and len(payload) > 8:
            session.take(struct.unpack_from("<Q", payload)[0], payload[8:])
        elif kind == 3:
            session.input_ends = True
        elif kind == 4 and stream in (1, 2) and len(payload) == 8:
            session.streams[stream - 1].acknowledge(struct.unpack("<Q", payload)[0])
        elif kind == 5 and len(payload) == 4:
            session.signalled(struct.unpack("<I", payload)[0])
        elif kind == 9 and session.code is not None:
            if session is self._command:
                self._closed = True
            else:
                channel.sessions.pop(session.number).close()
