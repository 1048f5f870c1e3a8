"""What a machine of castoff.fakes.vmm does: the guest init's part of the guest channel, in a process of this host.

It serves both channels as guest/channel.c and guest/session.c do, from one loop without asyncio, so that a machine costs a
fork and no imports. ``true``, ``false``, ``exit N``, ``echo WORDS``, ``sleep SECONDS`` (or ``infinity``) and ``serve PORT FILE``
(castoff.fakes.vmm_port) it does itself; any other command is a process of this host, as the machine's user, in this host's
filesystem. Of several processes it runs the first.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from castoff.fakes.vmm_port import answer, refusal

__all__ = ["Command", "Guest", "parse_settings", "read_settings"]

_HEADER: Final = struct.Struct("<BBHI")
_END: Final = 0xA5
_WINDOW: Final = 256 * 1024
_FRAME: Final = 32 * 1024 - _HEADER.size - 8
_STDIN: Final = 2
_LISTING: Final = 4
_DIAL: Final = 8
_WELCOME, _READY, _DATA, _END_OF_OUTPUT, _TAKEN, _EXIT = 16, 17, 18, 19, 20, 21


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, as the settings' records tell it."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    stdin: bool
    stop_signal: int
    linger: float
    listing: bool = False
    dials: bool = False


def parse_settings(data: bytes) -> Command:
    """Guest settings (docs/formats.md) into what a stand-in heeds of them.

    Raises:
        ValueError: They are broken.
    """
    argv: list[str] = []
    env: dict[str, str] = {}
    cwd, flags, stop, linger = "/", 0, int(signal.SIGTERM), 10_000
    at = 0
    while at < len(data):
        tag, length = struct.unpack_from("<BI", data, at) if len(data) - at >= 6 else (0, 0)
        value = data[at + 5 : at + 5 + length]
        at += 6 + length
        if not tag or at > len(data):
            raise ValueError("broken settings")
        if tag == 1:
            argv.append(os.fsdecode(value))
        elif tag == 2:
            name, _, text = os.fsdecode(value).partition("=")
            env[name] = text
        elif tag == 3:
            cwd = os.fsdecode(value)
        elif tag == 6:
            flags = int.from_bytes(value, "little")
        elif tag == 10:
            stop = int.from_bytes(value, "little")
        elif tag == 11:
            linger = int.from_bytes(value, "little")
    if not argv:
        raise ValueError("broken settings")
    listing, dials = bool(flags & _LISTING), bool(flags & _DIAL)
    return Command(tuple(argv), env, cwd, bool(flags & _STDIN), stop, linger / 1000, listing, dials)


@dataclass(slots=True)
class _Stream:
    """A stream to the host: what it has not acknowledged, and how far it was told."""

    number: int
    pipe: int = -1
    data: bytearray = field(default_factory=bytearray)
    acked: int = 0
    sent: int = 0
    end_sent: bool = False

    @property
    def head(self) -> int:
        return self.acked + len(self.data)

    def read(self) -> None:
        try:
            data = os.read(self.pipe, min(65536, _WINDOW - len(self.data)))
        except BlockingIOError:
            return
        self.data += data
        if not data:
            os.close(self.pipe)
            self.pipe = -1

    def frames(self, session: int) -> Iterator[bytes]:
        while self.sent < self.head:
            at = self.sent - self.acked
            part = bytes(self.data[at : at + _FRAME])
            yield _frame(_DATA, struct.pack("<Q", self.sent) + part, self.number, session)
            self.sent += len(part)
        if self.pipe < 0 and not self.end_sent:
            yield _frame(_END_OF_OUTPUT, struct.pack("<Q", self.head), self.number, session)
            self.end_sent = True

    def acknowledge(self, offset: int) -> None:
        if self.acked < offset <= self.sent:
            del self.data[: offset - self.acked]
            self.acked = offset


def _frame(kind: int, payload: bytes = b"", stream: int = 0, session: int = 0) -> bytes:
    return _HEADER.pack(kind, stream, session, len(payload)) + payload


class _Session:
    """A command, and what the host is still to be told of it."""

    def __init__(self, number: int, command: Command, born: float, server: tuple[str, ...] = ()) -> None:
        self.number = number
        self.server = server if command.dials else ()
        self.command = command
        self.streams = (_Stream(1), _Stream(2))
        self.code: int | None = None
        self.signal = 0
        self.message = ""
        self.ends_at: float | None = None
        self.input = bytearray()
        self.received = self.given = 0
        self.input_ends = False
        self.input_pipe = -1
        self.ready_sent = self.exit_sent = False
        self.taken_sent: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._born = born
        if not self._is_done_here():
            self._spawn()
        self._started = time.monotonic()

    def _is_done_here(self) -> bool:
        """Whether it needs no process; such a one's input is taken and thrown away."""
        if self.command.listing:
            self.streams[0].data += _listed()
            self.code = 0
            return True
        if self.command.dials:
            self.message = refusal(self.command.argv[-1], self.server)
            self.code, self.ends_at = (125, None) if self.message else (None, float("inf"))
            return True
        name, *words = self.command.argv
        match (os.path.basename(name), words):  # noqa: PTH119 - no Path a command
            case ("true", []):
                self.code = 0
            case ("false", []):
                self.code = 1
            case ("exit", [number]) if number.isdecimal():
                self.code = int(number) & 0xFF
            case ("echo", _) if sum(map(len, words)) < _FRAME:
                self.streams[0].data += os.fsencode(" ".join(words)) + b"\n"
                self.code = 0
            case ("sleep", ["infinity"]) | ("serve", [_, _]):
                self.ends_at = float("inf")
            case ("sleep", [seconds]) if seconds.replace(".", "", 1).isdecimal():
                self.ends_at = time.monotonic() + float(seconds)
            case _:
                return False
        return True

    def _spawn(self) -> None:
        env = {"PATH": os.defpath} | self.command.env
        try:
            process = subprocess.Popen(
                self.command.argv,
                stdin=subprocess.PIPE if self.command.stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self.command.cwd,
                env=env,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            self.code = 127 if isinstance(error, FileNotFoundError) else 126
            self.message = f"cannot execute {self.command.argv[0]}: {error.strerror}"
            return
        self._process = process
        assert process.stdout is not None and process.stderr is not None
        for stream, pipe in zip(self.streams, (process.stdout, process.stderr), strict=True):
            stream.pipe = _kept(pipe.fileno())
        if process.stdin is not None:
            self.input_pipe = _kept(process.stdin.fileno())
        for end in (process.stdin, process.stdout, process.stderr):
            if end is not None:
                end.close()

    def look(self) -> None:
        """Takes notice of its end."""
        if self.code is not None:
            return
        if self._process is not None:
            status = self._process.poll()
            if status is not None:
                self._ended(-status if status < 0 else 0, status)
        elif self.ends_at is not None and time.monotonic() >= self.ends_at:
            self.code = 0

    def _ended(self, by_signal: int, status: int) -> None:
        self.signal = by_signal
        self.code = 128 + by_signal if by_signal else status
        self.kill()  # the real init gives what is left behind 0.3 s, then it closes its streams

    def kill(self) -> None:
        """Ends all that it started."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):  # nobody is left
                os.killpg(self._process.pid, signal.SIGKILL)

    def signalled(self, number: int) -> None:
        """A signal of the host's."""
        if self.code is not None or not 1 <= number <= 64:
            return
        if self._process is None:
            if number not in (signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH):
                self._ended(number, 0)
        elif number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH):
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)

    def take(self, offset: int, data: bytes) -> None:
        """Input from ``offset`` on; what came before is skipped."""
        if offset <= self.received < offset + len(data):
            self.input += data[self.received - offset :]
            self.received = offset + len(data)

    def feed(self) -> None:
        """Passes input on."""
        if self.server and self.code is None and (said := answer(self.input, self.server)) is not None:
            self.streams[0].data += said
            self.code = 0
        if self.input_pipe < 0 and (not self.server or self.code is not None):
            self.input.clear()
        while self.input and self.input_pipe >= 0:
            try:
                del self.input[: os.write(self.input_pipe, self.input)]
            except BlockingIOError:
                break
            except BrokenPipeError:
                self.input.clear()
        self.given = self.received - len(self.input)
        if self.input_ends and not self.input and self.input_pipe >= 0:
            os.close(self.input_pipe)
            self.input_pipe = -1

    def forget_client(self) -> None:
        """The next one is told everything that the last one did not acknowledge."""
        self.ready_sent = self.exit_sent = False
        self.taken_sent = None
        for stream in self.streams:
            stream.sent, stream.end_sent = stream.acked, False

    def frames(self) -> Iterator[bytes]:
        """What the host is to be told now."""
        if not self.ready_sent and not self.message:
            clock = (0, 0, int((self._started - self._born) * 1e9))
            yield _frame(_READY, struct.pack("<QQQ", *clock), session=self.number)
            self.ready_sent = True
        if self.taken_sent != self.given:
            yield _frame(_TAKEN, struct.pack("<Q", self.given), session=self.number)
            self.taken_sent = self.given
        for stream in self.streams:
            yield from stream.frames(self.number)
        if self.code is not None and all(stream.end_sent for stream in self.streams) and not self.exit_sent:
            payload = struct.pack("<iiI", self.code, self.signal, 0) + self.message.encode()[:255]
            yield _frame(_EXIT, payload, session=self.number)
            self.exit_sent = True

    def close(self) -> None:
        """Lets go of its pipes."""
        self.kill()
        for pipe in (self.input_pipe, *(stream.pipe for stream in self.streams)):
            if pipe >= 0:
                os.close(pipe)


