"""This host's part of the fleet's orders: what is its to do is done, when its hours are, and written down as it goes.

Orders are looked at as they are, not as messages that may be missed: a host that was off finds those that are open, and its
own parts, and does what is left. An attempt is counted before it begins, so an image that kills its host is not tried for
ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Final

from castoff.agent.fleet.attempt import Attempt, Make
from castoff.agent.fleet.pace import Pace, local_time
from castoff.agent.fleet.slots import Slots
from castoff.errors import CastoffError, Unavailable
from castoff.fleet.connection import end
from castoff.fleet.orderbook import OrderBook
from castoff.fleet.orders import Order, OrderState, read_order
from castoff.fleet.record import HostRecord
from castoff.fleet.selector import parse_selector

__all__ = ["Parts"]

_AT_ONCE: Final = 2
"""Orders that this host works at."""


class Parts:
    """Works at this host's parts.

    Args:
        book: The orders.
        me: This host.
        make: Makes an image ready.
        pace: How patient it is.
        now: Its clock.
        notice: Called with a line for people.
    """

    def __init__(
        self,
        book: OrderBook,
        me: Callable[[], HostRecord],
        make: Make,
        *,
        pace: Pace,
        now: Callable[[], datetime] = local_time,
        notice: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._book = book
        self._me = me
        self._make = make
        self._pace = pace
        self._now = now
        self._notice = notice
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._works: dict[str, tuple[int, asyncio.Task[None], Attempt]] = {}

    async def forever(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                with contextlib.suppress(Unavailable):  # quiet, or cut off: in both cases all is looked at anew
                    await self._watch()
                await asyncio.sleep(random.uniform(0.1, 1.0) * min(self._pace.look, 2.0))
        finally:
            await end(*(task for _, task, _ in self._works.values()))

    async def _watch(self) -> None:
        seen: set[str] | None = set()
        async with contextlib.aclosing(self._book.changes(wait=self._pace.look)) as changes:
            async for change in changes:
                if change is None:
                    for key in set(self._works) - (seen or set()):
                        await self._stop(key)
                    seen = None
                    continue
                key, cell = change
                if seen is not None:
                    seen.add(key)
                try:
                    order = None if cell is None else read_order(key, cell.value)
                except CastoffError:
                    order = None  # whoever leads says why; a later version's is for later versions
                await (self._stop(key) if order is None else self._consider(order))

    async def _consider(self, order: Order) -> None:
        generation, task, _ = self._works.get(order.id, (-1, None, None))
        if order.state is not OrderState.OPEN or not parse_selector(order.hosts).matches(self._me()):
            await self._stop(order.id, cancelled=order.state is OrderState.CANCELLED)
        elif generation != order.generation or task is None or task.done():
            await self._stop(order.id)
            attempt = Attempt(self._book, order, self._me(), self._make, self._pace, self._now, self._turns)
            self._works[order.id] = order.generation, asyncio.create_task(self._work(order, attempt)), attempt

    async def _stop(self, key: str, *, cancelled: bool = False) -> None:
        _, task, attempt = self._works.pop(key, (0, None, None))
        if task is not None and attempt is not None:
            attempt.is_cancelled = cancelled
            await end(task)

    async def _work(self, order: Order, attempt: Attempt) -> None:
        count = parse_selector(order.hosts).count
        while True:
            try:
                if count:
                    slots = Slots(self._book.leases, order, self._me(), count, self._pace.ttl)
                    await slots.work(attempt.is_settled, partial(attempt.run, keep=order.keep))
                else:
                    await attempt.run()
                return
            except Unavailable as error:
                self._notice(f"order {order.id} waits: {error.what}")
                await asyncio.sleep(random.uniform(0.5, 1.0) * self._pace.back_off)
