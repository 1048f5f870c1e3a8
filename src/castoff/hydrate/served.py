"""One rootfs that is served: its rows, who waits for them, and how one is filled.

The order is what keeps a guest from ever reading a hole: the bytes are in ``root.ext4``, then the row is present, then whoever
waits is let through. What happens on which thread: ``present``, ``want`` and ``note`` on the front's; ``fill`` in a pool;
everything else in the event loop, which alone decides what is filled, so that no lock is needed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from castoff.hydrate.client import Progress
from castoff.hydrate.front import Answer, LazyFront, Recorder
from castoff.hydrate.map import LazyMap
from castoff.hydrate.origin import Origin
from castoff.hydrate.record import EVENTS, MAP, STATE, LazyRecord
from castoff.hydrate.segments import Segment
from castoff.hydrate.state import ABSENT, PRESENT, ChunkStates
from castoff.layers.toc import CHUNK
from castoff.store.extents import clone_range

__all__ = ["Served", "Waiting"]


class Waiting:
    """A request of the guest that waits."""

    __slots__ = ("answer", "rows", "timer")

    def __init__(self, rows: set[int], answer: Answer) -> None:
        self.rows = rows
        self.answer = answer
        self.timer: asyncio.TimerHandle | None = None


class Served:
    """One rootfs, served. Implements castoff.hydrate.front.Hydration.

    Args:
        directory: Its files.
        record: Its ``lazy.json``.
        front: How it is served.
        missed: Called in the event loop with rows that a guest waits for.
        used: Called in the event loop with rows that were watched (castoff.hydrate.state) and are used now.
    """

    def __init__(
        self,
        directory: Path,
        record: LazyRecord,
        front: LazyFront,
        missed: Callable[[Served, list[int]], None],
        used: Callable[[Served, list[int]], None],
    ) -> None:
        """Reads map and state; blocks.

        Raises:
            NotFound, Invalid: One is missing or broken.
        """
        self.directory = directory
        self.id = directory.name
        self.record = record
        self.map = LazyMap.read(directory / MAP, size=record.size, layers=len(record.layers))
        self.states = ChunkStates(directory / STATE, self.map)
        self.segments: list[Segment] = []
        """Of the record's layers, in its order."""
        self.front = front
        self.recorder: Recorder | None = None
        self.prefetch: deque[int] = deque()
        """Rows to fetch before anything else that nobody waits for, in order."""
        self.ahead: deque[int] = deque()
        """Rows behind a miss, which come before those of ``prefetch``."""
        self.began = time.monotonic()
        self.is_ready = False
        self.is_ending = False
        """It is complete, and being let go of."""
        self.is_released = False
        """Nothing is fetched for it any more."""
        self.gone = False
        self.last_request = 0.0
        """time.monotonic() of the guest's last request that missed."""
        self.fetched = 0
        self.misses = 0
        self._missed = missed
        self._used = used
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, list[Waiting]] = {}
        self._requests = 0
        self._background: list[int] = []
        self._full = ""
        self._unsaid: deque[bytes] = deque(maxlen=20)
        self._filling = 0
        self._settled = asyncio.Event()
        self._settled.set()

    # On the front's thread.

    def present(self, start: int, end: int) -> bool:
        """See castoff.hydrate.front.Hydration."""
        if not self.states.available(start, end):
            return False
        used = self.states.used(start, end)
        if used:
            self._loop.call_soon_threadsafe(self._used, self, used)
        return True

    @property
    def holes(self) -> bytearray:
        """See castoff.hydrate.front.Hydration."""
        return self.states.holes

    def want(self, start: int, end: int, answer: Answer) -> None:
        """See castoff.hydrate.front.Hydration."""
        self._loop.call_soon_threadsafe(self._want, start, end, answer)

    # In the pool.

    def fill(self, row: int) -> None:
        """Puts a chunk that its segment has into ``root.ext4``, and marks it present. The row must be filling; blocks.

        Raises:
            OSError: The disk failed, or is full: the row is absent again.
        """
        segment, number = self.segments[self.map.layer_of[row]], self.map.layer_chunk_of[row]
        try:
            _place(segment, number, self.front.descriptors.fill, self.map.chunk_of[row] * CHUNK)
        except BaseException:
            self.states.abandon(row)
            raise
        self.states.finish(row)

    # In the event loop.

    def _want(self, start: int, end: int, answer: Answer) -> None:
        rows = {row for row in self.map.rows_in(start, end) if self.states[row] != PRESENT}
        if self.gone:
            answer(errno.EIO)
            return
        if not rows:
            answer(0)
            return
        self.misses += 1
        self.last_request = time.monotonic()
        waiting = Waiting(rows, answer)
        waiting.timer = self._loop.call_later(self.record.hydrate.give_up, self._give_up, waiting)
        self._requests += 1
        for row in rows:
            self._waiting.setdefault(row, []).append(waiting)
        self._missed(self, sorted(rows))

    def filled(self, row: int) -> None:
        """A row is present: whoever waited for it goes on."""
        for waiting in self._waiting.pop(row, ()):
            waiting.rows.discard(row)
            if not waiting.rows:
                self._end(waiting, 0)

    def begin(self, row: int) -> bool:
        """The row is going to be filled, and ``end`` called; False where it is not to be."""
        if self.gone or not self.states.begin(row):
            return False
        self._filling += 1
        self._settled.clear()
        return True

    def end(self, row: int) -> bool:
        """Filling has ended; whether the row is present."""
        self._filling -= 1
        if not self._filling:
            self._settled.set()
        return self.states[row] == PRESENT

    async def settled(self) -> None:
        """Waits until nothing is being filled: then descriptors may be closed."""
        await self._settled.wait()

    def is_awaited(self, row: int) -> bool:
        """Whether a guest waits for the row."""
        return row in self._waiting

    def awaited(self) -> list[int]:
        """Rows that a guest waits for."""
        return sorted(self._waiting)

    def refuse(self) -> None:
        """Nothing more will come: whoever waits gets EIO, now and from now on."""
        self.gone = True
        for waiting in {waiting for found in self._waiting.values() for waiting in found}:
            self._end(waiting, errno.EIO)
        self._waiting.clear()

    def _give_up(self, waiting: Waiting) -> None:
        if self._full:  # that is for the operator to end, and no fault of a source
            waiting.timer = self._loop.call_later(self.record.hydrate.give_up, self._give_up, waiting)
            return
        for row in waiting.rows:
            others = self._waiting[row]
            others.remove(waiting)
            if not others:
                del self._waiting[row]
        self.say(f"a read of {len(waiting.rows)} chunks was given up after {self.record.hydrate.give_up:g} s: {self.failing}")
        self._end(waiting, errno.EIO)
        for origin in self._origins():
            origin.start_anew()

    def _end(self, waiting: Waiting, number: int) -> None:
        if waiting.timer is not None:
            waiting.timer.cancel()
        self._requests -= 1
        waiting.answer(number)

    def background_rows(self, most: int) -> list[int]:
        """The next absent rows, neighbours of one layer, for the background."""
        if not self._background:
            self._background = self.states.absent()[::-1]
        found: list[int] = []
        layer_of, number_of = self.map.layer_of, self.map.layer_chunk_of
        while self._background and len(found) < most:
            row = self._background[-1]
            segment = self.segments[layer_of[row]]
            if self.states[row] == ABSENT and number_of[row] not in segment.coming:
                if found and layer_of[row] != layer_of[found[0]]:
                    break
                found.append(row)
            self._background.pop()
        return found

    def skipped(self) -> None:
        """What the background was given could not be fetched now: it begins anew."""
        self._background = []

    def full(self, why: str) -> None:
        """The disk is full (``why``), or no longer (empty)."""
        if bool(why) != bool(self._full):
            self.say(f"waiting for room: {why}" if why else "there is room again")
        self._full = why

    @property
    def failing(self) -> str:
        """Why nothing comes in; empty while it does."""
        if self._full:
            return self._full
        return "; ".join(sorted(origin.failing for origin in self._origins() if origin.failing))

    def _origins(self) -> set[Origin]:
        return {origin for segment in self.segments for origin in segment.origins}

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return Progress(
            rows=len(self.map),
            present=self.states.present,
            fetched=self.fetched,
            misses=self.misses,
            waiting=self._requests,
            failing=self.failing,
            complete=self.states.complete,
        )

    def say(self, line: str) -> None:
        """Appends a line to the directory's events; on a full disk, when there is room again."""
        self._unsaid.append(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}\n".encode())
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self.directory / EVENTS, flags, 0o600)
        except OSError:  # the directory is gone, or the disk full
            return
        try:
            while self._unsaid:
                os.write(descriptor, self._unsaid[0])
                self._unsaid.popleft()
        except OSError:
            return
        finally:
            os.close(descriptor)


def _place(segment: Segment, number: int, target: int, offset: int) -> None:
    """Shares a chunk of the segment with ``target``; copies it where the filesystem cannot share."""
    length, source = segment.length(number), number * CHUNK
    if clone_range(segment.descriptor, target, length=length, source_offset=source, target_offset=offset):
        return
    data = memoryview(os.pread(segment.descriptor, length, source))
    if len(data) != length:
        raise OSError(errno.EIO, f"the segment of {segment.diff_id} ends in chunk {number}")
    while data:
        count = os.pwrite(target, data, offset)
        data, offset = data[count:], offset + count
