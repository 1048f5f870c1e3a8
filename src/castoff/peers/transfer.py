"""One read of many ranges from the other hosts and the registry, of which the registry is asked for as little as may be.

Every host that wants a layer has a share of it: for each MiB of a pack all hosts find the same order of themselves
(rendezvous hashing), and the first in it asks the registry. The others have it from that one, or from whoever has it by then.
A host whose turn it is not takes over when those before it do not want the layer, are gone, or have brought nothing for a
while: what a peer says that it has is a hint and no promise.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castoff.errors import CastoffError, Internal
from castoff.image.digest import Digest
from castoff.peers.frames import PackFrames
from castoff.peers.seat import Seat
from castoff.peers.wire import REQUEST
from castoff.sources.failure import failure_of
from castoff.sources.quarantine import Quarantine
from castoff.sources.source import ByteRange, ChunkSource, Piece

__all__ = ["SHARE", "Pace", "Transfer", "rank"]

SHARE = 1 << 20
"""Bytes of a pack that are handed out together: neighbours are one request to the registry."""
_ORIGIN_AT_ONCE = 2
_PEER_AT_ONCE = 16
_QUEUE = 8
_GREETING = 0.05
"""Seconds that peers have for saying what they have, before the registry is asked for anything."""
_TIMES, _MOST = 3, 20
"""A share is waited for so many times as long as one of this host's own takes, and for so many times the patience at most."""
_TICK = 0.01
"""Seconds between two looks at whether the registry is to be asked."""


def rank(pack: Digest, share: int, hosts: Sequence[str]) -> list[str]:
    """The hosts in the order in which they answer for a share of a pack; the same on every host that knows the same ones."""
    key = f"{pack}/{share}/"
    return sorted(hosts, key=lambda host: hashlib.blake2b((key + host).encode(), digest_size=8).digest())


@dataclass(slots=True)
class Pace:
    """How fast the registry is, for all reads of one pack.

    Attributes:
        share: Seconds that the latest of this host's own shares took.
    """

    share: float = 0.0


