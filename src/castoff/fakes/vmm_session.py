"""A command of a stand-in's machine, and what the host is still to be told of it: guest/session.c's part.

``true``, ``false``, ``exit N``, ``echo WORDS``, ``sleep SECONDS`` (or ``infinity``) and ``serve PORT FILE``
(castoff.fakes.vmm_port) it does itself; any other command is a process of this host, as the machine's user, in this host's
filesystem.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from castoff.fakes.vmm_port import answer, refusal
from castoff.fakes.vmm_settings import Command

__all__ = ["EXIT", "HEADER", "WELCOME", "WINDOW", "Session", "frame_of"]

HEADER: Final = struct.Struct("<BBHI")
WINDOW: Final = 256 * 1024
_FRAME: Final = 32 * 1024 - HEADER.size - 8
WELCOME: Final = 16
_READY, _DATA, _END_OF_OUTPUT, _TAKEN = 17, 18, 19, 20
EXIT: Final = 21


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
            data = os.read(self.pipe, min(65536, WINDOW - len(self.data)))
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
            yield frame_of(_DATA, struct.pack("<Q", self.sent) + part, self.number, session)
            self.sent += len(part)
        if self.pipe < 0 and not self.end_sent:
            yield frame_of(_END_OF_OUTPUT, struct.pack("<Q", self.head), self.number, session)
            self.end_sent = True

    def acknowledge(self, offset: int) -> None:
        if self.acked < offset <= self.sent:
            del self.data[: offset - self.acked]
            self.acked = offset


def frame_of(kind: int, payload: bytes = b"", stream: int = 0, session: int = 0) -> bytes:
    return HEADER.pack(kind, stream, session, len(payload)) + payload


class Session:
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
            yield frame_of(_READY, struct.pack("<QQQ", *clock), session=self.number)
            self.ready_sent = True
        if self.taken_sent != self.given:
            yield frame_of(_TAKEN, struct.pack("<Q", self.given), session=self.number)
            self.taken_sent = self.given
        for stream in self.streams:
            yield from stream.frames(self.number)
        if self.code is not None and all(stream.end_sent for stream in self.streams) and not self.exit_sent:
            payload = struct.pack("<iiI", self.code, self.signal, 0) + self.message.encode()[:255]
            yield frame_of(EXIT, payload, session=self.number)
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
