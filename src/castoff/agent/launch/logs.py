"""What machines' commands write, kept by the agent: a JSON line a piece, in files that are turned over when they are full.

    LOGS/<machine>/current     the newest lines
    LOGS/<machine>/1, 2, ...   older ones
    LOGS/<machine>/written     how far each stream of the present run is written: two u64, little-endian

A line: ``{"t": Unix milliseconds, "s": 1 (stdout) or 2 (stderr), "m": text}``; what is no UTF-8 is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

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
_PIECE: Final = 1 << 20
"""Bytes that are read at once."""
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

    async def read(
        self, machine: str, *, tail: int = 1000, follow: bool = False, goes_on: Callable[[], bool] | None = None
    ) -> AsyncIterator[LogLine]:
        """A machine's log.

        Args:
            machine: Its id.
            tail: Lines of what is there, the last ones; at most 10,000.
            follow: Go on with what is written from now on, until the caller stops.
            goes_on: Asked now and then whether anybody still wants to know.
        """
        directory = self.path(machine)
        lines, place = await asyncio.to_thread(_tail, directory, min(tail, _MOST_TAIL))
        for line in lines:
            yield line
        while follow:
            going = goes_on is None or goes_on()  # asked before: what was written until then is still read
            more, place = await asyncio.to_thread(_more, directory, place)
            for line in more:
                yield line
            if not more and not going:
                return
            if not more:  # where there was some, there may be more
                await asyncio.sleep(_POLL)

    def tail(self, machine: str, count: int) -> Sequence[LogLine]:
        """The last lines of a machine's log. Reads the disk at once: not for an event loop."""
        return _tail(self.path(machine), min(count, _MOST_TAIL))[0]

    def since(self, machine: str, time: int, *, most: int) -> Sequence[LogLine]:
        """The first lines of a machine's log of ``time`` (Unix milliseconds) or later. Reads the disk at once."""
        return list(itertools.islice(_since(self.path(machine), time), most))


