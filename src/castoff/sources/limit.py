"""A source that is asked for no more than so many bytes a second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from castoff.image.digest import Digest
from castoff.sources.source import ByteRange, ChunkSource, Located, Piece

__all__ = ["LimitedSource"]

_BURST = 0.25
"""Seconds of the rate that are asked for at once: less would cost round trips, more would hold up others on the link."""


class LimitedSource:
    """A ChunkSource over another. All reads through it together keep to the rate.

    Args:
        source: Whom to ask.
        rate: Bytes a second; 0: no limit. It may be changed at any time.
    """

    def __init__(self, source: ChunkSource, rate: int) -> None:
        self._source = source
        self._free_at = 0.0
        self._turn = asyncio.Lock()
        self.rate = rate
        self.name = source.name

    async def locate(self, pack: Digest) -> Located | None:
        return await self._source.locate(pack)

    async def read(self, pack: Digest, ranges: Sequence[ByteRange]) -> AsyncGenerator[Piece, None]:
        """As the port says, a part after the other."""
        done = 0
        while done < len(ranges):
            part = self._part(ranges, done)
            done += len(part)
            await self._wait(sum(map(len, part)))
            async with aclosing(self._source.read(pack, part)) as pieces:
                async for piece in pieces:
                    yield piece

    async def close(self) -> None:
        await self._source.close()

    def _part(self, ranges: Sequence[ByteRange], first: int) -> list[ByteRange]:
        """The ranges from ``first`` on that are asked for at once: one at least."""
        end, room = first + 1, self.rate * _BURST - len(ranges[first])
        while end < len(ranges) and (not self.rate or len(ranges[end]) <= room):
            room -= len(ranges[end])
            end += 1
        return list(ranges[first:end])

    async def _wait(self, count: int) -> None:
        """Until ``count`` bytes may be asked for: those before them have had their time on the link."""
        async with self._turn:  # in the order of their coming
            clock = asyncio.get_running_loop().time
            delay = self._free_at - clock()
            if delay > 0:
                await asyncio.sleep(delay)
            if self.rate:
                self._free_at = max(self._free_at, clock()) + count / self.rate
