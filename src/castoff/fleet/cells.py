"""Buckets of keys and values in NATS JetStream, as leases and orders use them: compare-and-set, and all values at once."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator

import nats.errors
import nats.js.errors
from nats.js.api import DeliverPolicy
from nats.js.kv import KV_DEL, KV_OP, KV_PURGE, KeyValue

from castoff.errors import CastoffError, Unavailable
from castoff.fleet.connection import Connection, asked
from castoff.fleet.lease import Cell

__all__ = ["Bucket", "BucketPlace"]

_SNAPSHOT_WAIT = 5.0


class BucketPlace:
    """A bucket's name and bounds: it is looked up, or made, when it is first used while NATS is reached.

    Args:
        connection: The fleet.
        name: The bucket's.
        ttl: Seconds after which a value is gone; None: it stays.
        most_bytes: Of all of it.
        value_bytes: Of one value.
    """

    def __init__(self, connection: Connection, name: str, *, ttl: float | None, most_bytes: int, value_bytes: int) -> None:
        self._connection = connection
        self._name = name
        self._ttl = ttl
        self._most_bytes = most_bytes
        self._value_bytes = value_bytes

    async def find(self) -> KeyValue:
        """The bucket, of the connection that there is now.

        Raises:
            Unavailable: NATS is not reached.
        """
        return await self._connection.bucket(
            self._name, ttl=self._ttl, most_bytes=self._most_bytes, value_bytes=self._value_bytes
        )


class Bucket:
    """A bucket; every method raises Unavailable where NATS does not answer."""

    def __init__(self, place: BucketPlace) -> None:
        self._place = place
        self._found: KeyValue | None = None

    async def get(self, key: str) -> Cell | None:
        """What is there; None: nothing."""
        bucket = await self._bucket()
        with self._asked(f"reading {key}"):
            try:
                entry = await bucket.get(key)
            except nats.js.errors.KeyNotFoundError:
                return None
        assert entry.revision is not None
        return Cell(entry.value or b"", entry.revision)

    async def put(self, key: str, value: bytes, after: int) -> int | None:
        """As :class:`castoff.fleet.lease.Cells` says."""
        bucket = await self._bucket()
        with self._asked(f"writing {key}"):
            try:
                revision: int = await (bucket.update(key, value, last=after) if after else bucket.create(key, value))
            except nats.js.errors.KeyWrongLastSequenceError:
                return None
        return revision

    async def set(self, key: str, value: bytes) -> None:
        """Writes a value, whatever is there: of keys that one host alone writes."""
        bucket = await self._bucket()
        with self._asked(f"writing {key}"):
            await bucket.put(key, value)

    async def remove(self, key: str) -> None:
        """Removes a key and its marker."""
        bucket = await self._bucket()
        with self._asked(f"removing {key}"):
            await bucket.purge(key)

    async def all(self, keys: str = ">") -> dict[str, Cell]:
        """All values whose keys match; one that is written meanwhile may be missing."""
        found: dict[str, Cell] = {}
        async with contextlib.aclosing(self.changes(keys, wait=_SNAPSHOT_WAIT)) as changes:
            async for change in changes:
                if change is None:
                    break
                if change[1] is not None:
                    found[change[0]] = change[1]
        return found

    async def changes(self, keys: str = ">", *, wait: float) -> AsyncGenerator[tuple[str, Cell | None] | None, None]:
        """All values, None when these were all, then what changes; a Cell that is None is removed.

        Raises:
            Unavailable: NATS does not answer, or nothing came for ``wait`` seconds.
        """
        bucket = await self._bucket()
        prefix = f"$KV.{bucket._name}."
        with self._asked("watching"):
            subscription = await bucket._js.subscribe(
                prefix + keys, stream=f"KV_{bucket._name}", ordered_consumer=True, deliver_policy=DeliverPolicy.LAST_PER_SUBJECT
            )
        try:
            with self._asked("watching"):
                # Not nats-py's own watcher: it takes what the server has sent and nobody has received yet for nothing.
                info = await subscription.consumer_info()
                left = (info.num_pending or 0) + (info.delivered.consumer_seq if info.delivered else 0)
            if left == 0:
                yield None
            while True:
                with self._asked("watching"):
                    message = await subscription.next_msg(timeout=wait)
                is_gone = (message.headers or {}).get(KV_OP) in (KV_DEL, KV_PURGE)
                cell = None if is_gone else Cell(message.data, message.metadata.sequence.stream)
                yield message.subject[len(prefix) :], cell
                if left > 0:
                    left = min(left - 1, message.metadata.num_pending or 0)
                    if left == 0:
                        yield None
        finally:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                await subscription.unsubscribe()

    async def _bucket(self) -> KeyValue:
        if self._found is None:
            self._found = await self._place.find()
        return self._found

    @contextlib.contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        """Failures as castoff's; after one the bucket is looked up again: the connection may be another."""
        try:
            with asked(what):
                yield
        except CastoffError as error:
            self._found = None
            if isinstance(error, Unavailable):
                raise
            raise Unavailable(error.what, hint=error.hint) from error
