"""Sources in order: what one does not give, the next is asked for; those in quarantine are passed over."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from castoff.errors import CastoffError, Internal, Unavailable
from castoff.image.digest import Digest
from castoff.sources.failure import failure_of
from castoff.sources.quarantine import Quarantine
from castoff.sources.source import ByteRange, ChunkSource, Located, Piece

__all__ = ["ChainSource"]


class ChainSource:
    """A ChunkSource of others, the best first.

    Args:
        sources: In order.
        quarantine: Who is left alone.
    """

    def __init__(self, sources: Sequence[ChunkSource], quarantine: Quarantine | None = None) -> None:
        self._sources = tuple(sources)
        self.quarantine = quarantine or Quarantine()
        self.name = ", then ".join(source.name for source in sources)

    async def locate(self, pack: Digest) -> Located | None:
        """Of the first that has it."""
        failure: CastoffError | None = None
        for source in self._sources:
            if self.quarantine.why(source.name) is not None:
                continue
            try:
                found = await source.locate(pack)
            except CastoffError as error:
                failure = error
                continue
            if found is not None:
                return found
        if failure is not None:
            raise failure
        return None

    async def read(self, pack: Digest, ranges: Sequence[ByteRange]) -> AsyncGenerator[Piece, None]:
        """As the port says.

        Raises:
            NotFound: None of them has the pack.
            Unavailable: None gave the rest; the message has each one's name and reason.
        """
        left = dict.fromkeys(ranges)
        failures: dict[str, CastoffError] = {}
        for source in self._sources:
            if (why := self.quarantine.why(source.name)) is not None:
                failures[source.name] = Unavailable(why)
                continue
            try:
                async with aclosing(source.read(pack, list(left))) as pieces:
                    async for piece in pieces:
                        del left[piece.range]
                        yield piece
            except Internal:
                raise
            except CastoffError as error:
                failures[source.name] = error
            if not left:
                self._pass_over(failures)
                return
            failures.setdefault(source.name, Unavailable("it ended before it had given all"))
        raise failure_of(pack, failures)

    def _pass_over(self, failures: Mapping[str, CastoffError]) -> None:
        """Another gave what these did not: the next read need not wait for them to fail again."""
        for name, error in failures.items():
            if isinstance(error, Unavailable) and self.quarantine.why(name) is None:
                self.quarantine.put(name, error.what)

    async def close(self) -> None:
        for source in self._sources:
            await source.close()
