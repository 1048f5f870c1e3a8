"""What machines' commands write, kept by the agent: a JSON line a piece, in files that are turned over when they are full.

    LOGS/<machine>/current     the newest lines
    LOGS/<machine>/1, 2, ...   older ones
    LOGS/<machine>/written     how far each stream of the present run is written: two u64, little-endian

A line: ``{"t": Unix milliseconds, "s": 1 (stdout) or 2 (stderr), "m": text}``; what is no UTF-8 is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import msgspec

from castoff.errors import Internal
from castoff.lifecycle.ids import milliseconds
from castoff.machine.model import parse_machine_id

__all__ = ["LogLine", "LogWriter", "Logs"]

_FULL: Final = 8 << 20
"""Bytes after which a file is turned over."""
_KEPT: Final = 3
"""Files beside the current one."""
_LONGEST: Final = 16 << 10
"""Bytes of a line; a longer one is cut into several."""
_POLL: Final = 0.2
_WRITTEN: Final = struct.Struct("<QQ")
_MOST_TAIL: Final = 10_000


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of output: a line, or part of a long one."""

    timestamp: int = msgspec.field(name="t")
    stream: int = msgspec.field(name="s")
    message: str = msgspec.field(name="m")


class Logs:
    """The logs of all machines.

    Args:
        directory: Where they lie; made when the first is written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, machine: str) -> Path:
        """A machine's directory."""
        return self._directory / parse_machine_id(machine)

    def writer(self, machine: str, *, resume: bool = False) -> LogWriter:
        """Writes a machine's log on.

        Args:
            machine: Its id.
            resume: It is still the run of the last writer: what that one has written is passed over when it comes again.

        Raises:
            Internal: The disk refused.
        """
        return LogWriter(self.path(machine), resume=resume)

    def remove(self, machine: str) -> None:
        """Deletes a machine's log. Idempotent."""
        shutil.rmtree(self.path(machine), ignore_errors=True)

    def machines(self) -> list[str]:
        """Those that have a log."""
        with contextlib.suppress(FileNotFoundError):
            return [entry.name for entry in self._directory.iterdir()]
        return []

    async def read(self, machine: str, *, tail: int = 1000, follow: bool = False) -> AsyncIterator[LogLine]:
        """A machine's log.

        Args:
            machine: Its id.
            tail: Lines of what is there, the last ones; at most 10,000.
            follow: Go on with what is written from now on, until the caller stops.
        """
        directory = self.path(machine)
        lines, place = await asyncio.to_thread(_tail, directory, min(tail, _MOST_TAIL))
        for line in lines:
            yield line
        while follow:
            await asyncio.sleep(_POLL)
            more, place = await asyncio.to_thread(_more, directory, place)
            for line in more:
                yield line


class LogWriter:
    """Writes one machine's log. Blocks on the disk no longer than the page cache does."""

    def __init__(self, directory: Path, *, resume: bool) -> None:
        self._directory = directory
        self._partial = {1: b"", 2: b""}
        self._taken = {1: 0, 2: 0}
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = (directory / "current").open("ab")
            self._written = os.open(directory / "written", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            known = os.pread(self._written, _WRITTEN.size, 0)
            if resume and len(known) == _WRITTEN.size:
                self._taken = dict(zip((1, 2), _WRITTEN.unpack(known), strict=True))
            else:
                os.pwrite(self._written, bytes(_WRITTEN.size), 0)
        except OSError as error:
            raise Internal(f"log {directory} cannot be written: {error.strerror}") from error

    def write(self, stream: int, data: bytes, offset: int) -> None:
        """Output of a stream, which begins at its byte ``offset``; whole lines are written, the rest waits for its end."""
        data = data[max(0, self._taken[stream] - offset) :]
        if not data:
            return
        self._taken[stream] = max(self._taken[stream], offset) + len(data)
        *lines, rest = (self._partial[stream] + data).split(b"\n")
        while len(rest) > _LONGEST:
            lines.append(rest[:_LONGEST])
            rest = rest[_LONGEST:]
        self._partial[stream] = rest
        self._put(stream, lines)

    def close(self) -> None:
        """Writes what is left. Idempotent."""
        for stream, rest in self._partial.items():
            if rest:
                self._put(stream, [rest])
        self._partial = {1: b"", 2: b""}
        self._file.close()
        if self._written >= 0:
            os.close(self._written)
            self._written = -1

    def _put(self, stream: int, lines: list[bytes]) -> None:
        now = milliseconds()
        encoded = b"".join(
            msgspec.json.encode(LogLine(timestamp=now, stream=stream, message=part.decode(errors="replace"))) + b"\n"
            for line in lines
            for part in _cut(line)
        )
        try:
            self._file.write(encoded)
            self._file.flush()
            os.pwrite(self._written, _WRITTEN.pack(*(self._taken[one] - len(self._partial[one]) for one in (1, 2))), 0)
            if self._file.tell() > _FULL:
                self._turn()
        except OSError as error:
            raise Internal(f"log {self._directory} cannot be written: {error.strerror}") from error

    def _turn(self) -> None:
        self._file.close()
        for number in range(_KEPT - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                (self._directory / str(number)).rename(self._directory / str(number + 1))
        (self._directory / "current").rename(self._directory / "1")
        self._file = (self._directory / "current").open("ab")


def _cut(line: bytes) -> Iterator[bytes]:
    line = line.removesuffix(b"\r")
    for at in range(0, max(1, len(line)), _LONGEST):
        yield line[at : at + _LONGEST]


def _tail(directory: Path, count: int) -> tuple[list[LogLine], tuple[int, int]]:
    """The last lines, and where the current file ends (inode, offset)."""
    found: deque[LogLine] = deque(maxlen=count)
    place = (0, 0)
    for name in (*map(str, range(_KEPT, 0, -1)), "current"):
        with contextlib.suppress(FileNotFoundError), (directory / name).open("rb") as file:
            data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            found.extend(_lines(whole))
            place = (os.fstat(file.fileno()).st_ino, len(whole))
    return list(found), place


def _more(directory: Path, place: tuple[int, int]) -> tuple[list[LogLine], tuple[int, int]]:
    """What was written since ``place``; what a file held that was turned over meanwhile comes first."""
    inode, offset = place
    found: list[LogLine] = []
    for name in ("1", "current"):
        with contextlib.suppress(FileNotFoundError), (directory / name).open("rb") as file:
            number = os.fstat(file.fileno()).st_ino
            if name == "1" and number != inode:
                continue
            file.seek(offset if number == inode else 0)
            data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            found.extend(_lines(whole))
            place = (number, (offset if number == inode else 0) + len(whole))
    return found, place


def _lines(data: bytes) -> Iterator[LogLine]:
    for line in data.splitlines():
        with contextlib.suppress(msgspec.MsgspecError):  # a line that a crash of the host cut
            yield msgspec.json.decode(line, type=LogLine)
