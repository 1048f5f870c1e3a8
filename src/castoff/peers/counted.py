"""A source whose pieces are counted, by who gave them and whether a guest waited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from castoff.image.digest import Digest
from castoff.peers.peer import PEER
from castoff.peers.tally import Tally
from castoff.sources.quarantine import Quarantine
from castoff.sources.source import ByteRange, ChunkSource, Located, Piece
from castoff.sources.urgency import URGENCY, Urgency

__all__ = ["CountedSource"]


class CountedSource:
    """A ChunkSource around another.

    Args:
        source: Closed with this.
        tally: Counts.
        quarantine: Tells which peers are left alone.
    """

    def __init__(self, source: ChunkSource, tally: Tally, quarantine: Quarantine) -> None:
        self._source = source
        self._tally = tally
        self.name = source.name
        quarantine.told = self._left_alone

    async def locate(self, pack: Digest) -> Located | None:
        """As the source says."""
        return await self._source.locate(pack)

    async def read(self, pack: Digest, ranges: Sequence[ByteRange]) -> AsyncGenerator[Piece, None]:
        """As the port says."""
        begun, urgent = time.monotonic(), URGENCY.get() is Urgency.WAITED_FOR
        async with aclosing(self._source.read(pack, ranges)) as pieces:
            async for piece in pieces:
                seconds = time.monotonic() - begun
                self._tally.came(len(piece.data), peer=piece.source.startswith(PEER), urgent=urgent, seconds=seconds)
                yield piece
        if self._tally.is_due:
            await asyncio.to_thread(self._tally.write)

    async def close(self) -> None:
        await self._source.close()
        await asyncio.to_thread(self._tally.write)

    def _left_alone(self, name: str) -> None:
        if name.startswith(PEER):
            self._tally.left_alone()
