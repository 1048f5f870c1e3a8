"""The event log: what is read is in it, what is answered is not, and old numbers are not given out again."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from castoff.errors import Invalid, NotFound
from castoff.hydrate.eventlog import ALLOW, SLOT, SLOTS, EventLog, denied, open_logs


def event(number: int, offset: int = 0, size: int = 4096) -> bytes:
    """What the kernel writes for one event (fanotify(7))."""
    return struct.pack("<IBBHQii", 48, 3, 0, 24, 0x100000, number, 77) + struct.pack("<BBHIQQ", 6, 0, 24, 0, offset, size)


def leave(path: Path, *events: bytes, first: int = 0) -> None:
    """A log as a dead hydrator leaves it."""
    EventLog.create(path).close()
    with path.open("r+b") as file:
        for slot, found in enumerate(events, first):
            file.seek(slot * SLOT)
            file.write(found)


class Group:
    """A socket in place of a fanotify group: each packet is a read's worth of one event."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        self.theirs.setblocking(False)

    def responses(self) -> list[tuple[int, int]]:
        found = []
        while True:
            try:
                found.append(struct.unpack("=iI", self.theirs.recv(8)))
            except BlockingIOError:
                return found


@pytest.fixture
def group() -> Iterator[Group]:
    found = Group()
    yield found
    found.ours.close()
    found.theirs.close()


def free_number() -> int:
    number = os.open("/dev/null", os.O_RDONLY)
    os.close(number)
    return number


def test_what_is_read_is_in_the_file_until_it_is_answered(tmp_path: Path, group: Group) -> None:
    """An event's bytes are in the file when read_from returns, and go when it is answered; its descriptor is closed then."""
    path = tmp_path / "log"
    log = EventLog.create(path)
    number = os.open("/dev/null", os.O_RDONLY)
    group.theirs.send(event(number, 8192, 100))
    (found,) = log.read_from(group.ours.fileno())
    assert (found.fd, found.offset, found.size, found.pid, found.old) == (number, 8192, 100, 77, False)
    assert event(number, 8192, 100) in path.read_bytes()
    log.answer(group.ours.fileno(), found, ALLOW)
    assert group.responses() == [(number, 1)]
    assert not any(path.read_bytes()[found.slot * SLOT :][:4])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    assert log.read_from(group.ours.fileno()) == []
    log.close()


def test_a_successor_finds_what_is_unanswered_and_only_that(tmp_path: Path, group: Group) -> None:
    """Slots that were freed are not found; the others are, with what they said, and an answer goes to the old number."""
    path = tmp_path / "log"
    number = free_number() + 40
    leave(path, bytes(4) + event(5)[4:], event(number, 1 << 40, 1 << 20), first=9)
    log = EventLog.open(path)
    (found,) = log.unanswered()
    assert (found.fd, found.offset, found.size, found.old) == (number, 1 << 40, 1 << 20, True)
    log.answer(group.ours.fileno(), found, denied(errno.EIO))
    assert group.responses() == [(number, 2 | errno.EIO << 24)]
    assert log.unanswered() == []
    log.close()
    assert EventLog.open(path).unanswered() == []


def test_old_numbers_are_occupied_until_they_are_answered(tmp_path: Path, group: Group) -> None:
    """Nothing that is opened meanwhile gets the number of an unanswered event; afterwards it may."""
    path = tmp_path / "log"
    first = free_number()
    leave(path, event(first), event(first + 1))
    log = EventLog.open(path)
    others = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
    assert not {first, first + 1} & set(others)
    for found in log.unanswered():
        log.answer(group.ours.fileno(), found, ALLOW)
    last = os.open("/dev/null", os.O_RDONLY)
    assert last in (first, first + 1)
    for number in [*others, last]:
        os.close(number)
    log.close()


def test_a_number_in_use_holds_back_new_events(tmp_path: Path, group: Group) -> None:
    """Where an old number is some other file's in the successor, nothing new is read before the old event is answered."""
    path = tmp_path / "log"
    mine = os.open("/dev/null", os.O_RDONLY)
    leave(path, event(mine))
    log = EventLog.open(path)
    group.theirs.send(event(os.open("/dev/null", os.O_RDONLY)))
    assert log.read_from(group.ours.fileno()) == []
    log.answer(group.ours.fileno(), log.unanswered()[0], ALLOW)
    os.fstat(mine)  # still ours
    (found,) = log.read_from(group.ours.fileno())
    log.answer(group.ours.fileno(), found, ALLOW)
    os.close(mine)
    log.close()


def test_two_logs_numbers_are_occupied_before_either_is_mapped(tmp_path: Path, group: Group) -> None:
    """A map keeps a descriptor; it must not take a number that the next log is to occupy."""
    number = free_number()
    leave(tmp_path / "a")
    leave(tmp_path / "b", event(number), event(number + 1))
    logs = open_logs([tmp_path / "a", tmp_path / "b"])
    group.theirs.send(event(os.open("/dev/null", os.O_RDONLY)))
    assert len(logs[tmp_path / "b"].read_from(group.ours.fileno())) == 1
    for log in logs.values():
        log.close()


def test_a_full_log_takes_no_more_until_one_is_answered(tmp_path: Path, group: Group) -> None:
    """Events beyond the log's slots stay with the kernel: none is taken that cannot be written down."""
    path = tmp_path / "log"
    leave(path, *[event(100_000 + number) for number in range(SLOTS)])
    log = EventLog.open(path)
    group.theirs.send(event(os.open("/dev/null", os.O_RDONLY)))
    assert log.read_from(group.ours.fileno()) == []
    for found in log.unanswered():
        log.answered(found)
    (found,) = log.read_from(group.ours.fileno())
    assert found.fd < 100_000
    os.close(found.fd)
    log.close()


def test_an_event_without_a_range_is_for_the_whole_file(tmp_path: Path, group: Group) -> None:
    """24 bytes, no range record: size 0."""
    log = EventLog.create(tmp_path / "log")
    number = os.open("/dev/null", os.O_RDONLY)
    group.theirs.send(struct.pack("<IBBHQii", 24, 3, 0, 24, 0x100000, number, 77))
    (found,) = log.read_from(group.ours.fileno())
    assert (found.fd, found.offset, found.size) == (number, 0, 0)
    log.answer(group.ours.fileno(), found, ALLOW)
    log.close()


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    """Missing, short: said, not guessed at. A slot with a descriptor that cannot be one is free."""
    with pytest.raises(NotFound):
        EventLog.open(tmp_path / "none")
    (tmp_path / "short").write_bytes(b"x")
    with pytest.raises(Invalid):
        EventLog.open(tmp_path / "short")
    leave(tmp_path / "odd", event(-1))
    log = EventLog.open(tmp_path / "odd")
    assert log.unanswered() == []
    log.close()
