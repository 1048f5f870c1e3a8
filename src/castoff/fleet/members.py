"""Who is alive: each host's record in a bucket, put there anew with every beat, and watched by all.

A host is alive while its beats come in, by the watcher's own clock: the clocks of hosts may differ. A host's own beats come back
to it by the same way as those of others; when they do not, it is cut off, whatever the connection says, and watches anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec
from nats.js.kv import KeyValue

from castoff.errors import CastoffError, Invalid, Unavailable
from castoff.fleet.connection import Connection, asked, end, until_first
from castoff.fleet.record import MOST_BYTES, HostRecord, read_record

__all__ = ["BEAT", "Member", "Members"]

BEAT: Final = 2.0
"""Seconds between two beats."""
_SILENCE: Final = 4
"""Beats that a host may be silent."""
_LATE: Final = 2
_MOST_HOSTS: Final = 10_000
_MOST_BYTES: Final = 64 << 20
"""Of all records: servers set so much of their memory aside."""
_BUCKET: Final = "hosts"
_FAREWELL: Final = 2.0


@dataclass(frozen=True, slots=True)
class Member:
    """A host of the fleet."""

    record: HostRecord
    seen: float
    """When its last beat came in, of time.monotonic()."""


class Members:
    """The hosts of the fleet, this one too. Made by :meth:`open`."""

    def __init__(
        self, connection: Connection, describe: Callable[[], HostRecord], notice: Callable[[str], None], beat: float
    ) -> None:
        self._connection = connection
        self._describe = describe
        self._notice = notice
        self._beat = beat
        self._known: dict[str, Member] = {}
        self._refused: set[str] = set()
        self._changed: set[asyncio.Event] = set()
        self._soon = asyncio.Event()
        self._alive: frozenset[str] = frozenset()
        self.own = describe().id
        """This host's id."""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        connection: Connection,
        describe: Callable[[], HostRecord],
        *,
        notice: Callable[[str], None] = lambda line: None,
        beat: float = BEAT,
    ) -> AsyncIterator[Members]:
        """Joins the fleet for the block, and leaves it at its end.

        Args:
            connection: The way there.
            describe: What this host says of itself now.
            notice: Called with a line for people.
            beat: Seconds between two beats; the same on all hosts.
        """
        members = cls(connection, describe, notice, beat)
        living = asyncio.create_task(members._live())
        try:
            yield members
        finally:
            await end(living)
            with contextlib.suppress(CastoffError, TimeoutError):
                async with asyncio.timeout(_FAREWELL):
                    await members._leave()

    def alive(self) -> list[Member]:
        """The hosts whose beats come in, by name."""
        since = time.monotonic() - _SILENCE * self._beat
        found = [member for member in self._known.values() if member.seen >= since]
        return sorted(found, key=lambda member: (member.record.name, member.record.id))

    def find(self, identity: str) -> HostRecord | None:
        """A host that is alive."""
        member = self._known.get(identity)
        return None if member is None or member.seen < time.monotonic() - _SILENCE * self._beat else member.record

    @property
    def is_cut_off(self) -> bool:
        """Whether this host's own beats do not come back."""
        return self.find(self.own) is None

    @property
    def is_in_doubt(self) -> bool:
        """Whether this host may have been cut off just now: its last beat is late, and the silence of others says nothing."""
        own = self._known.get(self.own)
        return own is None or own.seen < time.monotonic() - _LATE * self._beat

    def beat_soon(self) -> None:
        """What this host says of itself has changed: others shall hear it before the next beat is due."""
        self._soon.set()

    @contextlib.contextmanager
    def changes(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever a host came, went, or said something new."""
        event = asyncio.Event()
        self._changed.add(event)
        try:
            yield event
        finally:
            self._changed.discard(event)

    async def _live(self) -> None:
        told = ""
        while True:
            try:
                bucket = await self._connection.bucket(
                    _BUCKET,
                    ttl=3 * _SILENCE * self._beat,
                    durable=False,
                    most_bytes=_MOST_BYTES,
                    value_bytes=MOST_BYTES,
                )
                await until_first(self._beat_forever(bucket), self._watch(bucket), self._look_forever())
            except CastoffError as failed:
                why = str(failed)
                if self._connection.is_connected and why != told:  # else the connection tells of it
                    self._notice(f"this host is not seen in its fleet: {why}")
                    told = why
            self._look()
            await asyncio.sleep(self._beat)

    async def _beat_forever(self, bucket: KeyValue) -> None:
        started = time.monotonic()
        while True:
            record = self._describe()
            with asked("the beat of this host"):
                await bucket.put(record.id, msgspec.json.encode(record))
            self._soon.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._beat):
                    await self._soon.wait()
            if self.is_cut_off and time.monotonic() - started > _SILENCE * self._beat:
                raise Unavailable("this host's own beats do not come back")

    async def _watch(self, bucket: KeyValue) -> None:
        with asked("watching the hosts"):
            watcher = await bucket.watchall()
            try:
                while True:
                    with contextlib.suppress(TimeoutError):
                        entry = await watcher.updates(timeout=_SILENCE * self._beat)  # type: ignore[no-untyped-call]
                        if entry is not None:
                            self._hear(entry.key, entry.value, gone=entry.operation is not None)
            finally:
                await watcher.stop()  # type: ignore[no-untyped-call]

    def _hear(self, key: str, data: bytes | None, *, gone: bool) -> None:
        if gone or not data:
            self._known.pop(key, None)
        else:
            try:
                record = read_record(key, data)
            except Invalid as error:
                if key not in self._refused and len(self._refused) < _MOST_HOSTS:
                    self._refused.add(key)
                    self._notice(f"not believed: {error}")
                return
            if len(self._known) >= _MOST_HOSTS and key not in self._known:
                return
            before = self._known.get(key)
            self._known[key] = Member(record, time.monotonic())
            if before is not None and _same(before.record, record):
                return
        self._tell()

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(self._beat)
            self._look()

    def _look(self) -> None:
        """Notices who has fallen silent."""
        now = time.monotonic()
        for key in [key for key, member in self._known.items() if member.seen < now - 10 * _SILENCE * self._beat]:
            del self._known[key]
        alive = frozenset(member.record.id for member in self.alive())
        if alive != self._alive:
            self._alive = alive
            self._tell()

    def _tell(self) -> None:
        for event in self._changed:
            event.set()

    async def _leave(self) -> None:
        with asked("leaving the fleet"):
            bucket = await self._connection.jetstream().key_value(self._connection.bucket_name(_BUCKET))
            await bucket.delete(self.own)


def _same(before: HostRecord, after: HostRecord) -> bool:
    return msgspec.structs.replace(before, clock=0) == msgspec.structs.replace(after, clock=0)
