"""The compiled answerer: it lets through exactly whom Python would, and leaves the rest in the log, by the same rules."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castoff.hydrate.answerer import Answerer, Uses, is_built
from castoff.hydrate.eventlog import ALLOW, SLOT, SLOTS, EventLog
from castoff.layers.toc import CHUNK

CHUNKS = 9
SIZE = CHUNKS * CHUNK


class Taking:
    """An answerer over a socket in place of a group: each packet is a read's worth of one event."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = EventLog.open(path)
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.stop = os.eventfd(0)
        self.holes = bytearray(CHUNKS + 1)
        self.answerer = Answerer(self.ours.fileno(), self.stop, (self.log.lend(), self.holes), SIZE)

    def ask(self, offset: int, size: int, *, ranged: bool = True) -> int:
        """Sends an event; its descriptor."""
        number = os.open("/dev/null", os.O_RDONLY)
        length = SLOT if ranged else 24
        event = struct.pack("<IBBHQii", length, 3, 0, 24, 0x100000, number, 77)
        self.theirs.send(event + (struct.pack("<BBHIQQ", 6, 0, 24, 0, offset, size) if ranged else b""))
        return number

    def allowed(self) -> list[int]:
        found = []
        while True:
            try:
                number, response = struct.unpack("=iI", self.theirs.recv(8))
            except BlockingIOError:
                return found
            assert response == ALLOW
            found.append(number)


@contextmanager
def taking(path: Path, before: bytes = b"") -> Iterator[Taking]:
    """Over a new log, which begins with these bytes."""
    EventLog.create(path).close()
    with path.open("r+b") as file:
        file.write(before)
    found = Taking(path)
    yield found
    found.answerer.close()
    found.log.close()
    found.ours.close()
    found.theirs.close()
    os.close(found.stop)


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_it_is_built() -> None:
    """A checkout for work has it; the tests below would say nothing of the front otherwise."""
    assert is_built(), "python packaging/build_init.py"


def test_what_is_here_is_let_through_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    """Answered, slot free, descriptor closed; the caller hears nothing of it."""
    with taking(tmp_path / "log") as it:
        numbers = [it.ask(at * CHUNK, 4096) for at in range(40)]
        assert it.answerer.take(None, 0) == []
        assert it.allowed() == numbers
        assert not any(map(is_open, numbers))
        content = it.path.read_bytes()
        assert not any(any(content[slot * SLOT : slot * SLOT + 4]) for slot in range(SLOTS))


def test_what_is_absent_is_handed_over_and_stays_in_the_log(tmp_path: Path) -> None:
    """Until the caller answers it; those beside it are let through."""
    with taking(tmp_path / "log") as it:
        it.holes[3] = 1
        here, absent = it.ask(0, CHUNK), it.ask(2 * CHUNK, 2 * CHUNK)
        (slot,) = it.answerer.take(None)
        event = it.log.event(slot)
        assert (event.fd, event.offset, event.size, event.old) == (absent, 2 * CHUNK, 2 * CHUNK, False)
        assert it.allowed() == [here]
        later = it.ask(0, 1)
        assert it.answerer.take(None, 0) == []
        assert it.allowed() == [later], "a slot that is in use is not read into"
        assert it.log.event(slot) == event
        it.holes[3] = 0
        it.log.answer(it.ours.fileno(), event, ALLOW)
        assert it.allowed() == [absent] and not is_open(absent)


def test_what_a_predecessor_left_is_not_read_over(tmp_path: Path) -> None:
    """Its slots are used again once they are answered."""
    number = os.open("/dev/null", os.O_RDONLY)
    os.close(number)
    left = struct.pack("<IBBHQii", 24, 3, 0, 24, 0x100000, number + 60, 77)
    with taking(tmp_path / "log", left) as it:
        it.holes[0] = 1
        it.ask(0, 1)
        assert it.answerer.take(None) == [1]
        (old,) = it.log.unanswered()
        assert (old.slot, old.fd) == (0, number + 60)
        it.log.answer(it.ours.fileno(), old, ALLOW)
        it.ask(0, 1)
        assert it.answerer.take(None) == [0]


def test_a_full_log_takes_no_event(tmp_path: Path) -> None:
    """It stays with the kernel until a slot is free, which wakes who waits for it."""
    left = struct.pack("<IBBHQii", 24, 3, 0, 24, 0x100000, -1, 77) + bytes(24)
    with taking(tmp_path / "log", left * SLOTS) as it:
        number = it.ask(0, 1)
        with pytest.raises(BufferError):
            it.answerer.take(None)
        assert it.allowed() == []
        assert not it.log.wait()
        with it.path.open("r+b") as file:
            file.seek(7 * SLOT)
            file.write(bytes(4))
        assert it.log.wait()
        assert it.answerer.take(None, 0) == []
        assert it.allowed() == [number]


def test_it_returns_when_it_shall_stop(tmp_path: Path) -> None:
    """Even if it would wait for ever; a group that cannot be read is an error."""
    with taking(tmp_path / "log") as it:
        os.eventfd_write(it.stop, 1)
        assert it.answerer.take(None) == []
        broken = Answerer(it.stop, it.stop, (memoryview(bytearray(SLOT)), bytearray(2)), CHUNK)
        os.eventfd_read(it.stop)
        os.eventfd_write(it.stop, 1)
        it.ours.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            it.answerer.take(None, 0)
        broken.close()


@given(
    holes=st.sets(st.integers(0, CHUNKS - 1)),
    asked=st.lists(
        st.tuples(st.integers(0, SIZE + CHUNK) | st.integers(0, 2**64 - 1), st.integers(0, SIZE) | st.integers(0, 2**64 - 1)),
        max_size=8,
    ),
    ranged=st.booleans(),
)
def test_it_decides_as_python_does(holes: set[int], asked: list[tuple[int, int]], ranged: bool) -> None:
    """For any range, and an event without one, which is of the whole file; uses are those that Python would record."""
    with tempfile.TemporaryDirectory() as directory, taking(Path(directory) / "log") as it:
        for chunk in holes:
            it.holes[chunk] = 1
        uses, seen = Uses(CHUNKS + 1), {}
        for offset, size in asked:
            number = it.ask(offset, size, ranged=ranged)
            begun = time.monotonic()
            start, end = (offset, offset + size if size else SIZE) if ranged else (0, SIZE)
            first, last = start // CHUNK, -(-end // CHUNK) if end > start else start // CHUNK + 1
            here = not any(chunk in holes for chunk in range(first, min(last, CHUNKS)))
            handed = it.answerer.take(uses, 0)
            assert (it.allowed(), len(handed)) == (([number], 0) if here else ([], 1))
            for slot in handed:
                it.log.answer(it.ours.fileno(), it.log.event(slot), ALLOW)
            it.allowed()
            for chunk in range(first, min(last, CHUNKS + 1)):
                seen.setdefault(chunk, begun)
        found = uses.read()
        assert [chunk for _, chunk in found] == list(seen)
        assert all(begun <= when <= time.monotonic() for (when, _), begun in zip(found, seen.values(), strict=True))
