"""One builder a layer in the whole fleet: whoever first needs a conversion takes it, the others have the layer from it.

    nobody is at it, or it is left   -> this host takes the lease and converts
    another is at it                 -> it is waited for
    another has done it              -> the layer is taken from there (castoff.rootfs.handover)
    another failed                   -> an order ends with that; a create tries for itself

It is never worse than to convert alone: a wait has a limit, and whatever goes wrong with NATS, the other host or what it
sends, this host converts. A layer is named by what is in it, so two hosts that convert the same one cost time, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from castoff import timeline
from castoff.errors import CastoffError, Invalid, NotFound, Unavailable
from castoff.fleet.cells import Bucket
from castoff.fleet.holding import TTL, Holding
from castoff.fleet.lease import Cell, Lease, LeaseState, read_lease
from castoff.fleet.record import HostRecord
from castoff.image.image import Layer
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.handover import take_layer
from castoff.store.layers import StoredLayer

__all__ = ["FleetBuilds"]

_LOOK: Final = 0.25
"""Seconds between two looks at what another host does."""
_LEAST_WAIT: Final = 30.0
_WAIT_BYTES: Final = 10 << 20
"""Compressed bytes of a layer for each second that another host is waited for besides: a slow conversion does as many."""


@dataclass(slots=True)
class _Turn:
    """What came of waiting."""

    given: StoredLayer | None = None
    holding: Holding | None = None
    """To be renewed while this host converts; None: it converts without a lease."""


class FleetBuilds:
    """As :class:`castoff.rootfs.builds.Builds`, over a fleet.

    Args:
        bucket: Leases; None while there is no fleet.
        me: This host.
        notice: Called with a line for people.
        ttl: Seconds that a lease lasts without its holder.
        wait: Seconds that another host is waited for, and more for large layers.
        is_order: Whether another host's failure is an answer: orders shall cost one host a conversion, a create shall not fail
            because of another host.
    """

    def __init__(
        self,
        bucket: Bucket,
        me: Callable[[], HostRecord],
        *,
        notice: Callable[[str], None] = lambda line: None,
        ttl: float = TTL,
        wait: float = _LEAST_WAIT,
        is_order: bool = False,
    ) -> None:
        self._bucket = bucket
        self._me = me
        self._notice = notice
        self._ttl = ttl
        self._wait = wait
        self._is_order = is_order

    def for_orders(self) -> FleetBuilds:
        """The same for what is made ready by an order."""
        return FleetBuilds(self._bucket, self._me, notice=self._notice, ttl=self._ttl, wait=self._wait, is_order=True)

    @contextlib.asynccontextmanager
    async def turn(self, layer: Layer, context: ProviderContext) -> AsyncIterator[StoredLayer | None]:
        """As the port says."""
        turn = await self._turn(layer, context)
        if turn.holding is None:
            yield turn.given
            return
        async with turn.holding.kept():
            try:
                yield None
            except Invalid as error:
                await self._end(turn.holding, LeaseState.FAILED, error.what)
                raise
            await self._end(turn.holding, LeaseState.DONE)

    async def _turn(self, layer: Layer, context: ProviderContext) -> _Turn:
        me = self._me()
        lease = Lease(holder=me.id, run="", name=me.name, url=me.peers)
        holding = Holding(self._bucket, f"layer.{layer.diff_id.hex}", lease, ttl=self._ttl)
        try:
            with timeline.step("fleet.build", layer=str(layer.diff_id)):
                return await self._wait_for_turn(layer, context, holding)
        except Unavailable as error:
            self._notice(f"layer {layer.diff_id} is converted here, whoever else may be at it: {error.what}")
            return _Turn()

    async def _wait_for_turn(self, layer: Layer, context: ProviderContext, holding: Holding) -> _Turn:
        """Raises Unavailable where NATS does not answer; Invalid where another host found that there is nothing to be had."""
        end = time.monotonic() + self._wait + layer.size / _WAIT_BYTES
        while (left := end - time.monotonic()) > 0:
            found = await holding.look()
            if await holding.take(found):
                return _Turn(holding=holding)
            lease = _lease(found)
            if lease is None:
                continue  # somebody was faster, and is seen now
            if not lease.url:
                break  # nothing can be had from a host that serves nobody
            if lease.state is LeaseState.DONE:
                return await self._take(layer, lease, found, context, holding, left)
            if lease.state is LeaseState.FAILED:
                return await self._after_failure(layer, lease, found, holding)
            await asyncio.sleep(_LOOK)
        return _Turn()

    async def _take(
        self, layer: Layer, lease: Lease, found: Cell | None, context: ProviderContext, holding: Holding, left: float
    ) -> _Turn:
        """Has the layer from the host that has it; else whoever is first converts it again."""
        if lease.holder == self._me().id:  # it was this host, which has it no more
            return _Turn(holding=holding if await holding.take(found, over=True) else None)
        try:
            return _Turn(given=await take_layer(layer.diff_id, lease.url, context, within=left))
        except (NotFound, Unavailable) as error:
            self._notice(f"layer {layer.diff_id} could not be had from host {lease.name}, and is converted: {error.what}")
            if await holding.take(found, over=True):
                return _Turn(holding=holding)
            return await self._wait_for_turn(layer, context, holding)
        except CastoffError as error:  # it is there and of no use to this host, as it would be the next time
            self._notice(f"layer {layer.diff_id} of host {lease.name} does not count here, and is converted: {error.what}")
            return _Turn()

    async def _after_failure(self, layer: Layer, lease: Lease, found: Cell | None, holding: Holding) -> _Turn:
        if self._is_order and lease.holder != self._me().id:
            raise Invalid(f"layer {layer.diff_id} cannot be converted, as host {lease.name} found: {lease.reason}")
        return _Turn(holding=holding if await holding.take(found, over=True) else None)

    async def _end(self, holding: Holding, state: LeaseState, reason: str = "") -> None:
        try:
            await holding.end(state, reason)
        except Unavailable as error:
            self._notice(f"a conversion's end could not be told to the fleet: {error.what}")


def _lease(found: Cell | None) -> Lease | None:
    if found is None:
        return None
    try:
        return read_lease(found)
    except Invalid:
        return None