class Transfer:
    """One read.

    Args:
        me: This host's own URL among the peers'; empty: it takes no share.
        pack: What is read.
        frames: Where its chunks are.
        ranges: What of it.
        seats: The peers.
        origin: The registry.
        quarantine: Who is left alone.
        patience: Seconds without news after which those before this host in a share's order are passed over.
        pace: What is known of the registry's.
    """

    def __init__(
        self,
        me: str,
        pack: Digest,
        frames: PackFrames,
        ranges: Sequence[ByteRange],
        seats: Sequence[Seat],
        origin: ChunkSource,
        quarantine: Quarantine,
        patience: float,
        pace: Pace,
    ) -> None:
        self._pace = pace
        self._me = me
        self._pack = pack
        self._seats = seats
        self._origin = origin
        self._quarantine = quarantine
        self._patience = patience
        self._ranges = list(ranges)
        self._place = {one: number for number, one in enumerate(self._ranges)}
        self._numbers = [[frame.number for frame in frames.of(one)] for one in ranges]
        self._plain = np.array([numbers[0] if len(numbers) == 1 else -1 for numbers in self._numbers], np.int64)
        self._wanted = np.ones(len(self._ranges), np.bool_)
        self._taken = np.zeros(len(self._ranges), np.bool_)
        self._from_origin = np.zeros(len(self._ranges), np.bool_)
        self._shares: dict[int, list[int]] = {}
        for number, one in enumerate(self._ranges):
            self._shares.setdefault(one.start // SHARE, []).append(number)
        self._orders: dict[int, list[str]] = {}
        self._came: asyncio.Queue[Piece | BaseException] = asyncio.Queue(_QUEUE)
        self._progress = time.monotonic()
        self._hold = self._progress + _GREETING
        self._failures: dict[str, CastoffError] = {}
        self._asked_at: list[float] = []
        """When the registry's requests that are under way began."""

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The ranges, each once, as they come.

        Raises:
            CastoffError: The registry failed, and no peer brought the rest.
        """
        works = [self._ask(seat) for seat in self._seats] + [self._ask_origin() for _ in range(_ORIGIN_AT_ONCE)]
        tasks = [asyncio.create_task(self._told(work)) for work in works]
        try:
            for _ in self._ranges:
                came = await self._came.get()
                if isinstance(came, BaseException):
                    raise came
                yield came
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _told(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as error:
            await self._came.put(error)

    async def _take(self, source: ChunkSource, chosen: Sequence[int]) -> None:
        """Has ranges from one source, if it gives them."""
        under_way = self._from_origin if source is self._origin else self._taken
        under_way[list(chosen)] = True
        begun = time.monotonic()
        if source is self._origin:
            self._asked_at.append(begun)
        try:
            async with aclosing(source.read(self._pack, [self._ranges[number] for number in chosen])) as pieces:
                async for piece in pieces:
                    number = self._place[piece.range]
                    if self._wanted[number]:
                        self._wanted[number] = False
                        self._progress = time.monotonic()
                        await self._came.put(piece)
        finally:
            under_way[list(chosen)] = False
            if source is self._origin:
                self._asked_at.remove(begun)
                self._pace.share = time.monotonic() - begun

    # Peers.

    async def _ask(self, seat: Seat) -> None:
        """Takes from a peer what it has, as long as anything is left."""
        while self._wanted.any():
            if self._quarantine.why(seat.peer.name) is not None:
                await asyncio.sleep(_TICK)
                continue
            try:
                if chosen := self._choose(seat):
                    await self._take(seat.peer, chosen)
                else:
                    await seat.look()
            except Internal:
                raise
            except CastoffError as error:
                self._failures[seat.peer.name] = error
                self._quarantine.put(seat.peer.name, error.what)
                seat.forget()

    def _choose(self, seat: Seat) -> list[int]:
        """What to ask of a peer next: what the fewest have first."""
        can = np.flatnonzero(self._has(seat) & self._wanted & ~self._taken & ~self._from_origin)
        if not can.size:
            return []
        seed = int.from_bytes(hashlib.blake2b((self._me + seat.peer.url).encode(), digest_size=4).digest(), "big")
        can = np.roll(can, seed % len(can))  # hosts that began together do not all ask for the same
        held = sum(self._has(other).astype(np.int64) for other in self._seats)
        chosen: list[int] = []
        size = 0
        for number in can[np.argsort(np.asarray(held)[can], kind="stable")][:_PEER_AT_ONCE].tolist():
            size += len(self._ranges[number])
            if chosen and size > REQUEST:
                break
            chosen.append(number)
        return sorted(chosen)

    def _has(self, seat: Seat) -> NDArray[np.bool_]:
        """[R] which ranges a peer says that it can give."""
        have = seat.have
        if have is None:
            return np.zeros(len(self._ranges), np.bool_)
        can: NDArray[np.bool_] = have[self._plain]
        for number in np.flatnonzero(self._plain < 0).tolist():
            can[number] = bool(self._numbers[number]) and all(have[chunk] for chunk in self._numbers[number])
        return can

    # The registry.

    async def _ask_origin(self) -> None:
        """Asks the registry for this host's shares, and for what the others do not bring."""
        pause_until = 0.0
        while self._wanted.any():
            chosen = self._due() if time.monotonic() >= pause_until else []
            if not chosen:
                await asyncio.sleep(_TICK)
                continue
            try:
                await self._take(self._origin, chosen)
            except Internal:
                raise
            except CastoffError as error:
                self._failures[self._origin.name] = error
                pause_until = time.monotonic() + self._patience
                if time.monotonic() - self._progress > 2 * self._patience:
                    raise failure_of(self._pack, self._failures) from error

    def _due(self) -> list[int]:
        """The ranges of a share that the registry is to be asked for now; empty: none."""
        if time.monotonic() < self._hold and not all(seat.is_known for seat in self._seats):
            return []
        bringing = self._bringing()
        late = time.monotonic() - self._progress > self._bearable()
        stalled = late and not self._came.full()  # else it is the reader who is behind
        open_ = self._wanted & ~self._from_origin
        if not stalled:
            open_ &= ~self._taken
            for seat in self._seats:
                if self._quarantine.why(seat.peer.name) is None:
                    open_ &= ~self._has(seat)  # a peer has it, and will be asked
        later: list[int] = []
        for share, numbers in list(self._shares.items()):
            if not self._wanted[numbers].any():
                del self._shares[share]
                continue
            chosen = [number for number in numbers if open_[number]]
            if not chosen:
                continue
            order = self._order(share)
            if self._me and order[0] == self._me:
                return chosen
            before = bringing.intersection(order[: order.index(self._me)] if self._me else order)
            if not later and (stalled or not before):
                later = chosen
                if before:
                    self._pass_over(before)
        return later

    def _order(self, share: int) -> list[str]:
        if share not in self._orders:
            hosts = {seat.peer.url for seat in self._seats} | ({self._me} if self._me else set())
            self._orders[share] = rank(self._pack, share, sorted(hosts))
        return self._orders[share]

    def _bringing(self) -> set[str]:
        """Peers that are worth waiting for."""
        return {
            seat.peer.url
            for seat in self._seats
            if seat.brings(self._bearable()) and self._quarantine.why(seat.peer.name) is None
        }

    def _bearable(self) -> float:
        """Seconds without news that are borne: the more hosts are served by one registry, the longer each of them waits for a
        share, and what this host's own shares take tells how long that is."""
        waiting = time.monotonic() - min(self._asked_at) if self._asked_at else 0.0
        return max(self._patience, min(_TIMES * max(waiting, self._pace.share), _MOST * self._patience))

    def _pass_over(self, urls: set[str]) -> None:
        """This host does their share."""
        for seat in self._seats:
            if seat.peer.url in urls:
                seat.shares_left += 1
        self._progress = time.monotonic()  # they have their time anew for the next one