class LogWriter:
    """Writes one machine's log. A disk that takes nothing loses lines, which the log tells of when it takes some again: no
    machine ends for its log's sake. For one thread at a time."""

    def __init__(self, directory: Path, *, resume: bool) -> None:
        self._directory = directory
        self._partial = {1: b"", 2: b""}
        self._taken = {1: 0, 2: 0}
        self._lost = 0
        self._file = self._written = -1
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = _append(directory)
            self._written = os.open(directory / "written", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            known = os.pread(self._written, _WRITTEN.size, 0)
            if resume and len(known) == _WRITTEN.size:
                self._taken = dict(zip((1, 2), _WRITTEN.unpack(known), strict=True))
            else:
                os.pwrite(self._written, bytes(_WRITTEN.size), 0)
        except OSError as error:
            self.close()
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
        if lines:
            self._put(stream, lines)

    def flush(self) -> None:
        """Writes what is left, though no line's end came."""
        for stream, rest in self._partial.items():
            self._partial[stream] = b""  # before it is counted as written
            if rest:
                self._put(stream, [rest])

    def close(self) -> None:
        """Writes what is left. Idempotent."""
        self.flush()
        for descriptor in (self._file, self._written):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._written = -1

    def _put(self, stream: int, lines: list[bytes]) -> None:
        parts = [part for line in lines for part in _cut(line)]
        try:
            if self._lost:
                _write_all(self._file, _encoded(2, [b"castoff: %d lines were lost: the disk refused them" % self._lost]))
                self._lost = 0
            _write_all(self._file, _encoded(stream, parts))
            os.pwrite(self._written, _WRITTEN.pack(*(self._taken[one] - len(self._partial[one]) for one in (1, 2))), 0)
            if os.lseek(self._file, 0, os.SEEK_END) > _FULL:
                self._turn()
        except OSError:
            self._lost += len(parts)

    def _turn(self) -> None:
        for number in range(_KEPT - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                (self._directory / str(number)).rename(self._directory / str(number + 1))
        (self._directory / "current").rename(self._directory / "1")
        file, self._file = self._file, _append(self._directory)
        os.close(file)


def _append(directory: Path) -> int:
    return os.open(directory / "current", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _encoded(stream: int, parts: list[bytes]) -> bytes:
    now = milliseconds()
    return b"".join(
        msgspec.json.encode(LogLine(timestamp=now, stream=stream, message=part.decode(errors="replace"))) + b"\n"
        for part in parts
    )


def _write_all(file: int, data: bytes) -> None:
    """All of it, or nothing: half a line would swallow the next one."""
    start = os.lseek(file, 0, os.SEEK_END)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
    except OSError:
        os.ftruncate(file, start)
        raise


def _cut(line: bytes) -> Iterator[bytes]:
    line = line.removesuffix(b"\r")
    for at in range(0, max(1, len(line)), _LONGEST):
        yield line[at : at + _LONGEST]


def _tail(directory: Path, count: int) -> tuple[list[LogLine], tuple[int, int]]:
    """The last lines, and where the current file ends (inode, offset). No more files are read than these lines take."""
    found: list[LogLine] = []
    place = (0, 0)
    files = _files(directory)
    try:
        for newer, file in enumerate(reversed(files)):
            number, size = os.fstat(file.fileno()).st_ino, file.seek(0, os.SEEK_END)
            lines, end = _last_lines(file, size, count - len(found))
            if newer == 0:
                place = (number, end)
            found[:0] = lines
            if len(found) >= count:
                break
    finally:
        for file in files:
            file.close()
    return found, place


def _last_lines(file: BinaryIO, size: int, count: int) -> tuple[list[LogLine], int]:
    """A file's last whole lines, and where they end: read backwards, as far as need be."""
    data, start = b"", size
    while start and data.count(b"\n") <= count:
        step = min(start, _PIECE)
        start -= step
        file.seek(start)
        data = file.read(step) + data
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.splitlines()[-count:] if count else []
    return list(_lines(lines)), start + len(whole) if whole else size - len(data)


def _more(directory: Path, place: tuple[int, int]) -> tuple[list[LogLine], tuple[int, int]]:
    """What was written since ``place``, a piece at a time: the rest of the file that was read last, wherever it was turned over
    to, or the oldest of what came after. What was deleted before anybody read it is left out."""
    files = _files(directory)
    try:
        numbers = [os.fstat(file.fileno()).st_ino for file in files]
        at = numbers.index(place[0]) if place[0] in numbers else -1
        for index in range(max(at, 0), len(files)):
            offset = place[1] if index == at and place[1] <= os.fstat(files[index].fileno()).st_size else 0
            files[index].seek(offset)
            data = files[index].read(_PIECE)
            whole = data[: data.rfind(b"\n") + 1]
            place = (numbers[index], offset + len(whole))
            if whole:
                return list(_lines(whole.splitlines())), place
        return [], place
    finally:
        for file in files:
            file.close()


def _since(directory: Path, time: int) -> Iterator[LogLine]:
    """Lines that were written at ``time`` or later, in their order."""
    files = _files(directory)
    try:
        for file in files:
            if os.fstat(file.fileno()).st_mtime * 1000 < time:
                continue
            _go_back(file, time)
            yield from (line for line in _lines(file) if line.timestamp >= time)
    finally:
        for file in files:
            file.close()


def _go_back(file: BinaryIO, time: int) -> None:
    """Goes to a line from before ``time``, or to the file's begin; from the end on, as what is asked for is mostly new."""
    start = file.seek(0, os.SEEK_END)
    while start > _PIECE:
        start -= _PIECE
        file.seek(start)
        file.readline()  # the rest of one
        if any(line.timestamp < time for line in _lines([file.readline()])):
            return
    file.seek(0)


def _files(directory: Path) -> list[BinaryIO]:
    """The oldest first. Opened from the newest on: one that is turned over meanwhile is met again, and known by its inode."""
    files: dict[int, BinaryIO] = {}
    for name in ("current", *map(str, range(1, _KEPT + 1))):
        with contextlib.suppress(FileNotFoundError):
            file = (directory / name).open("rb")
            if files.setdefault(os.fstat(file.fileno()).st_ino, file) is not file:
                file.close()
    return list(reversed(files.values()))


def _lines(lines: Iterable[bytes]) -> Iterator[LogLine]:
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError):  # a line that a crash of the host cut
            yield msgspec.json.decode(line, type=LogLine)
