"""One read for all that want the same: a range that is on its way already is waited for, not asked for again.

A read belongs to nobody in particular: who began it may be cancelled, and it goes on as long as anyone waits for any of its
ranges. Only when nobody does it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeAlias

from castoff.errors import Unavailable
from castoff.image.digest import Digest
from castoff.sources.source import ByteRange, ChunkSource, Located, Piece

__all__ = ["SingleFlightSource"]

_Place: TypeAlias = tuple[Digest, ByteRange]


class _Flight:
    """One read of the source below, and who waits for it."""

    def __init__(self, pack: Digest, ranges: Sequence[ByteRange]) -> None:
        self.pack = pack
        self.pieces: dict[ByteRange, asyncio.Future[Piece]] = {}
        self.passengers = 0
        self.task: asyncio.Task[None] | None = None
        for one in ranges:
            self.pieces[one] = asyncio.get_running_loop().create_future()


class SingleFlightSource:
    """A ChunkSource over another."""

    def __init__(self, source: ChunkSource) -> None:
        self._source = source
        self._flights: dict[_Place, _Flight] = {}
        self.name = source.name

    async def locate(self, pack: Digest) -> Located | None:
        return await self._source.locate(pack)

    async def read(self, pack: Digest, ranges: Sequence[ByteRange]) -> AsyncGenerator[Piece, None]:
        """As the port says."""
        boarded: set[_Flight] = set()
        waiting: set[asyncio.Future[Piece]] = set()
        missing = [one for one in ranges if (pack, one) not in self._flights]
        if missing:
            self._begin(pack, missing)
        for one in ranges:
            flight = self._flights[pack, one]
            boarded.add(flight)
            waiting.add(flight.pieces[one])
        for flight in boarded:
            flight.passengers += 1
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for piece in sorted(done, key=lambda one: one.exception() is not None):  # what is good comes first
                    yield piece.result()
        finally:
            for flight in boarded:
                self._leave(flight)

    async def close(self) -> None:
        """Ends what is under way; whoever waits for it is told."""
        tasks = [flight.task for flight in set(self._flights.values()) if flight.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._source.close()

    def _begin(self, pack: Digest, ranges: Sequence[ByteRange]) -> None:
        flight = _Flight(pack, ranges)
        for one in ranges:
            self._flights[pack, one] = flight
        flight.task = asyncio.create_task(self._fly(flight, ranges))

    async def _fly(self, flight: _Flight, ranges: Sequence[ByteRange]) -> None:
        failure: Exception = Unavailable(f"{self.name} ended before it had given all of pack {flight.pack}")
        try:
            async with aclosing(self._source.read(flight.pack, ranges)) as pieces:
                async for piece in pieces:
                    self._forget(flight, piece.range)
                    flight.pieces.pop(piece.range).set_result(piece)
        except Exception as error:
            failure = error  # told to whoever waits
        finally:
            for one, future in flight.pieces.items():
                self._forget(flight, one)
                future.set_exception(failure)
                future.exception()  # looked at: there may be nobody left to do so

    def _forget(self, flight: _Flight, one: ByteRange) -> None:
        """Nobody boards it for that range any more."""
        if self._flights.get((flight.pack, one)) is flight:
            del self._flights[flight.pack, one]

    def _leave(self, flight: _Flight) -> None:
        flight.passengers -= 1
        if flight.passengers == 0 and flight.task is not None and not flight.task.done():
            for one in flight.pieces:
                self._forget(flight, one)
            flight.task.cancel()
