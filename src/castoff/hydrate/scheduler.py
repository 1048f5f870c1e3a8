"""What is fetched next: what a guest waits for, then what it is known to want soon, then the rest.

- *Foreground*: chunks that a guest waits for. Asked for at once, each by itself, so that none waits for another.
- *Prefetch*: chunks of the boot profile, in its order, and a few behind a miss where the round trip costs more than they do.
  Several small batches are under way at a time, which hides the round trip; one while the foreground is busy. A batch once
  begun is never held up, since a guest may be waiting for a chunk of it by now.
- *Background*: the rest, once the machine is ready, while nobody waits and nothing is to be prefetched; the slower, the more of
  this host's work waits for a processor.

All of it runs in the event loop; a chunk is fetched once, however many rootfs want it (``Segment.coming``).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from enum import IntEnum
from typing import Any

from castoff.errors import CastoffError, Internal, Unavailable
from castoff.hydrate.fill import Filler
from castoff.hydrate.origin import Origin
from castoff.hydrate.pressure import Pressure, rest
from castoff.hydrate.segments import Segment
from castoff.hydrate.served import Served
from castoff.hydrate.state import ABSENT, PRESENT
from castoff.sources.urgency import URGENCY, Urgency

__all__ = ["Class", "Scheduler"]

_STALL = 30.0
"""Seconds without a chunk after which a fetch is given up and tried anew: below every limit above it."""


class Class(IntEnum):
    """Why a chunk is fetched; the lower goes first."""

    FOREGROUND = 0
    PREFETCH = 1
    BACKGROUND = 2


_AT_ONCE = {Class.FOREGROUND: 16, Class.PREFETCH: 4, Class.BACKGROUND: 2}
"""Fetches that are under way at a time."""
_URGENCY = {
    Class.FOREGROUND: Urgency.WAITED_FOR,
    Class.PREFETCH: Urgency.SOON,
    Class.BACKGROUND: Urgency.BULK,
}
_BATCH = {Class.FOREGROUND: 4, Class.PREFETCH: 8, Class.BACKGROUND: 4}
"""Chunks of one fetch; in the foreground they are neighbours that one request wants. In the background few: what is under way
when a guest begins to wait is before it in the link's queue (290 KB a batch, 12 ms at 200 Mbit/s)."""
_FOLLOWING = 1
"""Chunks that are fetched after one that a guest waited for, or that was fetched so itself and is used now, where a file goes on
in them: in four of five cases they are wanted (docs/decisions/0083-the-file-goes-on.md)."""


