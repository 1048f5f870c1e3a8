"""A peer as long as it is quick: one that loses a race against its deadline is left alone for a while."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from castoff.errors import CastoffError
from castoff.image.digest import Digest
from castoff.sources.quarantine import Quarantine
from castoff.sources.source import ByteRange, ChunkSource, Located, Piece

__all__ = ["PromptSource"]


class PromptSource:
    """A ChunkSource over a peer, for what a guest waits for.

    Args:
        source: The peer; closed by its owner.
        deadline: Seconds after which others are asked besides. Where its reader goes after that without a single piece, the
            others were faster, and the next guest does not wait for it.
        quarantine: Where it is put then, and when it fails.
    """

    def __init__(self, source: ChunkSource, deadline: float, quarantine: Quarantine) -> None:
        self._source = source
        self._deadline = deadline
        self._quarantine = quarantine
        self.name = source.name

    async def locate(self, pack: Digest) -> Located | None:
        return await self._source.locate(pack)

    async def read(self, pack: Digest, ranges: Sequence[ByteRange]) -> AsyncGenerator[Piece, None]:
        """As the port says."""
        begun, came = time.monotonic(), False
        try:
            async with aclosing(self._source.read(pack, ranges)) as pieces:
                async for piece in pieces:
                    came = True
                    yield piece
        except CastoffError as error:
            came = True
            self._quarantine.put(self.name, error.what)
            raise
        finally:
            if ranges and not came and time.monotonic() - begun > self._deadline:
                self._quarantine.put(self.name, "it was too slow for a guest that waits")

    async def close(self) -> None:
        """Its owner closes it."""