def _listed() -> bytes:
    """A list of processes (docs/formats.md) with this one in it, which is all that there is of the machine."""
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    name, command = Path("/proc/self/comm").read_bytes().strip(), Path("/proc/self/cmdline").read_bytes()[:256]
    numbers = (os.getpid(), int(stat[1]), int(stat[11]), int(stat[12]), int(stat[19]), int(stat[21]) * 4096)
    return struct.pack("<IIQQQQHHH", *numbers, len(name), len(command), 1) + name + command + b"/"


def _kept(descriptor: int) -> int:
    """A copy that blocks nobody."""
    copy = os.dup(descriptor)
    os.set_blocking(copy, False)
    return copy


class _Channel:
    """One channel: a client at a time, as QEMU's socket has it; the next one waits."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.client: socket.socket | None = None
        self.greeted = False
        self.sessions: dict[int, _Session] = {}
        self.gathered: dict[int, bytearray] = {}
        self.out = bytearray()
        self._in = bytearray()

    def accept(self) -> None:
        try:
            self.client, _ = self.listener.accept()
        except OSError:
            return
        self.client.setblocking(False)

    def hang_up(self) -> None:
        if self.client is not None:
            self.client.close()
        self.client, self.greeted = None, False
        self._in.clear()
        self.out.clear()

    def read(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Frames that came: kind, stream, session, payload."""
        assert self.client is not None
        try:
            data = self.client.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.hang_up()
            return
        self._in += data
        yield from self._frames()

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        while True:
            padding = len(self._in) - len(self._in.lstrip(b"\0"))
            del self._in[:padding]
            if len(self._in) < _HEADER.size:
                return
            kind, stream, session, length = _HEADER.unpack_from(self._in)
            if length > 4096:
                del self._in[0]  # look for the next frame
                continue
            end = _HEADER.size + length
            if len(self._in) <= end:
                return
            payload, whole = bytes(self._in[_HEADER.size : end]), self._in[end] == _END
            del self._in[: end + 1]
            if whole:
                yield kind, stream, session, payload

    def write(self) -> None:
        if self.client is None or not self.greeted:
            return
        try:
            while True:
                while self.out:
                    del self.out[: self.client.send(self.out)]
                for session in self.sessions.values():
                    for frame in session.frames():
                        self.out += frame
                if not self.out:
                    return
        except BlockingIOError:
            return
        except OSError:
            self.hang_up()


