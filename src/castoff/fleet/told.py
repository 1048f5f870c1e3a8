"""What each host tells all others: a value a host in one bucket, told when it has changed, and heard by all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from nats.js.kv import KeyValue

from castoff.errors import CastoffError, Invalid
from castoff.fleet.connection import Connection, asked, end

__all__ = ["telling"]

_ANEW: Final = 600.0
"""Seconds after which a value is told again although it is the same, and after thrice which one that is not told is gone."""
_QUIET: Final = 60.0

Say = Callable[[], Awaitable[bytes]]
Hear = Callable[[str, bytes], None]
"""Takes what a host told, b"" where that is gone; raises Invalid where it makes no sense."""


class _Told:
    def __init__(
        self, connection: Connection, bucket: str, own: str, say: Say, hear: Hear, notice: Callable[[str], None]
    ) -> None:
        self.connection, self.bucket, self.own = connection, bucket, own
        self.say, self.hear, self.notice = say, hear, notice
        self.refused: set[str] = set()

    async def forever(self, every: float, most_bytes: int, value_bytes: int) -> None:
        told = ""
        while True:
            try:
                bucket = await self.connection.bucket(self.bucket, ttl=3 * _ANEW, most_bytes=most_bytes, value_bytes=value_bytes)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._tell_forever(bucket, every))
                    tasks.create_task(self._watch(bucket))
            except* CastoffError as failed:
                why = str(failed.exceptions[0])
                if self.connection.is_connected and why != told:  # else the connection tells of it
                    self.notice(f"the {self.bucket} of this host are not seen in its fleet: {why}")
                    told = why
            await asyncio.sleep(every)

    async def _tell_forever(self, bucket: KeyValue, every: float) -> None:
        last, age = b"", 0.0
        while True:
            data = await self.say()
            if data != last or age >= _ANEW:
                with asked(f"the {self.bucket} of this host"):
                    await bucket.put(self.own, data)
                last, age = data, 0.0
            await asyncio.sleep(every)
            age += every

    async def _watch(self, bucket: KeyValue) -> None:
        with asked(f"watching the {self.bucket} of the hosts"):
            watcher = await bucket.watchall()
            try:
                while True:
                    with contextlib.suppress(TimeoutError):
                        entry = await watcher.updates(timeout=_QUIET)  # type: ignore[no-untyped-call]
                        if entry is not None:
                            self._take(entry.key, entry.value or b"")
            finally:
                await watcher.stop()  # type: ignore[no-untyped-call]

    def _take(self, host: str, data: bytes) -> None:
        try:
            self.hear(host, data)
        except Invalid as error:
            if host not in self.refused:
                self.refused.add(host)
                self.notice(f"not believed of host {host[:40]}: {error}")


@contextlib.asynccontextmanager
async def telling(
    connection: Connection,
    bucket: str,
    own: str,
    say: Say,
    hear: Hear,
    *,
    every: float,
    most_bytes: int,
    value_bytes: int,
    notice: Callable[[str], None] = lambda line: None,
) -> AsyncIterator[None]:
    """Tells and hears for the block.

    Args:
        connection: The way there.
        bucket: What it is that hosts tell.
        own: This host's id.
        say: What this host has to tell now.
        hear: Takes what any host told, this one too.
        every: Seconds between two looks at what there is to tell.
        most_bytes: Of all hosts' values.
        value_bytes: Of one.
        notice: Called with a line for people.
    """
    told = _Told(connection, bucket, own, say, hear, notice)
    living = asyncio.create_task(told.forever(every, most_bytes, value_bytes))
    try:
        yield
    finally:
        await end(living)
