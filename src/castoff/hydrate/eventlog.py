"""``lazy.log``: the fanotify events that were read and are not answered yet, in shared memory that outlives its process.

The kernel hands an event out once. Whoever read one and died leaves its reader asleep; a successor that holds the group can
still answer, by the number that the event's descriptor had in the dead process (tried on 6.18, and what fanotify's
process_access_response does: it looks the number up in the group's list of unanswered events). So no event may be taken and
unlogged, not for an instant: read(2) puts events straight into the log. The kernel finishes the copy of an event that it
has begun, whoever is killed meanwhile.

The file is ``SLOTS`` slots of the size of one event (fanotify(7): 24 bytes of struct fanotify_event_metadata, and 24 of the
range that is to be accessed). A slot is free where its first word, an event's length, is 0. It becomes so *after* the answer:
fill, mark present, answer, free the slot, close the event's descriptor. Who dies between answer and free leaves a slot whose
event was answered: the kernel then says ENOENT to the successor's answer.

An event of the successor's own must not get the number of one that is unanswered: an answer goes to the first event in the
group's list with its number. So a successor occupies the old numbers before it reads (:func:`open_logs`), each until its
event is answered; where a number is in use in it for something else, which might be closed, it reads no event of that group
until the old one is answered.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from castoff.errors import Internal, Invalid, NotFound

__all__ = ["ALLOW", "SLOT", "Event", "EventLog", "denied", "open_logs"]

SLOT: Final = 48
SLOTS: Final = 1024
"""Events that may be unanswered at a time, one for each thread that reads the clone; more stay with the kernel, unread."""
_SIZE: Final = SLOT * SLOTS
_BATCH: Final = 16
"""Events of one read, at most."""
_METADATA: Final = struct.Struct("<IBBHQii")
"""length of the event, version of the structure, reserved, length of this part, mask, descriptor, pid."""
_RANGE: Final = struct.Struct("<BBHIQQ")
"""kind of record, padding, its length, padding, offset, count."""
_RANGE_KIND: Final = 6
_RESPONSE: Final = struct.Struct("=iI")
_FREE: Final = bytes(4)

ALLOW: Final = 1
_DENY: Final = 2


def denied(error: int) -> int:
    """The response that makes the access fail with ``error``: EPERM, EIO, EBUSY, ETXTBSY, EAGAIN, ENOSPC, EDQUOT."""
    return _DENY | error << 24


class Event(NamedTuple):
    """Somebody waits to access a range of the clone."""

    slot: int
    """Where in the log it is."""
    fd: int
    """Its descriptor; of an old one, the number that it had."""
    offset: int
    size: int
    """Bytes; 0 for an event without a range: the whole file."""
    pid: int
    """The process that waits."""
    old: bool
    """Whether a predecessor read it: its descriptor is not ours."""


def open_logs(paths: Iterable[Path]) -> dict[Path, EventLog]:
    """Opens logs that a dead hydrator may have left, and occupies the numbers of their events' descriptors.

    To be called before anything else is opened that may ever be closed, but for the standard streams.

    Raises:
        NotFound: One is not there.
        Invalid: One is not a log.
    """
    contents = {path: _read(path) for path in paths}
    # All numbers are occupied before any log is mapped, since a map keeps a descriptor.
    reserved = {path: _reserve(content) for path, content in contents.items()}
    return {path: EventLog(path, found) for path, found in reserved.items()}


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such event log") from error
    if len(content) != _SIZE:
        raise Invalid(f"{path} is not an event log of {SLOTS} slots")
    return content


def _reserve(content: bytes) -> dict[int, int | None]:
    """{slot: the descriptor that occupies the number of its event; None where that number cannot be had}."""
    used = [_parse(content, slot) for slot in range(SLOTS) if content[slot * SLOT : slot * SLOT + 4] != _FREE]
    return {event.slot: _occupy(event.fd) for event in used if event.fd >= 0}


def _occupy(number: int) -> int | None:
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    if null == number:
        return null
    try:
        found = fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, number)  # the lowest free one from there on
    except OSError as error:
        if error.errno != errno.EINVAL:  # beyond our limit of open files
            raise
        return None
    finally:
        os.close(null)
    if found != number:
        os.close(found)
        return None
    return found


def _parse(memory: mmap.mmap | bytes, slot: int, *, old: bool = False) -> Event:
    length, _, _, metadata, _, descriptor, pid = _METADATA.unpack_from(memory, slot * SLOT)
    if length == SLOT:
        kind, _, _, _, offset, count = _RANGE.unpack_from(memory, slot * SLOT + metadata)
        if kind == _RANGE_KIND:
            return Event(slot, descriptor, offset, count, pid, old)
    return Event(slot, descriptor, 0, 0, pid, old)


class EventLog:
    """The log of one fanotify group. One thread reads events; any thread answers.

    The group must be non-blocking, of class FAN_CLASS_PRE_CONTENT, without further records (FAN_REPORT_*).
    """

    def __init__(self, path: Path, reserved: dict[int, int | None]) -> None:
        """Use :meth:`create`, :meth:`open` or :func:`open_logs`."""
        self._path = path
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self._memory = mmap.mmap(descriptor, _SIZE, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        finally:
            os.close(descriptor)
        view = memoryview(self._memory)
        self._slots = [view[slot * SLOT : (slot + 1) * SLOT] for slot in range(SLOTS)]
        view.release()
        self._reserved = reserved
        self._ambiguous = {slot for slot, number in reserved.items() if number is None}
        self._old = [_parse(self._memory, slot, old=True) for slot in reserved]
        self._free = [slot for slot in reversed(range(SLOTS)) if slot not in reserved]
        self._freed = threading.Event()
        self._is_waiting = False
        self._is_lent = False
        self._batch = 2

    @classmethod
    def create(cls, path: Path) -> EventLog:
        """Makes an empty log, in place of one that is there.

        Raises:
            OSError: It cannot be written: ENOSPC, now rather than when an event comes.
        """
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            # Written, not only made long: a page without a block that cannot get one would cost an event (EFAULT in read).
            os.write(descriptor, bytes(_SIZE))
        finally:
            os.close(descriptor)
        return cls(path, {})

    @classmethod
    def open(cls, path: Path) -> EventLog:
        """Opens one log; see :func:`open_logs`, which is for several, and first of all."""
        return open_logs([path])[path]

    def unanswered(self) -> list[Event]:
        """The events that a predecessor left, in no order. To be answered as new ones are."""
        return [event for event in self._old if event.slot in self._reserved]

    def read_from(self, group: int) -> list[Event]:
        """Takes the events that are waiting, at most 16; none where none is.

        Waits (blocks) while the log is full, or may not take events until old ones are answered: at most a second, so that
        the caller can see whether it is to stop.

        Raises:
            OSError: The group cannot be read.
            Internal: It is not set up as it must be.
        """
        if (self._ambiguous or not self._free) and not self.wait():
            return []
        # One reader's events come one at a time: buffers for a crowd would cost each of them time.
        slots = [self._free.pop() for _ in range(min(self._batch, len(self._free)))]
        try:
            taken = self._take(group, [self._slots[slot] for slot in slots])
        except BaseException:
            self._free.extend(reversed(slots))
            raise
        self._free.extend(reversed(slots[taken:]))
        self._batch = _BATCH if taken == len(slots) else 2
        return [self._checked(slot) for slot in slots[:taken]]

    def wait(self) -> bool:
        """Waits, for a second at most, until events may be taken: no old one's number is in doubt, and a slot is free.

        Returns:
            Whether they may.
        """
        self._freed.clear()
        self._is_waiting = True
        if self._ambiguous or not self._has_room():
            self._freed.wait(1.0)
        self._is_waiting = False
        return not self._ambiguous and self._has_room()

    def _has_room(self) -> bool:
        return any(slot[:4] == _FREE for slot in self._slots) if self._is_lent else bool(self._free)

    @property
    def is_ambiguous(self) -> bool:
        """Whether no event may be taken, since an old one's number might be a new one's."""
        return bool(self._ambiguous)

    def lend(self) -> memoryview:
        """The memory, for a reader that looks for free slots itself; ``read_from`` is not to be called from now on.

        It is to be let go of before :meth:`close`.
        """
        self._is_lent = True
        return memoryview(self._memory)

    def event(self, slot: int) -> Event:
        """The event that was read into a slot.

        Raises:
            Internal: The group is not set up as it must be.
        """
        return self._checked(slot)

    def _take(self, group: int, buffers: list[memoryview]) -> int:
        """Reads into buffers of one event each: fanotify fills each by a read of its own, and stops at the first without."""
        try:
            size = os.readv(group, buffers)
        except BlockingIOError:
            return 0
        return -(-size // SLOT)

    def _checked(self, slot: int) -> Event:
        event = _parse(self._memory, slot)
        if self._memory[slot * SLOT + 4] != 3 or event.fd < 0:
            raise Internal(f"{self._path}: the kernel's events are of another kind than were asked for")
        return event

    def answer(self, group: int, event: Event, response: int) -> None:
        """Answers an event, frees its slot, closes its descriptor, in this order.

        Args:
            group: The group's descriptor.
            event: From :meth:`read_from` or :meth:`unanswered`.
            response: ``ALLOW``, or ``denied(errno)``.

        Raises:
            OSError: The group does not take it.
        """
        try:  # noqa: SIM105 - contextlib.suppress is slow, and this is done for every event
            os.write(group, _RESPONSE.pack(event.fd, response))
        except FileNotFoundError:  # it was answered, and who did so died before it could say so here
            pass
        self.answered(event)
        if not event.old:
            os.close(event.fd)

    def answered(self, event: Event) -> None:
        """Frees the slot of an event that was answered. Its descriptor may be closed after this, not before."""
        slot = event.slot
        self._slots[slot][:4] = _FREE
        if event.old:
            reserved = self._reserved.pop(slot)
            if reserved is not None:
                os.close(reserved)
            self._ambiguous.discard(slot)
        if not self._is_lent:
            self._free.append(slot)
        if self._is_waiting:  # asked first: set() takes a lock, and this is done for every event
            self._freed.set()

    def close(self) -> None:
        """Unmaps the file, which stays, and gives numbers back. Nobody may be reading or answering. Idempotent."""
        for slot in self._slots:
            slot.release()
        self._memory.close()
        for number in self._reserved.values():
            if number is not None:
                os.close(number)
        self._slots, self._reserved, self._old = [], {}, []
