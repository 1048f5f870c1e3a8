"""Orders and shared conversions of a host that is in a fleet: what the agent adds to its host."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from castoff.agent.fleet.builds import FleetBuilds
from castoff.agent.fleet.fleet import Fleet
from castoff.agent.fleet.lead import Lead
from castoff.agent.fleet.pace import Pace, local_time
from castoff.agent.fleet.parts import Parts
from castoff.create import opened
from castoff.errors import Invalid
from castoff.fleet.cells import Bucket, BucketPlace
from castoff.fleet.connection import Connection, end
from castoff.fleet.orderbook import OrderBook
from castoff.fleet.orders import Order
from castoff.fleet.record import HostRecord
from castoff.host import Host
from castoff.image.cache import DocumentCache
from castoff.image.image import Platform
from castoff.image.platforms import parse_platform
from castoff.image.reference import RegistryReference, parse_reference
from castoff.preload import preload

__all__ = ["Working", "working", "working_orders"]

_BUILDS_BYTES: Final = 64 << 20
_BUILDS_LIFE: Final = 86400.0
"""Seconds for which it is known where a layer was converted."""


@dataclass(frozen=True, slots=True)
class Working:
    """What works."""

    book: OrderBook
    me: Callable[[], HostRecord]


@contextlib.asynccontextmanager
async def working_orders(fleet: Fleet | None, host: Host, notice: Callable[[str], None]) -> AsyncIterator[Working | None]:
    """Works at the fleet's orders for the block; None where this host is of no fleet."""
    if fleet is None:
        yield None
        return
    pace = Pace(tags=host.config.fleet.tags)
    async with working(fleet.connection, fleet.describe, host, notice=notice, pace=pace) as found:
        yield found


@contextlib.asynccontextmanager
async def working(
    connection: Connection,
    me: Callable[[], HostRecord],
    host: Host,
    *,
    notice: Callable[[str], None] = lambda line: None,
    pace: Pace | None = None,
    now: Callable[[], datetime] = local_time,
) -> AsyncIterator[Working]:
    """The same, of a connection.

    Args:
        connection: The fleet.
        me: What this host says of itself.
        host: This host; for the block its conversions are the fleet's.
        notice: Called with a line for people.
        pace: How patient it is.
        now: This host's clock.
    """
    pace = pace or Pace()
    place = BucketPlace(connection, "builds", ttl=_BUILDS_LIFE, most_bytes=_BUILDS_BYTES, value_bytes=8192)
    builds = FleetBuilds(Bucket(place), me, notice=notice, ttl=pace.ttl)
    book = OrderBook(connection)
    alone, host.providers = host.providers, replace(host.providers, builds=builds)
    making = _Making(host, builds)
    parts = Parts(book, me, making.make, pace=pace, now=now, notice=notice)
    lead = Lead(book, me, making.look, pace=pace, notice=notice)
    tasks = [asyncio.create_task(work) for work in (parts.forever(), lead.forever())]
    try:
        yield Working(book, me)
    finally:
        await end(*tasks)
        host.providers = alone


class _Making:
    """What a host does for orders."""

    def __init__(self, host: Host, builds: FleetBuilds) -> None:
        self._host = host
        self._builds = builds

    async def make(self, image: str, order: Order) -> None:
        """Makes an image ready. Raises CastoffError."""
        host = self._host
        await preload(
            image,
            size=order.size or None,
            platform=_platform(order),
            limit=order.limit,
            profile_only=order.profile_only,
            config=host.config,
            store=host.store,
            providers=replace(host.providers, builds=self._builds.for_orders()),
        )

    async def look(self, image: str, order: Order) -> str:
        """What an image is now, on any platform: one HEAD where it is what it was. Raises CastoffError."""
        reference = parse_reference(image)
        assert isinstance(reference, RegistryReference)
        async with opened(image, _platform(order), config=self._host.config, store=self._host.store):
            if reference.digest is not None:
                return str(reference.digest)
        cache = DocumentCache(self._host.store.images, self._host.config.image.cache_size)
        digest = await asyncio.to_thread(cache.last_seen, str(reference))
        if digest is None:
            raise Invalid(f"what {image} is was not kept", hint="is `image.cache_size` 0?")
        return str(digest)


def _platform(order: Order) -> Platform | None:
    return parse_platform(order.platform) if order.platform else None
