"""The segments that are open, and who they are lent to; and the origins that they are read from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from castoff.errors import Invalid
from castoff.hydrate.origin import ChunkReader, Origin
from castoff.hydrate.record import LazyLayer, LazyRecord
from castoff.hydrate.segments import Segment
from castoff.hydrate.served import Served
from castoff.image.digest import Digest
from castoff.store.store import Store

__all__ = ["Library"]


class Library:
    """Opens each segment and each origin once, for all who need it.

    Args:
        store: Where layers are.
        open_reader: Reads a record's packs.
        changed: Told when an origin begins to fail or is back: whose it is, and a line.
    """

    def __init__(
        self, store: Store, open_reader: Callable[[LazyRecord], ChunkReader], changed: Callable[[list[Served], str], None]
    ) -> None:
        self._store = store
        self._open_reader = open_reader
        self._changed = changed
        self._segments: dict[Digest, Segment] = {}
        self._origins: dict[object, Origin] = {}
        self._users: dict[Origin, list[Served]] = {}
        self._lock = asyncio.Lock()

    async def lend(self, served: Served) -> None:
        """Gives a rootfs its segments, and those its origin.

        Raises:
            NotFound, Invalid: A layer is gone, broken, or smaller than the map says.
        """
        async with self._lock:
            origin = self._origin(served)
            layers = [Digest.parse(layer.diff_id) for layer in served.record.layers]
            for diff_id in layers:
                if diff_id not in self._segments:
                    self._segments[diff_id] = await asyncio.to_thread(Segment, self._store, diff_id)
            for number, diff_id in enumerate(layers):
                segment, rows = self._segments[diff_id], served.map.by_layer(number)
                if rows and max(rows) >= len(segment.index.digests):
                    raise Invalid(f"the map of {served.directory} names chunks that layer {diff_id} has not")
                served.segments.append(segment)
                # Of a layer that an image has twice, the upper one hides every file of the lower.
                if not rows.keys().isdisjoint(mine := segment.takers.setdefault(served, {})):
                    raise Invalid(f"the map of {served.directory} has a chunk of layer {diff_id} twice")
                mine.update(rows)
                if origin not in segment.origins:
                    segment.origins.append(origin)

    async def take_back(self, served: Served) -> None:
        """A rootfs needs its segments no longer; those that nobody needs are finished and closed.

        Raises:
            OSError: One cannot be flushed: its chunks may be fetched again.
        """
        async with self._lock:
            for segment in served.segments:
                segment.takers.pop(served, None)
            for origin, users in list(self._users.items()):
                if served in users:
                    users.remove(served)
                    await self._release(origin)
            await self._close_unused()

    async def flush(self) -> None:
        """Flushes what came in, so that bits can be set.

        Raises:
            OSError: The disk failed.
        """
        async with self._lock:
            for segment in list(self._segments.values()):
                if segment.unflushed:
                    await asyncio.to_thread(segment.flush)
            await self._close_unused()

    async def close(self) -> None:
        """Closes everything; what was written is flushed."""
        await self.flush()
        for segment in self._segments.values():
            segment.close()
        for origin in self._users:
            await origin.reader.close()

    async def _close_unused(self) -> None:
        """What is still on its way into a segment keeps it open; then a later flush closes it."""
        for diff_id, segment in list(self._segments.items()):
            if segment.is_unused:
                del self._segments[diff_id]
                await asyncio.to_thread(segment.end)  # one call: a thread ends what it began, also when we are cancelled

    def _origin(self, served: Served) -> Origin:
        record = served.record
        key = (record.repository, repr(record.registry), repr(record.sources), repr(record.peers), *_books(record))
        origin = self._origins.get(key)
        if origin is None:
            reader = self._open_reader(record)
            origin = Origin(
                f"registry {record.repository}", reader, lambda origin, line: self._changed(self._users[origin], line)
            )
            self._origins[key] = origin
            self._users[origin] = []
        self._users[origin].append(served)
        return origin

    async def _release(self, origin: Origin) -> None:
        if self._users[origin]:
            return
        del self._users[origin]
        self._origins = {key: other for key, other in self._origins.items() if other is not origin}
        for segment in self._segments.values():
            if origin in segment.origins:
                segment.origins.remove(origin)
        await origin.reader.close()


def _books(record: LazyRecord) -> tuple[LazyLayer, ...]:
    """What besides tells origins apart: with peers a reader must know of which layers its packs are."""
    return record.layers if record.peers.is_used else ()
