"""Which host has which layers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Final

from castoff.fleet.connection import Connection
from castoff.fleet.inventory import MOST_BYTES, Inventory
from castoff.fleet.told import telling
from castoff.image.digest import Digest

__all__ = ["Holders"]

_MOST_BYTES: Final = 256 << 20
_LOOK: Final = 5.0
"""Seconds between two looks at what this host has."""

Listing = Callable[[], Awaitable[Inventory]]


class Holders:
    """The lists of all hosts, this one's too. Made by :meth:`open`."""

    def __init__(self) -> None:
        self._lists: dict[str, Inventory] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        connection: Connection,
        own: str,
        listing: Listing,
        *,
        notice: Callable[[str], None] = lambda line: None,
        look: float = _LOOK,
    ) -> AsyncIterator[Holders]:
        """Tells and hears for the block.

        Args:
            connection: The way there.
            own: This host's id.
            listing: What this host has now.
            notice: Called with a line for people.
            look: Seconds between two looks at what this host has.
        """
        holders = cls()

        async def say() -> bytes:
            return (await listing()).to_bytes()

        async with telling(
            connection,
            "layers",
            own,
            say,
            holders._hear,
            every=look,
            notice=notice,
            most_bytes=_MOST_BYTES,
            value_bytes=MOST_BYTES,
        ):
            yield holders

    def lists(self) -> Mapping[str, Inventory]:
        """By host; also of hosts that are not alive any more."""
        return self._lists

    def share(self, host: str, layers: Iterable[Digest]) -> float:
        """How much of some layers a host has, from 0 to 1: one that it has in part counts half."""
        inventory, wanted = self._lists.get(host), list(layers)
        if inventory is None or not wanted:
            return 0.0
        return sum(1.0 if inventory.has(layer) else 0.5 * inventory.begins(layer) for layer in wanted) / len(wanted)

    def _hear(self, host: str, data: bytes) -> None:
        if data:
            self._lists[host] = Inventory.read(data)
        else:
            self._lists.pop(host, None)
