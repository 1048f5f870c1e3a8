"""One host's work at one order: its hours, its attempts, its progress, its end."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec

from castoff.agent.fleet.pace import Pace
from castoff.errors import CastoffError, Code, DigestMismatch, Internal, Invalid, NotFound, Unavailable
from castoff.fleet.connection import end
from castoff.fleet.orderbook import OrderBook
from castoff.fleet.orders import Order, OrderState, Part, PartState, failed, pinned
from castoff.fleet.record import HostRecord
from castoff.fleet.window import Window, parse_window
from castoff.timeline import Step, Timeline, recording

__all__ = ["MOST_ATTEMPTS", "Attempt", "Make"]

Make: TypeAlias = Callable[[str, Order], Awaitable[None]]
"""Makes an image, named by its digest, ready as an order wants it."""

MOST_ATTEMPTS: Final = 5
_LONGEST_SLEEP: Final = 900.0
"""Seconds after which the clock is looked at again: it may have been put forward."""
_LONGEST_BACK_OFF: Final = 600.0
_FAREWELL: Final = 2.0
_BYTES_OF: Final = {"sources.chunks": False, "rootfs.preload": True, "layers.convert": False, "rootfs.conversion": True}
"""Steps whose work is counted; True: they say how much there is to do."""


class Attempt:
    """The work; :meth:`run` goes on until it is done, or has failed for good.

    Args:
        book: Where the part is written.
        order: Which, as it was when the work began.
        me: This host.
        make: Does it.
        pace: How patient it is.
        now: The host's clock.
        turns: Held while something is made.

    Attributes:
        is_cancelled: Set before the work is cancelled because its order was.
    """

    def __init__(
        self,
        book: OrderBook,
        order: Order,
        me: HostRecord,
        make: Make,
        pace: Pace,
        now: Callable[[], datetime],
        turns: asyncio.Semaphore,
    ) -> None:
        self.is_cancelled = False
        self._book = book
        self._order = order
        self._me = me
        self._make = make
        self._pace = pace
        self._now = now
        self._turns = turns
        self._window: Window = parse_window(order.window)
        self._steps: list[Step] = []
        self._part = Part(order=order.id, host=me.id, name=me.name, generation=order.generation)

    async def is_settled(self) -> bool:
        """Whether this host has done its part, or failed for good. Raises Unavailable."""
        found = await self._book.part(self._order.id, self._me.id)
        if found is not None and found.generation == self._order.generation:
            self._part = found
        return self._part.state in (PartState.DONE, PartState.FAILED)

    async def run(self, *, keep: bool = False) -> Part:
        """Does the part; with ``keep`` it does not return when that is done.

        Raises:
            Unavailable: NATS does not answer, so that nothing could be written down.
        """
        try:
            while not await self.is_settled():
                await self._hours()
                await self._once()
            if keep and self._part.state is PartState.DONE:
                await asyncio.Event().wait()  # the host keeps its place until it is told otherwise
            return self._part
        except asyncio.CancelledError:
            await self._farewell()
            raise

    async def _hours(self) -> None:
        """Waits until they are."""
        while (wait := self._window.opens_in(self._now())) > 0:
            reason = f"until {self._window.start:%H:%M} {self._now().tzname()}, by its own clock"
            if (self._part.state, self._part.reason) != (PartState.WAITING, reason):
                await self._tell(state=PartState.WAITING, reason=reason)
            await asyncio.sleep(min(wait, _LONGEST_SLEEP))

    async def _once(self) -> None:
        """One attempt, counted before it begins."""
        if self._part.attempts >= MOST_ATTEMPTS:
            why = self._part.reason or f"this host or its agent ended in each of {MOST_ATTEMPTS} attempts"
            await self._tell(state=PartState.FAILED, reason=why)
            return
        async with self._turns:
            if self._window.opens_in(self._now()) > 0:
                return  # it closed while others had their turn
            await self._tell(state=PartState.RUNNING, attempts=self._part.attempts + 1, reason="")
            telling = asyncio.create_task(self._tell_progress())
            left = self._window.closes_in(self._now())
            try:
                async with asyncio.timeout(None if left == float("inf") else left):
                    await self._make_all()
            except TimeoutError:
                await end(telling)
                await self._tell(state=PartState.WAITING, attempts=self._part.attempts - 1, reason="its hours are over")
                return
            except CastoffError as error:
                await end(telling)
                wait = await self._failed(error)
            except Exception as error:  # a mistake of castoff's own must not make an order that is tried for ever, or never ends
                await end(telling)
                wait = await self._failed(Internal(f"{type(error).__name__}: {error}", hint="please report it"))
            else:
                await end(telling)
                await self._tell(state=PartState.DONE, reason="", code="")
                return
            finally:
                await end(telling)
        await asyncio.sleep(wait)

    async def _make_all(self) -> None:
        names = pinned(self._order)
        while self._part.images_done < len(names):
            self._steps = []
            with recording(Timeline(observers=(self,))):
                await self._make(names[self._part.images_done], self._order)
            self._part = msgspec.structs.replace(self._part, images_done=self._part.images_done + 1)

    def on_step(self, step: Step) -> None:
        """A step of the timeline began or ended."""
        if step.name in _BYTES_OF and all(step is not known for known in self._steps):
            self._steps.append(step)

    async def _failed(self, error: CastoffError) -> float:
        """Writes a failure down: of the order, where no other host would be spared it; seconds until the next attempt."""
        told = str(error)[:900]  # a digest that does not match may be this host's, or its way's, fault: once it is tried again
        for_good = self._part.attempts >= MOST_ATTEMPTS or error.code in (Code.UNSUPPORTED, Code.UNAUTHORIZED)
        if isinstance(error, Invalid | NotFound) and not (isinstance(error, DigestMismatch) and self._part.attempts < 2):
            for_good = True
            with contextlib.suppress(NotFound, Invalid):  # the order is gone, or was written over: it is over as well
                await self._book.change(self._order.id, self._ended(error))
        await self._tell(state=PartState.FAILED if for_good else PartState.WAITING, reason=told, code=error.code.value)
        wait = self._pace.back_off * 2 ** (self._part.attempts - 1)
        return 0.0 if for_good else random.uniform(0.5, 1.0) * min(wait, _LONGEST_BACK_OFF)

    def _ended(self, error: CastoffError) -> Callable[[Order], Order | None]:
        def ended(order: Order) -> Order | None:
            if order.state is not OrderState.OPEN or order.generation != self._order.generation:
                return None
            return failed(order.id, Invalid(f"host {self._me.name}: {error.what}", hint=error.hint), order)

        return ended

    async def _tell(self, **changes: Any) -> None:
        self._part = msgspec.structs.replace(self._part, clock=int(time.time()), **changes)
        await self._book.tell(self._part)

    async def _tell_progress(self) -> None:
        """Now and then, where there is news; a word that is lost is no harm."""
        told: tuple[int, int, int] | None = None
        while True:
            await asyncio.sleep(self._pace.tell)
            steps = list(self._steps)
            done = sum(step.done for step in steps if not _BYTES_OF[step.name])
            total = sum(step.total or 0 for step in steps if _BYTES_OF[step.name])
            if (self._part.images_done, done, total) != told:
                told = self._part.images_done, done, total
                with contextlib.suppress(Unavailable):
                    await self._tell(done=done, total=total)

    async def _farewell(self) -> None:
        """The agent ends, the order was cancelled, or the slot is another's: an attempt that was ended so does not count."""
        if self._part.state not in (PartState.RUNNING, PartState.WAITING):
            return
        attempts = self._part.attempts - (self._part.state is PartState.RUNNING)
        state = PartState.CANCELLED if self.is_cancelled else PartState.WAITING
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                await self._tell(state=state, attempts=attempts, reason="" if self.is_cancelled else "its host left off")
