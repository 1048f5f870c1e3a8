"""What each host tells all others: a value a host in one bucket, told when it has changed, and heard by all."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from nats.js.kv import KeyValue

from castoff.errors import CastoffError, Invalid, Unavailable
from castoff.fleet.connection import Connection, asked, end, until_first

__all__ = ["telling"]

_ANEW: Final = 600.0
"""Seconds after which a value is told again although it is the same, and after thrice which one that is not told is gone."""
_QUIET: Final = 60.0
_CHECK: Final = 24
"""Looks at what there is to tell between two at whether it is there still: servers may have lost it, or a watch may have died."""
_AWAY: Final = "the servers were out of reach"
_MOST_HOSTS: Final = 10_000
_HOST: Final = re.compile(r"[0-9a-f]{16}\Z", re.ASCII)

Say = Callable[[], Awaitable[bytes]]
Hear = Callable[[str, bytes], None]
"""Takes what a host told, b"" where that is gone; raises Invalid where it makes no sense."""


class _Told:
    def __init__(
        self, connection: Connection, bucket: str, own: str, say: Say, hear: Hear, notice: Callable[[str], None], anew: float
    ) -> None:
        self.connection, self.bucket, self.own = connection, bucket, own
        self.say, self.hear, self.notice = say, hear, notice
        self.anew = anew
        self.refused: set[str] = set()
        self.heard: dict[str, float] = {}
        self.echo = b""

    async def forever(self, every: float, most_bytes: int, value_bytes: int, forget: bool) -> None:
        told = ""
        while True:
            try:
                reached = self.connection.times_reached
                bucket = await self.connection.bucket(
                    self.bucket, ttl=3 * self.anew, most_bytes=most_bytes, value_bytes=value_bytes
                )
                await until_first(self._tell_forever(bucket, every, reached), self._watch(bucket, forget))
            except CastoffError as failed:
                why = str(failed)
                if self.connection.is_connected and why not in (told, _AWAY):  # else the connection tells of it
                    self.notice(f"the {self.bucket} of this host are not seen in its fleet: {why}")
                    told = why
            await asyncio.sleep(every)

    async def _tell_forever(self, bucket: KeyValue, every: float, reached: int) -> None:
        """Tells what has changed; ends when what was told is not in the bucket, or does not come back."""
        last, age, looked = b"", 0.0, 0
        while self.connection.times_reached == reached:
            data = await self.say()
            if data != last or age >= self.anew:
                with asked(f"the {self.bucket} of this host"):
                    await bucket.put(self.own, data)
                last, age, looked = data, 0.0, 0
            await asyncio.sleep(every)
            age, looked = age + every, looked + 1
            if looked >= _CHECK:
                looked = 0
                with asked(f"the {self.bucket} of this host"):
                    kept = (await bucket.get(self.own)).value
                if kept != last or self.echo != last:
                    raise Unavailable("what it tells does not come back")
        raise Unavailable(_AWAY)  # and what they kept may be gone

    async def _watch(self, bucket: KeyValue, forget: bool) -> None:
        with asked(f"watching the {self.bucket} of the hosts"):
            watcher = await bucket.watchall()
            try:
                while True:
                    with contextlib.suppress(TimeoutError):
                        entry = await watcher.updates(timeout=min(_QUIET, self.anew))  # type: ignore[no-untyped-call]
                        if entry is not None:
                            self._take(entry.key, b"" if entry.operation else entry.value or b"")
                    if forget:
                        self._forget()
            finally:
                await watcher.stop()  # type: ignore[no-untyped-call]

    def _take(self, host: str, data: bytes) -> None:
        """What makes no sense leaves what was heard before as it was."""
        if host == self.own:
            self.echo = data
        try:
            if not _HOST.match(host):
                raise Invalid("hosts have other names")
            if host not in self.heard and len(self.heard) >= _MOST_HOSTS:
                raise Invalid(f"there are {_MOST_HOSTS} hosts already")
            self.hear(host, data)
        except Invalid as error:
            if host not in self.refused and len(self.refused) < _MOST_HOSTS:
                self.refused.add(host)
                self.notice(f"not believed of host {host[:40]!r}: {error}")
        else:
            self.heard[host] = time.monotonic()
            if not data:
                del self.heard[host]

    def _forget(self) -> None:
        """Drops what was not told again, of which servers say nothing; not while this host may be cut off."""
        now = time.monotonic()
        if self.heard.get(self.own, float("-inf")) < now - 2 * self.anew:
            return
        since = now - 3 * self.anew
        for host in [host for host, heard in self.heard.items() if heard < since]:
            self._take(host, b"")


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
    forget: bool = True,
    anew: float = _ANEW,
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
        forget: Hear that it is gone when a host has not told it for long; else only when the servers say so.
        anew: Seconds after which it is told again although it is the same, and after thrice which it is gone.
    """
    told = _Told(connection, bucket, own, say, hear, notice, anew)
    living = asyncio.create_task(told.forever(every, most_bytes, value_bytes, forget))
    try:
        yield
    finally:
        await end(living)
