"""A lease while it is held: taken, renewed, given back (castoff.fleet.lease says by which rules)."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from castoff.errors import Unavailable
from castoff.fleet.connection import end
from castoff.fleet.lease import Cell, Cells, Claim, Lease, LeaseState, boot_clock

__all__ = ["TTL", "Holding"]

TTL: Final = 6.0
"""Seconds that a lease lasts without its holder: the same on all hosts of a fleet."""
_RENEWALS: Final = 3
"""In each of those."""


class Holding:
    """One host's side of one lease.

    Args:
        cells: The bucket.
        key: The lease's.
        lease: What is written: who this host is. Its ``run`` is drawn here.
        ttl: Seconds that it lasts.
        clock: Seconds that never go back.

    Attributes:
        lost: Set when it was held and is not any more.
    """

    def __init__(
        self, cells: Cells, key: str, lease: Lease, *, ttl: float = TTL, clock: Callable[[], float] = boot_clock
    ) -> None:
        self._cells = cells
        self._key = key
        self._lease = msgspec.structs.replace(lease, run=os.urandom(8).hex())
        self._claim = Claim(lease.holder, self._lease.run, ttl)
        self._clock = clock
        self._turn = asyncio.Lock()
        """Writes follow one another: each names the revision of the one before."""
        self.lost = asyncio.Event()

    @property
    def is_held(self) -> bool:
        """Whether this host may do what the lease is for."""
        return self._claim.is_held(self._clock())

    async def look(self) -> Cell | None:
        """What is written now. Raises Unavailable."""
        return await self._cells.get(self._key)

    async def take(self, found: Cell | None, *, over: bool = False) -> bool:
        """Takes the lease if it may be had; whether it is held now.

        Args:
            found: What :meth:`look` found just now.
            over: Also where its work is said to be done, or to have failed.

        Raises:
            Unavailable: NATS does not answer. It may be held all the same, which nobody believes.
        """
        after = self._claim.may_follow(found, self._clock())
        if after is None and over and found is not None:
            after = found.revision
        if after is None:
            return False
        async with self._turn:
            return await self._write(after)

    async def renew(self) -> bool:
        """Writes it once more, if it is held; whether it is now. Raises Unavailable."""
        async with self._turn:
            return self.is_held and await self._write(self._claim.revision)

    async def end(self, state: LeaseState, reason: str = "") -> bool:
        """Writes how it ended, unless it is another's by now; whether it was written. Raises Unavailable."""
        last = msgspec.structs.replace(self._lease, state=state, reason=reason[:1000])
        async with self._turn:
            self._claim.lost()
            return await self._cells.put(self._key, msgspec.json.encode(last), self._claim.revision) is not None

    @contextlib.asynccontextmanager
    async def kept(self, *, gives_back: bool = True) -> AsyncIterator[None]:
        """Renews the lease, which is held, during the block.

        Args:
            gives_back: It is free at the block's end, unless it was ended otherwise; else it runs out if nobody goes on with it.
        """
        keeping = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            await end(keeping)
            if gives_back and self.is_held:
                with contextlib.suppress(Unavailable):  # it runs out by itself
                    await self.end(LeaseState.FREE)

    async def _keep(self) -> None:
        while self.is_held:
            await asyncio.sleep(self._claim.ttl / _RENEWALS)
            try:
                if not await self.renew():
                    break
            except Unavailable:
                continue  # until it has run out
        self._claim.lost()
        self.lost.set()

    async def _write(self, after: int) -> bool:
        sent_at = self._clock()
        revision = await self._cells.put(self._key, msgspec.json.encode(self._lease), after)
        if revision is None:
            self._claim.lost()
            return False
        self._claim.written(revision, sent_at)
        return self.is_held