class Guest:
    """A machine's inside.

    Args:
        listeners: Of the main channel and of the control channel.
        command: The machine's command.
        said: Writes a line to the console.
    """

    def __init__(self, listeners: tuple[socket.socket, socket.socket], command: Command, said: Callable[[str], None]) -> None:
        self._born = time.monotonic()
        self._channels = tuple(_Channel(listener) for listener in listeners)
        for listener in listeners:
            listener.setblocking(False)
        self._command = _Session(0, command, self._born)
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
                    if stream.pipe >= 0 and len(stream.data) < _WINDOW:
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

    def _serve_channel(self, number: int, channel: _Channel, ready: set[int]) -> None:
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

    def _take(self, number: int, channel: _Channel, kind: int, stream: int, session: int, payload: bytes) -> None:
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

    def _greet(self, channel: _Channel, nonce: bytes) -> None:
        channel.greeted = True
        channel.out.clear()
        channel.gathered.clear()
        channel.out += _frame(_WELCOME, b"castoff\n" + nonce + struct.pack("<I", 1))
        for number, session in list(channel.sessions.items()):
            if number == 0:
                session.forget_client()
            else:
                channel.sessions.pop(number).close()

    def _execute(self, channel: _Channel, number: int) -> None:
        try:
            command = parse_settings(bytes(channel.gathered.pop(number, b"")))
        except ValueError as error:
            channel.out += _frame(_EXIT, struct.pack("<iiI", 125, 0, 0) + str(error).encode(), session=number)
            return
        if number not in channel.sessions:
            channel.sessions[number] = _Session(number, command, self._born, self._command.command.argv)

    def _shut_down(self, grace: float) -> None:
        at = time.monotonic() + grace
        if self._kill_at is None:
            self._command.signalled(self._command.command.stop_signal)
        self._kill_at = at if self._kill_at is None else min(at, self._kill_at)

    def _take_for(self, channel: _Channel, session: _Session, kind: int, stream: int, payload: bytes) -> None:
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


def read_settings(initramfs: Path) -> Command:
    """The settings in a machine's initramfs: the last member of its last archive (castoff.vmm.initramfs).

    Raises:
        ValueError: There are none.
        OSError: It cannot be read.
    """
    import mmap

    name = b"castoff/settings\0"
    with initramfs.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.rfind(name)
        if at < 110 or data[at - 110 : at - 104] != b"070701":
            raise ValueError(f"{initramfs} holds no settings")
        size, start = int(data[at - 110 + 54 : at - 110 + 62], 16), at - 110 + -(-(110 + len(name)) // 4) * 4
        return parse_settings(data[start : start + size])