class Scheduler:
    """Decides, fetches, and hands what came to the filler.

    Args:
        filler: Brings chunks to those who lack them.
        pressure: On this host's processors.
    """

    def __init__(self, filler: Filler, pressure: Pressure | None = None) -> None:
        self._filler = filler
        self._pressure = pressure or Pressure()
        self._rests_until = 0.0
        self._served: list[Served] = []
        self._foreground: deque[tuple[Segment, int]] = deque()
        self._running = dict.fromkeys(Class, 0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._behind: dict[tuple[Segment, int], Served] = {}
        """Misses under way, behind which there may be something to fetch when they have come."""
        self._limited: dict[Served, float] = {}
        """When the background of a rootfs with a limit may go on."""

    def add(self, served: Served) -> None:
        """Begins to work for a rootfs."""
        self._served.append(served)
        self.want(served, served.awaited())

    def remove(self, served: Served) -> None:
        """Ends to. What is being fetched is kept all the same."""
        self._served.remove(served)
        self._limited.pop(served, None)
        self._behind = {miss: other for miss, other in self._behind.items() if other is not served}

    async def close(self) -> None:
        """Stops all work."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def want(self, served: Served, rows: Iterable[int]) -> None:
        """A guest waits for these rows."""
        for row in rows:
            segment, number = self._place_of(served, row)
            if served.states[row] == PRESENT:
                served.filled(row)
            elif served.states[row] == ABSENT:
                if segment.has(number):
                    self._spawn(self._take(segment, number))
                elif number not in segment.coming:
                    segment.coming.add(number)
                    self._foreground.append((segment, number))
                    self._read_ahead(served, segment, number)
                elif served.states.is_watched(row):
                    self._behind[segment, number] = served
        self.pump()

    def used(self, served: Served, rows: Iterable[int]) -> None:
        """Chunks that were fetched behind others are used now."""
        if served.is_released:
            return
        for row in rows:
            self._go_on(served, *self._place_of(served, row))
        self.pump()

    def prefetch(self, served: Served, rows: Iterable[int]) -> None:
        """Rows that a guest is going to want, in this order, after those that are queued already."""
        served.prefetch.extend(rows)
        self.pump()

    def bring(self, segment: Segment, number: int, data: bytes) -> asyncio.Task[None]:
        """A verified chunk that somebody else has fetched."""
        return self._spawn(self._arrived(segment, number, data))

    def give_back(self, segment: Segment, number: int) -> None:
        """A chunk that somebody else was to bring, and does not: it is free to be fetched, at once where a guest waits for it."""
        segment.coming.discard(number)
        self._again(segment, [number], Class.BACKGROUND)

    def _read_ahead(self, served: Served, segment: Segment, number: int) -> None:
        """A chunk is going to be fetched since a guest waits for it: what is fetched with it, or as soon as it is here.

        With it goes what the link could carry during the round trip. What the guest is likely to want, but the link would carry
        in the place of the miss, waits until that is here.
        """
        origin = segment.origins[0] if segment.origins else None
        if origin is None:
            return
        count = origin.pace.ahead(served.record.hydrate.read_ahead)
        self._fetch_ahead(served, segment, range(number + 1, number + 1 + count))
        self._behind[segment, number] = served

    def _came(self, segment: Segment, number: int) -> None:
        """A chunk is here; where a guest waits for it, the link is free for what its file has behind it."""
        served = self._behind.pop((segment, number), None)
        if served is not None:
            self._go_on(served, segment, number)
            self.pump()

    def _go_on(self, served: Served, segment: Segment, number: int) -> None:
        end = number + 1 + min(_FOLLOWING, served.record.hydrate.read_ahead)
        self._fetch_ahead(served, segment, range(number + 1, min(end, segment.run_end(number))))

    def _fetch_ahead(self, served: Served, segment: Segment, numbers: Iterable[int]) -> None:
        rows = segment.takers[served]
        for number in numbers:
            row = rows.get(number)
            if row is not None and served.states[row] == ABSENT and number not in segment.coming:
                served.states.watch(row)
                served.ahead.append(row)

    def _place_of(self, served: Served, row: int) -> tuple[Segment, int]:
        return served.segments[served.map.layer_of[row]], served.map.layer_chunk_of[row]

    # Choosing.

    def pump(self) -> None:
        """Starts what may be started now."""
        if self._closed:
            return
        now = time.monotonic()
        wake: list[float] = []
        self._start_foreground(now, wake)
        busy = self._running[Class.FOREGROUND] > 0 or bool(self._foreground)
        while self._running[Class.PREFETCH] < (1 if busy else _AT_ONCE[Class.PREFETCH]):
            if not self._start_batch(Class.PREFETCH, self._next_prefetch, now, wake):
                break
        if not busy and not self._running[Class.PREFETCH]:
            while self._running[Class.BACKGROUND] < _AT_ONCE[Class.BACKGROUND]:
                if not self._start_batch(Class.BACKGROUND, self._next_background, now, wake):
                    break
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wake:
            delay = max(min(wake) - now, 0.001)
            self._timer = asyncio.get_running_loop().call_later(delay, self.pump)

    def _start_foreground(self, now: float, wake: list[float]) -> None:
        later: deque[tuple[Segment, int]] = deque()
        while self._foreground and self._running[Class.FOREGROUND] < _AT_ONCE[Class.FOREGROUND]:
            segment, number = self._foreground.popleft()
            numbers = [number]
            while (
                self._foreground and self._foreground[0] == (segment, numbers[-1] + 1) and len(numbers) < _BATCH[Class.FOREGROUND]
            ):
                numbers.append(self._foreground.popleft()[1])
            if not self._start(segment, numbers, Class.FOREGROUND, now, wake):
                later.extend((segment, number) for number in numbers)
        self._foreground.extendleft(reversed(later))

    def _start(self, segment: Segment, numbers: Sequence[int], kind: Class, now: float, wake: list[float]) -> bool:
        origin = next((origin for origin in segment.origins if origin.retry_at <= now), None)
        if origin is None:
            wake.extend(origin.retry_at for origin in segment.origins)
            return False
        segment.coming.update(numbers)
        self._running[kind] += 1
        self._spawn(self._fetch(segment, numbers, kind, origin))
        return True

    def _start_batch(self, kind: Class, choose: Any, now: float, wake: list[float]) -> bool:
        """Starts one batch of the first rootfs that has one; False where there is none to start."""
        for served in list(self._served):
            rows = choose(served, now, wake)
            if not rows:
                continue
            self._served.remove(served)
            self._served.append(served)  # the next turn is another's
            if self._start_rows(served, rows, kind, now, wake):
                return True
        return False

    def _start_rows(self, served: Served, rows: Sequence[int], kind: Class, now: float, wake: list[float]) -> bool:
        batches: dict[Segment, list[int]] = {}
        for row in rows:
            segment, number = self._place_of(served, row)
            batches.setdefault(segment, []).append(number)
        started = False
        for segment, numbers in batches.items():
            if self._start(segment, sorted(numbers), kind, now, wake):
                started = True
            elif kind is Class.PREFETCH:
                mine = segment.takers[served]
                served.prefetch.extendleft(mine[number] for number in reversed(numbers))
            else:
                served.skipped()
        return started

    def _next_prefetch(self, served: Served, now: float, wake: list[float]) -> list[int]:
        found: list[int] = []
        for queue in (served.ahead, served.prefetch):
            while queue and len(found) < _BATCH[Class.PREFETCH]:
                row = queue.popleft()
                segment, number = self._place_of(served, row)
                if served.states[row] != ABSENT or number in segment.coming:
                    continue
                if segment.has(number):
                    self._spawn(self._take(segment, number))
                else:
                    found.append(row)
        return found

    def _next_background(self, served: Served, now: float, wake: list[float]) -> list[int]:
        settings = served.record.hydrate
        if served.states.complete or not settings.background:
            return []
        begin = served.began + settings.background_after
        if not served.is_ready and now < begin:
            wake.append(begin)
            return []
        allowed = max(self._limited.get(served, 0.0), self._rests_until)
        if now < allowed:
            wake.append(allowed)
            return []
        rows, here = [], []
        for row in served.background_rows(_BATCH[Class.BACKGROUND]):
            segment, number = self._place_of(served, row)
            if segment.has(number):
                here.append((segment, number))
            else:
                rows.append(row)
        if here:
            self._running[Class.BACKGROUND] += 1
            self._spawn(self._take_all(here))
        if settings.background_limit and rows:
            size = sum(_packed(*self._place_of(served, row)) for row in rows)
            self._limited[served] = max(allowed, now) + size / settings.background_limit
        return rows

    # Doing.

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _fetch(self, segment: Segment, numbers: Sequence[int], kind: Class, origin: Origin) -> None:
        """One try to get these chunks; what did not come is queued again."""
        left = set(numbers)
        begun, worked = time.monotonic(), time.process_time()
        URGENCY.set(_URGENCY[kind])  # this task's, and of those that it starts
        filling: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(_STALL) as stall, aclosing(origin.reader.fetch(segment.index, numbers)) as chunks:
                async for number, data in chunks:
                    stall.reschedule(asyncio.get_running_loop().time() + _STALL)
                    if number in left:
                        left.discard(number)
                        origin.worked()
                        filling.append(self.bring(segment, number, data))
                        del data
                        self._came(segment, number)
            origin.pace.took(sum(_packed(segment, number) for number in numbers), len(numbers), time.monotonic() - begun)
            if left:
                raise Unavailable(f"{origin.name} ended without {len(left)} of {len(numbers)} chunks")
        except TimeoutError:
            origin.failed(Unavailable(f"{origin.name} sent nothing for {_STALL:g} s"), begun)
        except CastoffError as error:
            origin.failed(error, begun)
        except Exception as error:  # a fault of ours: said, and tried again after a while, rather than at once and for ever
            origin.failed(Internal(f"{origin.name}: {type(error).__name__}: {error}"), begun)
        finally:
            segment.coming -= left
            self._again(segment, sorted(left), kind)
            if filling:
                await asyncio.gather(*filling, return_exceptions=True)
            self._ended(kind, worked)

    def _ended(self, kind: Class, worked: float) -> None:
        """A fetch of that kind has ended, which began when this process had worked so many seconds: the next one's turn."""
        self._running[kind] -= 1
        if kind is Class.BACKGROUND:  # by what was worked, not by what was waited for: a slow link is no reason to rest
            self._rests_until = time.monotonic() + rest(time.process_time() - worked, self._pressure.share())
        self.pump()

    async def _arrived(self, segment: Segment, number: int, data: bytes) -> None:
        size = _packed(segment, number)
        for served, rows in segment.takers.items():
            if number in rows:
                served.fetched += size
        try:
            await self._filler.fill(segment, number, data)
        except OSError as error:
            self._disk_failed(segment, number, error)
        finally:
            segment.coming.discard(number)

    async def _take(self, segment: Segment, number: int) -> None:
        """Fills from the segment, which has the chunk."""
        try:
            await self._filler.fill(segment, number, None)
        except OSError as error:
            self._disk_failed(segment, number, error)

    async def _take_all(self, chunks: Sequence[tuple[Segment, int]]) -> None:
        """A batch of the background that need not be fetched."""
        worked = time.process_time()
        try:
            for segment, number in chunks:
                await self._take(segment, number)
        finally:
            self._ended(Class.BACKGROUND, worked)

    def _disk_failed(self, segment: Segment, number: int, error: OSError) -> None:
        for served, rows in segment.takers.items():
            if number in rows:
                served.say(f"chunk {number} of layer {segment.diff_id} cannot be written: {error.strerror}")
        asyncio.get_running_loop().call_later(1.0, self._again, segment, [number], Class.PREFETCH)

    def _again(self, segment: Segment, numbers: Sequence[int], kind: Class) -> None:
        """Queues chunks anew that did not come: those that a guest waits for, and those that were on a list."""
        for number in numbers:
            rows = [(served, row) for served, mine in segment.takers.items() if (row := mine.get(number)) is not None]
            awaiting = [(served, row) for served, row in rows if served.is_awaited(row)]
            for served, row in awaiting:
                self.want(served, [row])
            if not awaiting and kind is Class.PREFETCH:
                for served, row in rows:
                    served.prefetch.append(row)


def _packed(segment: Segment, number: int) -> int:
    return int(segment.index.locations.length[number])
