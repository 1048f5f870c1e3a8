"""An order for eight hosts is done by eight: each of them holds one of eight leases, and what is done stays done.

A host that is gone holds its lease no longer and another takes it; so does one for a host that failed. Of an order that stands
the leases are held for as long as their hosts live.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Final

from castoff.errors import Invalid
from castoff.fleet.cells import Bucket
from castoff.fleet.connection import end
from castoff.fleet.holding import Holding
from castoff.fleet.lease import Cell, Lease, LeaseState, read_lease
from castoff.fleet.orders import Order, Part, PartState
from castoff.fleet.record import HostRecord

__all__ = ["Slots"]

_LOOKS: Final = 3
"""In the length of a lease."""


class Slots:
    """The slots of one order, seen from one host.

    Args:
        bucket: Of leases.
        order: Which.
        me: This host.
        count: Slots that there are.
        ttl: Seconds that a lease lasts without its holder.
    """

    def __init__(self, bucket: Bucket, order: Order, me: HostRecord, count: int, ttl: float) -> None:
        self._bucket = bucket
        self._order = order
        self._me = me
        self._ttl = ttl
        self._names = [f"slot.{order.id}.{number}" for number in range(count)]
        self._holdings = {name: self._holding(name) for name in self._names}

    def _holding(self, name: str) -> Holding:
        return Holding(self._bucket, name, Lease(holder=self._me.id, run="", name=self._me.name), ttl=self._ttl)

    async def work(self, is_settled: Callable[[], Awaitable[bool]], run: Callable[[], Awaitable[Part]]) -> None:
        """Does the work if a slot can be had, and waits for one until all of them are done.

        Args:
            is_settled: Whether this host did, or failed, already: then it wants none.
            run: The work; cancelled when the slot is lost.

        Raises:
            Unavailable: NATS does not answer.
        """
        while not (await is_settled() and not self._order.keep):
            found = await self._bucket.all(f"slot.{self._order.id}.*")
            if all(_is_done(found.get(name)) for name in self._names):
                return
            holding = await self._take(found)
            if holding is not None and await self._held(holding, run):
                return
            await asyncio.sleep(random.uniform(0.5, 1.0) * self._ttl / _LOOKS)

    async def _take(self, found: dict[str, Cell]) -> Holding | None:
        """A slot: this host's own of an earlier life, else any that is free."""
        mine = [name for name in self._names if _holder(found.get(name)) == self._me.id]
        for name in [*mine, *random.sample(self._names, len(self._names))]:
            if await self._holdings[name].take(found.get(name)):
                return self._holdings[name]
            if name in mine:
                return None  # it is told anew the next time, and one is enough
        return None

    async def _held(self, holding: Holding, run: Callable[[], Awaitable[Part]]) -> bool:
        """Works while the slot is held; whether there is nothing more to do."""
        async with holding.kept(gives_back=False):  # an agent that is started again goes on with it
            working = asyncio.ensure_future(run())
            losing = asyncio.create_task(holding.lost.wait())
            try:
                await asyncio.wait((working, losing), return_when=asyncio.FIRST_COMPLETED)
                if not working.done():
                    self._holdings = {name: self._holding(name) for name in self._names}
                    return False
                part = working.result()
                if part.state is not PartState.DONE:
                    await holding.end(LeaseState.FREE)
                elif not self._order.keep:
                    await holding.end(LeaseState.DONE)
                return True
            finally:
                await end(losing)
                working.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([working])


def _is_done(cell: Cell | None) -> bool:
    return cell is not None and _state(cell) is LeaseState.DONE


def _state(cell: Cell) -> LeaseState:
    try:
        return read_lease(cell).state
    except Invalid:
        return LeaseState.FREE


def _holder(cell: Cell | None) -> str:
    if cell is None or _state(cell) is not LeaseState.HELD:
        return ""
    return read_lease(cell).holder
