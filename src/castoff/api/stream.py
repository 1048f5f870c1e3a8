"""Machines as they change, for any number of browsers: one reader of the changes, one encoder, a bounded queue for each browser.

    Machines.subscribe -> pending (the last state of each machine) -> a batch now and then, encoded once -> every queue

A browser that does not read as fast as machines change loses nothing that counts: its queue runs over, its connection is
closed, and when it comes back it tells the last batch that it had (``Last-Event-ID``). Where that is still remembered it gets
what came after, else every machine anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Final, Protocol

import msgspec

from castoff.errors import Unavailable
from castoff.lifecycle.checks import check_statuses

__all__ = ["Fleet", "MachineStream", "Subscriber", "event_row", "machine_row"]

_REMEMBERED: Final = 256
"""Batches."""
_QUEUE: Final = 32
"""Batches that wait for one browser."""
_MOST: Final = 500
"""Browsers."""
_PAUSE: Final = 0.05
_PAUSE_EACH: Final = 0.002
"""Seconds between batches, and more for each browser: what they cost all together is at most a few percent of a CPU."""
_ROWS: Final = 10_000
"""Machines that a browser is told of."""


class Fleet(Protocol):
    """What of castoff.lifecycle.machines.Machines is needed."""

    def list(self, app: str | None = None) -> Sequence[Any]:
        """The machines that are there, of one app or of all."""
        ...

    def get(self, app: str | None, id: str) -> Any:
        """One machine.

        Raises:
            NotFound: There is none.
        """
        ...

    def subscribe(self) -> AsyncIterator[Any]:
        """Changes, each with the machine as it is since then; ends for whoever does not keep up."""
        ...


def machine_row(machine: Any) -> dict[str, Any]:
    """A machine as the page has it: all that a list shows, and nothing secret."""
    last = machine.events[0] if machine.events else None
    return {
        "id": machine.id,
        "app": machine.app,
        "name": machine.name,
        "region": machine.region,
        "state": str(machine.state),
        "image": machine.config.image,
        "digest": machine.digest,
        "version": machine.version,
        "cordoned": machine.cordoned,
        "created": machine.created,
        "updated": machine.updated,
        "checks": [{"name": check.name, "status": check.status, "output": check.output} for check in check_statuses(machine)],
        "event": None if last is None else event_row(last),
    }


def event_row(event: Any) -> dict[str, Any]:
    """An event as the page has it."""
    return {
        "id": event.id,
        "type": event.type,
        "status": event.status,
        "source": event.source,
        "timestamp": event.timestamp,
        "request": event.request,
    }


class _Batch:
    """Rows that changed, encoded at most once for each app that somebody looks at."""

    __slots__ = ("_encoded", "_rows", "app_of", "number")

    def __init__(self, number: int, rows: list[dict[str, Any]]) -> None:
        self.number = number
        self._rows = rows
        self._encoded: dict[str | None, bytes] = {}

    def frame(self, app: str | None, epoch: str, kind: str) -> bytes:
        found = self._encoded.get(app)
        if found is None:
            rows = self._rows if app is None else [row for row in self._rows if row["app"] == app]
            found = self._encoded[app] = _frame(f"{epoch}-{self.number}", kind, rows)
        return found


def _frame(id: str, kind: str, value: Any) -> bytes:
    """An event of text/event-stream (WHATWG HTML 9.2); JSON has no line breaks."""
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (id.encode(), kind.encode(), msgspec.json.encode(value))


class Subscriber:
    """One browser's queue. Made by :meth:`MachineStream.subscribe`.

    Attributes:
        is_dropped: It did not keep up, or the stream was closed: there will be no more.
    """

    def __init__(self, dropped: Callable[[], None]) -> None:
        self.is_dropped = False
        self._dropped = dropped
        self._frames: deque[bytes] = deque()
        self._wake = asyncio.Event()

    async def next(self) -> bytes | None:
        """What is to be sent next; None once it is dropped."""
        while not self._frames and not self.is_dropped:
            self._wake.clear()
            await self._wake.wait()
        return None if self.is_dropped else self._take()

    def put(self, frame: bytes) -> bool:
        """Adds a frame; False where too many wait, and the browser was dropped for it."""
        if len(self._frames) >= _QUEUE:
            self.drop()
            return False
        if not self.is_dropped:
            self._frames.append(frame)
            self._wake.set()
        return True

    def drop(self) -> None:
        """Ends it, also a write that waits for the browser. Idempotent."""
        if not self.is_dropped:
            self.is_dropped = True
            self._frames.clear()
            self._wake.set()
            self._dropped()

    def _take(self) -> bytes:
        """All that waits, in one piece: one write."""
        taken = b"".join(self._frames)
        self._frames.clear()
        return taken


class MachineStream:
    """Tells browsers of machines. Made by :meth:`open`.

    Attributes:
        dropped: Browsers that were dropped since they did not keep up.
    """

    def __init__(self, machines: Fleet) -> None:
        self.dropped = 0
        self._machines = machines
        self._epoch = secrets.token_hex(4)
        self._number = 0
        self._pending: dict[str, Any] = {}
        self._changed = asyncio.Event()
        self._batches: deque[_Batch] = deque(maxlen=_REMEMBERED)
        self._snapshot: _Batch | None = None
        self._subscribers: dict[Subscriber, str | None] = {}
        self._is_closed = False

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, machines: Fleet) -> AsyncIterator[MachineStream]:
        """A stream that works during the block; at its end every browser is dropped."""
        stream = cls(machines)
        tasks = [asyncio.create_task(stream._read()), asyncio.create_task(stream._send())]
        try:
            yield stream
        finally:
            stream.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._subscribers)

    @contextlib.contextmanager
    def subscribe(self, app: str | None, last: str, dropped: Callable[[], None]) -> Iterator[Subscriber]:
        """A browser, for the block: it gets every machine first, or what changed since ``last``.

        Args:
            app: The one app whose machines it may see; None: all of them.
            last: ``Last-Event-ID``, or empty.
            dropped: Called when it is dropped: ends a write that waits.

        Raises:
            Unavailable: There are too many, or the agent ends.
        """
        if self._is_closed or len(self._subscribers) >= _MOST:
            raise Unavailable(f"{len(self._subscribers)} browsers watch already", hint="try again later")
        subscriber = Subscriber(dropped)
        for frame in self._since(app, last):
            subscriber.put(frame)
        self._subscribers[subscriber] = app
        try:
            yield subscriber
        finally:
            self._subscribers.pop(subscriber, None)

    def close(self) -> None:
        """Drops every browser, and takes no more. Idempotent."""
        self._is_closed = True
        self.drop_all()

    def drop_all(self) -> None:
        """Drops every browser; they come back."""
        for subscriber in list(self._subscribers):
            subscriber.drop()

    def _since(self, app: str | None, last: str) -> list[bytes]:
        epoch, _, text = last.partition("-")
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1
        oldest = self._batches[0].number if self._batches else self._number + 1
        if epoch != self._epoch or not oldest - 1 <= number <= self._number:
            return [self._everything().frame(app, self._epoch, "machines")]
        missed = [batch for batch in self._batches if batch.number > number]
        if len(missed) >= _QUEUE:
            return [self._everything().frame(app, self._epoch, "machines")]
        return [_frame(last, "again", None), *(batch.frame(app, self._epoch, "changes") for batch in missed)]

    def _everything(self) -> _Batch:
        """All machines; looked at once for all who come before the next batch. What is pending comes again, which harms none."""
        if self._snapshot is None or self._snapshot.number != self._number:
            machines = self._machines.list()[:_ROWS]
            self._snapshot = _Batch(self._number, [machine_row(machine) for machine in machines])
        return self._snapshot

    async def _read(self) -> None:
        """Takes changes as they come, so that whoever makes them never waits for a browser."""
        while True:
            async for change in self._machines.subscribe():
                self._pending[change.machine.id] = change.machine
                self._changed.set()
            # We did not keep up, and do not know what we missed: everybody gets everything.
            self._snapshot = None
            self._number += 1
            self._batches.clear()
            everything = self._everything()
            self._put(everything, "machines")
            await asyncio.sleep(_PAUSE)

    async def _send(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await asyncio.sleep(_PAUSE + _PAUSE_EACH * len(self._subscribers))
            pending, self._pending = self._pending, {}
            self._number += 1
            batch = _Batch(self._number, [machine_row(machine) for machine in pending.values()])
            self._batches.append(batch)
            self._put(batch, "changes")

    def _put(self, batch: _Batch, kind: str) -> None:
        for subscriber, app in list(self._subscribers.items()):
            self.dropped += not subscriber.put(batch.frame(app, self._epoch, kind))
