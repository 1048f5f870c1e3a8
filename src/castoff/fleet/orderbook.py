"""Where orders are kept: three buckets of JetStream, on its disks, so that no order is lost with a host or a server.

orders   ORDER                  an order (castoff.fleet.orders)
parts    ORDER.HOST             what a host did of it
leases   lead, slot.ORDER.N     who leads; which hosts do an order that is for N of them
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from typing import Final

import msgspec

from castoff.errors import CastoffError, Conflict, Invalid, NotFound
from castoff.fleet.cells import Bucket, BucketPlace
from castoff.fleet.connection import Connection
from castoff.fleet.lease import Cell
from castoff.fleet.orders import LIFE, MOST_BYTES, Order, OrderState, Part, encode, is_order_id, read_order, read_part

__all__ = ["OrderBook"]

_ORDERS_BYTES: Final = 64 << 20
_PARTS_BYTES: Final = 64 << 20
_LEASES_BYTES: Final = 16 << 20
_SMALL: Final = 8192
_TRIES: Final = 20
"""Of a change that others make at the same time."""


class OrderBook:
    """The orders of a fleet; every method raises Unavailable where NATS does not answer.

    Args:
        connection: The fleet.
    """

    def __init__(self, connection: Connection) -> None:
        day = 86400.0
        self._orders = Bucket(BucketPlace(connection, "orders", ttl=None, most_bytes=_ORDERS_BYTES, value_bytes=MOST_BYTES))
        # Of a standing order a part may be older than its bucket lets it become: the host then finds all in place once more.
        self._parts = Bucket(BucketPlace(connection, "parts", ttl=LIFE + day, most_bytes=_PARTS_BYTES, value_bytes=_SMALL))
        self.leases = Bucket(BucketPlace(connection, "leases", ttl=LIFE + day, most_bytes=_LEASES_BYTES, value_bytes=_SMALL))

    async def give(self, order: Order) -> None:
        """Writes a new order; when this returns it is on the servers' disks."""
        if await self._orders.put(order.id, encode(order), 0) is None:
            raise Conflict(f"there is an order {order.id} already")

    async def cells(self) -> dict[str, Cell]:
        """All orders, as they are written."""
        return await self._orders.all()

    async def orders(self) -> list[Order]:
        """All orders that can be read, the latest first."""
        found = []
        for key, cell in (await self.cells()).items():
            try:
                found.append(read_order(key, cell.value))
            except CastoffError:
                continue  # whoever leads writes down why
        return sorted(found, key=lambda order: (-order.created, order.id))

    def changes(self, *, wait: float) -> AsyncGenerator[tuple[str, Cell | None] | None, None]:
        """As :meth:`castoff.fleet.cells.Bucket.changes`."""
        return self._orders.changes(wait=wait)

    async def order(self, order_id: str) -> Order:
        """An order.

        Raises:
            NotFound: There is none, or it is of a later version.
            Invalid: It cannot be read.
        """
        cell = await self._orders.get(order_id) if is_order_id(order_id) else None
        if cell is None:
            raise NotFound(f"there is no order {order_id[:40]!r}", hint="`castoff fleet orders` lists them")
        return read_order(order_id, cell.value)

    async def change(self, order_id: str, how: Callable[[Order], Order | None]) -> Order | None:
        """Changes an order, whatever others do at the same time.

        Args:
            order_id: Which.
            how: Given the order as it is, what it shall be; None: it stays. May be called several times.

        Returns:
            What was written; None: nothing.

        Raises:
            NotFound, Invalid: As :meth:`order`.
        """
        for _ in range(_TRIES):
            cell = await self._orders.get(order_id) if is_order_id(order_id) else None
            if cell is None:
                raise NotFound(f"there is no order {order_id[:40]!r}", hint="`castoff fleet orders` lists them")
            changed = how(read_order(order_id, cell.value))
            if changed is None or await self._orders.put(order_id, encode(changed), cell.revision) is not None:
                return changed
        raise Conflict(f"order {order_id} changes all the time", hint="try again")

    async def replace(self, key: str, order: Order, cell: Cell) -> None:
        """Writes an order in the place of what was found there, if that is still there."""
        await self._orders.put(key, encode(order), cell.revision)

    async def cancel(self, order_id: str) -> Order:
        """Cancels an order; one that has ended stays as it is.

        Raises:
            NotFound: There is none.
        """

        def cancelled(order: Order) -> Order | None:
            if order.state in (OrderState.NEW, OrderState.OPEN) or (order.keep and order.state is OrderState.FAILED):
                return msgspec.structs.replace(order, state=OrderState.CANCELLED, ended=int(time.time()))
            return None

        try:
            return await self.change(order_id, cancelled) or await self.order(order_id)
        except Invalid as error:
            raise NotFound(f"there is no order {order_id} that can be read", hint="whoever leads ends it by itself") from error

    async def remove(self, key: str) -> None:
        """Removes an order, or what is in the place of one, and its parts."""
        await self._orders.remove(key)
        for name in await self._parts.all(f"{key}.*") if is_order_id(key) else ():
            await self._parts.remove(name)

    async def tell(self, part: Part) -> None:
        """Writes a host's own part."""
        await self._parts.set(f"{part.order}.{part.host}", encode(part))

    async def part(self, order_id: str, host: str) -> Part | None:
        """A host's part; None: there is none that can be read."""
        cell = await self._parts.get(f"{order_id}.{host}")
        try:
            return None if cell is None else read_part(f"{order_id}.{host}", cell.value)
        except Invalid:
            return None

    async def parts(self, order_id: str = "*") -> list[Part]:
        """The parts of an order, or of all."""
        found = []
        for key, cell in (await self._parts.all(f"{order_id}.*")).items():
            try:
                found.append(read_part(key, cell.value))
            except Invalid:
                continue  # its host writes it anew
        return sorted(found, key=lambda part: (part.order, part.name, part.host))
