"""Which host has which layers: each puts its list into a bucket when it has changed, and keeps those of the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

from nats.js.kv import KeyValue

from castoff.errors import CastoffError, Invalid
from castoff.fleet.connection import Connection, asked, end
from castoff.fleet.inventory import MOST_LAYERS, Inventory
from castoff.image.digest import Digest

__all__ = ["Holders"]

_BUCKET: Final = "layers"
_MOST_BYTES: Final = 256 << 20
_VALUE_BYTES: Final = 8 * MOST_LAYERS + 64
_LOOK: Final = 5.0
_ANEW: Final = 600.0
"""Seconds after which a list is told again although it is the same, and after thrice which one that is not told is gone."""
_QUIET: Final = 60.0

Listing = Callable[[], Awaitable[Inventory]]


class Holders:
    """The lists of all hosts, this one's too. Made by :meth:`open`."""

    def __init__(self, connection: Connection, own: str, listing: Listing, notice: Callable[[str], None]) -> None:
        self._connection = connection
        self._own = own
        self._listing = listing
        self._notice = notice
        self._lists: dict[str, Inventory] = {}
        self._refused: set[str] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, connection: Connection, own: str, listing: Listing, *, notice: Callable[[str], None] = lambda line: None
    ) -> AsyncIterator[Holders]:
        """Tells and hears for the block.

        Args:
            connection: The way there.
            own: This host's id.
            listing: What this host has now.
            notice: Called with a line for people.
        """
        holders = cls(connection, own, listing, notice)
        living = asyncio.create_task(holders._live())
        try:
            yield holders
        finally:
            await end(living)

    def lists(self) -> Mapping[str, Inventory]:
        """By host; also of hosts that are not alive any more."""
        return self._lists

    def of(self, layer: Digest) -> tuple[set[str], set[str]]:
        """The hosts that have a layer whole, and those that have it in part."""
        whole = {host for host, inventory in self._lists.items() if inventory.has(layer)}
        return whole, {host for host, inventory in self._lists.items() if inventory.begins(layer)}

    async def _live(self) -> None:
        told = ""
        while True:
            try:
                bucket = await self._connection.bucket(_BUCKET, ttl=3 * _ANEW, most_bytes=_MOST_BYTES, value_bytes=_VALUE_BYTES)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._tell_forever(bucket))
                    tasks.create_task(self._watch(bucket))
            except* CastoffError as failed:
                why = str(failed.exceptions[0])
                if self._connection.is_connected and why != told:  # else the connection tells of it
                    self._notice(f"what this host has is not seen in its fleet: {why}")
                    told = why
            await asyncio.sleep(_LOOK)

    async def _tell_forever(self, bucket: KeyValue) -> None:
        last, age = b"", 0.0
        while True:
            data = (await self._listing()).to_bytes()
            if data != last or age >= _ANEW:
                with asked("the list of this host's layers"):
                    await bucket.put(self._own, data)
                last, age = data, 0.0
            await asyncio.sleep(_LOOK)
            age += _LOOK

    async def _watch(self, bucket: KeyValue) -> None:
        with asked("watching what the hosts have"):
            watcher = await bucket.watchall()
            try:
                while True:
                    with contextlib.suppress(TimeoutError):
                        entry = await watcher.updates(timeout=_QUIET)  # type: ignore[no-untyped-call]
                        if entry is not None:
                            self._hear(entry.key, entry.value)
            finally:
                await watcher.stop()  # type: ignore[no-untyped-call]

    def _hear(self, host: str, data: bytes | None) -> None:
        if not data:
            self._lists.pop(host, None)
            return
        try:
            self._lists[host] = Inventory.read(data)
        except Invalid as error:
            if host not in self._refused:
                self._refused.add(host)
                self._notice(f"not believed of host {host[:40]}: {error}")
