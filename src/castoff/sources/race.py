"""Sources side by side: whoever is first with a range has given it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from castoff.errors import CastoffError, Internal, Unavailable
from castoff.image.digest import Digest
from castoff.sources.failure import failure_of
from castoff.sources.merge import merged
from castoff.sources.quarantine import Quarantine
from castoff.sources.source import ByteRange, ChunkSource, Located, Piece

__all__ = ["RaceSource"]


class RaceSource:
    """A ChunkSource of others, of which the first begins and each next joins when those before it are slow, or failed.

    Args:
        sources: In the order in which they begin.
        after: Seconds after which the next begins; 0: all at once.
        quarantine: Who is left alone.
    """

    def __init__(self, sources: Sequence[ChunkSource], *, after: float = 0.0, quarantine: Quarantine | None = None) -> None:
        self._sources = tuple(sources)
        self._after = after
        self.quarantine = quarantine or Quarantine()
        self.name = " against ".join(source.name for source in sources)

    async def locate(self, pack: Digest) -> Located | None:
        """Of the first that says that it has it."""
        asking = [asyncio.create_task(source.locate(pack)) for source in self._runners()]
        failure: CastoffError | None = None
        try:
            for answer in asyncio.as_completed(asking):
                try:
                    found = await answer
                except CastoffError as error:
                    failure = error
                    continue
                if found is not None:
                    return found
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        if failure is not None:
            raise failure
        return None

    async def read(self, pack: Digest, ranges: Sequence[ByteRange]) -> AsyncGenerator[Piece, None]:
        """As the port says. Who loses has its reads ended as soon as everything is here.

        Raises:
            NotFound: None of them has the pack.
            Unavailable: None gave the rest; the message has each one's name and reason.
        """
        heat = _Heat(dict.fromkeys(ranges), self._after)
        runners = self._runners()
        runs = [heat.run(number, source, pack) for number, source in enumerate(runners)]
        async with aclosing(merged(runs, at_once=len(runs))) as pieces:
            async for piece in pieces:
                if piece.range in heat.left:
                    del heat.left[piece.range]
                    yield piece
                if not heat.left:
                    return
        if heat.left:
            resting = {source.name: Unavailable(why) for source in self._sources if (why := self.quarantine.why(source.name))}
            raise failure_of(pack, resting | heat.failures)

    async def close(self) -> None:
        for source in self._sources:
            await source.close()

    def _runners(self) -> list[ChunkSource]:
        return [source for source in self._sources if self.quarantine.why(source.name) is None]


class _Heat:
    """One race."""

    def __init__(self, left: dict[ByteRange, None], after: float) -> None:
        self.left = left
        self.failures: dict[str, CastoffError] = {}
        self._after = after
        self._failed = asyncio.Condition()

    async def run(self, number: int, source: ChunkSource, pack: Digest) -> AsyncGenerator[Piece, None]:
        """Runs one source, when it is its turn, for what is left then."""
        await self._turn(number)
        if not self.left:
            return
        try:
            async with aclosing(source.read(pack, list(self.left))) as pieces:
                async for piece in pieces:
                    yield piece
        except Internal:
            raise
        except CastoffError as error:
            async with self._failed:
                self.failures[source.name] = error
                self._failed.notify_all()

    async def _turn(self, number: int) -> None:
        """Until those before have had their time, or have failed."""
        try:
            async with asyncio.timeout(number * self._after), self._failed:
                await self._failed.wait_for(lambda: len(self.failures) >= number)
        except TimeoutError:
            return
