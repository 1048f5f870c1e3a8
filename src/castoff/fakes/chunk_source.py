"""A chunk source in memory, which lies, breaks and waits on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

from castoff.errors import CastoffError, NotFound
from castoff.image.digest import Digest
from castoff.sources.source import ByteRange, Located, Piece

__all__ = ["FakeChunkSource"]


class FakeChunkSource:
    """Answers from packs in memory.

    Args:
        packs: By digest.
        name: Its name.
        delay: Seconds before the first piece of each read, and before each ``locate``.
        fails: Raised by every read, after ``good`` pieces of it, and by every ``locate``.
        good: Pieces of a read before it fails.
        lies: Whether every piece has its first byte changed.
    """

    def __init__(
        self,
        packs: Mapping[Digest, bytes],
        *,
        name: str = "fake",
        delay: float = 0.0,
        fails: CastoffError | None = None,
        good: int = 0,
        lies: bool = False,
    ) -> None:
        self.name = name
        self.delay = delay
        self.fails = fails
        self.good = good
        self.lies = lies
        self.reads: list[tuple[Digest, tuple[ByteRange, ...]]] = []
        """Every read's arguments, in that order."""
        self.given = 0
        """Pieces that were taken from it."""
        self.under_way = 0
        """Reads that have begun and not ended."""
        self.closed = False
        self._packs = dict(packs)

    async def locate(self, pack: Digest) -> Located | None:
        await asyncio.sleep(self.delay)
        if self.fails is not None:
            raise self.fails
        return Located(self.name, len(self._packs[pack])) if pack in self._packs else None

    async def read(self, pack: Digest, ranges: Sequence[ByteRange]) -> AsyncGenerator[Piece, None]:
        self.reads.append((pack, tuple(ranges)))
        self.under_way += 1
        try:
            await asyncio.sleep(self.delay)
            if pack not in self._packs and self.fails is None:
                raise NotFound(f"{self.name} does not have pack {pack}")
            for count, one in enumerate(ranges):
                if self.fails is not None and count >= self.good:
                    raise self.fails
                self.given += 1
                yield Piece(one, self._bytes(pack, one), self.name)
        finally:
            self.under_way -= 1

    async def close(self) -> None:
        self.closed = True

    def _bytes(self, pack: Digest, one: ByteRange) -> bytes:
        data = self._packs[pack][one.start : one.end]
        return bytes([data[0] ^ 1]) + data[1:] if self.lies else data
