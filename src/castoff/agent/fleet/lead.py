"""The host that leads: it looks what the images of orders are, for all hosts, so that a tag costs one request and not one a host.

Whoever holds the lease leads. It makes a new order an open one, with the digests that its images have now, or a failed one,
with the reason; it looks at the tags of standing orders; it writes down what is wrong with an order that cannot be read; and it
removes those that are over for long. Nothing of it is lost with its host: another goes on from what is written.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias

import msgspec

from castoff.agent.fleet.pace import Pace
from castoff.errors import CastoffError, Invalid, NotFound, Unavailable
from castoff.fleet.connection import end
from castoff.fleet.holding import Holding
from castoff.fleet.lease import Cell, Lease
from castoff.fleet.orderbook import OrderBook
from castoff.fleet.orders import LIFE, Order, OrderState, failed, is_order_id, read_order
from castoff.fleet.record import HostRecord
from castoff.together import together

__all__ = ["Lead", "Look"]

Look: TypeAlias = Callable[[str, Order], Coroutine[Any, Any, str]]
"""The digest that an image has now."""

_TRIES: Final = 5
_LOOK_TIMEOUT: Final = 60.0
_MOST_AT_ONCE: Final = 8
"""Images that are looked at."""


class Lead:
    """Leads when it is this host's turn.

    Args:
        book: The orders.
        me: This host.
        look: Finds what an image is.
        pace: How patient it is.
        notice: Called with a line for people.
    """

    def __init__(
        self,
        book: OrderBook,
        me: Callable[[], HostRecord],
        look: Look,
        *,
        pace: Pace,
        notice: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._book = book
        self._me = me
        self._look = look
        self._pace = pace
        self._notice = notice
        self._turns = asyncio.Semaphore(_MOST_AT_ONCE)
        self._works: dict[str, asyncio.Task[None]] = {}
        self._due: dict[str, float] = {}
        """When an order is to be looked at next, of time.monotonic()."""

    async def forever(self) -> None:
        """Until it is cancelled."""
        while True:
            me = self._me()
            holding = Holding(self._book.leases, "lead", Lease(holder=me.id, run="", name=me.name), ttl=self._pace.ttl)
            try:
                while not await holding.take(await holding.look()):  # noqa: ASYNC110 - it is another's, elsewhere
                    await asyncio.sleep(random.uniform(0.5, 1.0) * self._pace.ttl / 3)
                async with holding.kept():
                    await self._lead(holding)
            except Unavailable:
                await asyncio.sleep(random.uniform(0.5, 1.0) * self._pace.ttl / 3)

    async def _lead(self, holding: Holding) -> None:
        """Until the lease is lost. Raises Unavailable."""
        try:
            while holding.is_held:
                for key, cell in (await self._book.cells()).items():
                    await self._consider(key, cell)
                await asyncio.sleep(self._pace.lead)
        finally:
            await end(*self._works.values())
            self._works.clear()
            self._due.clear()

    async def _consider(self, key: str, cell: Cell) -> None:
        try:
            order = read_order(key, cell.value)
        except NotFound:
            return  # a later version's
        except Invalid as error:
            await self._refuse(key, cell, error)
            return
        watched = order.keep and order.state in (OrderState.OPEN, OrderState.FAILED)
        if not (order.state is OrderState.NEW or watched):
            if time.time() - max(order.created, order.ended) > LIFE:
                await self._book.remove(key)
            return
        if not order.keep and time.time() - order.created > LIFE:
            await self._book.remove(key)
        elif key not in self._works and self._due.get(key, 0.0) <= time.monotonic():
            self._works[key] = asyncio.create_task(self._work(order))

    async def _refuse(self, key: str, cell: Cell, error: Invalid) -> None:
        self._notice(f"an order is refused: {error.what}")
        if is_order_id(key):
            await self._book.replace(key, failed(key, error), cell)
        else:
            await self._book.remove(key)

    async def _work(self, order: Order) -> None:
        try:
            await self._look_at(order)
        except Unavailable as error:
            self._notice(f"order {order.id} is looked at again: {error.what}")
        except CastoffError as error:
            self._notice(f"order {order.id}: {error}")
        finally:
            self._due[order.id] = time.monotonic() + self._wait(order)
            self._works.pop(order.id, None)

    def _wait(self, order: Order) -> float:
        """Seconds until an order is looked at again."""
        if order.state is OrderState.NEW and order.tries < _TRIES - 1:
            return self._pace.back_off * float(1 << order.tries)
        return self._pace.tags * random.uniform(0.9, 1.0)

    async def _look_at(self, order: Order) -> None:
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT):
                digests = tuple(await together(self._look_in_turn(image, order) for image in order.images))
        except TimeoutError:
            await self._failed(order, Unavailable(f"what its images are was not found in {_LOOK_TIMEOUT:.0f} s"))
        except CastoffError as error:
            await self._failed(order, error)
        else:
            await self._book.change(order.id, lambda now: _found(now, digests))

    async def _look_in_turn(self, image: str, order: Order) -> str:
        async with self._turns:
            return await self._look(image, order)

    async def _failed(self, order: Order, error: CastoffError) -> None:
        for_good = isinstance(error, Invalid | NotFound) or order.tries + 1 >= _TRIES

        def changed(now: Order) -> Order | None:
            if now.state is OrderState.NEW:
                tried = msgspec.structs.replace(now, tries=now.tries + 1, reason=str(error)[:1000])
                return failed(now.id, error, tried) if for_good else tried
            return None  # it stands, with what was found before: a registry that is gone takes nothing away

        if order.state is not OrderState.NEW:
            self._notice(f"the tags of order {order.id} could not be looked at: {error.what}")
        await self._book.change(order.id, changed)


def _found(order: Order, digests: tuple[str, ...]) -> Order | None:
    """The order with what its images are; None: that is known, or nobody wants to know any more."""
    if order.state is OrderState.CANCELLED or order.digests == digests:
        return None
    generation = order.generation + bool(order.digests)
    found = {"digests": digests, "generation": generation}
    return msgspec.structs.replace(order, state=OrderState.OPEN, reason="", tries=0, ended=0, **found)
