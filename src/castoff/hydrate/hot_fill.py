"""Takes a hot pack's chunks, as they come, to where they are wanted.

While the stream flows, the next few chunks of it are *claimed*: nobody else fetches them, and a guest that wants one waits for
it. It is here in less time than a request of its own would take. Chunks farther off are not claimed: a guest that wants one
has it fetched at once, and the stream passes it over when it comes to it. When the stream falls silent for ``SILENCE``
seconds, its claims are given back, so no guest ever waits for a stream that stands still; when it breaks, they are too.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Final, Generic, Protocol, TypeVar

from castoff.hydrate.hot_stream import HotPackStream
from castoff.hydrate.profile import ChunkId
from castoff.image.digest import Digest
from castoff.layers.index import LayerIndex

__all__ = ["CLAIM", "SILENCE", "Bringer", "HotFill", "HotSegment"]

CLAIM: Final = 16
"""Chunks that are claimed: 1.3 MB of a pack, 50 ms at 200 Mbit/s."""
SILENCE: Final = 0.5
"""Seconds without a chunk after which guests are to wait for the stream no longer."""
_UNDER_WAY: Final = 32
"""Chunks that are being written at a time: 8 MiB."""


class HotSegment(Protocol):
    """A layer's segment, as castoff.hydrate.segments has it."""

    index: LayerIndex
    coming: set[int]

    def has(self, number: int) -> bool:
        """Whether the chunk is here."""
        ...


_Segment = TypeVar("_Segment", bound=HotSegment)
_Taken = TypeVar("_Taken", bound=HotSegment, contravariant=True)


class Bringer(Protocol[_Taken]):
    """What a hot fill asks of the scheduler."""

    def bring(self, segment: _Taken, number: int, data: bytes) -> asyncio.Task[None]:
        """A verified chunk that somebody else has fetched; takes it out of ``coming`` when it is filled."""
        ...

    def give_back(self, segment: _Taken, number: int) -> None:
        """A claimed chunk does not come: takes it out of ``coming``, and fetches it where a guest waits for it."""
        ...


class HotFill(Generic[_Segment]):
    """One hot pack on its way into the segments of one image.

    Args:
        stream: The hot pack; closed by its owner.
        segments: Of the image's layers.
        bringer: The scheduler.
    """

    def __init__(self, stream: HotPackStream, segments: Mapping[Digest, _Segment], bringer: Bringer[_Segment]) -> None:
        self._stream = stream
        self._segments = segments
        self._bringer = bringer
        self._order: tuple[ChunkId, ...] = ()
        self._next = 0
        """Place in the order of the chunk that comes next."""
        self._seen = 0
        """Place of the first chunk that was not thought of claiming."""
        self._claimed: dict[ChunkId, None] = {}
        self._came = 0.0
        self.brought = 0
        """Chunks that came and were wanted."""

    async def run(self) -> int:
        """Takes the stream to its end; chunks that were brought.

        A stream that would bring mostly what is here already is left where it is: 0.

        Raises:
            CastoffError: It broke, or is not what the indexes say. What it brought is good, the rest is free to be fetched.
        """
        under_way: set[asyncio.Task[None]] = set()
        watch: asyncio.Task[None] | None = None
        try:
            table = await self._stream.table()
            missing = sum(self._lacks(chunk) for chunk in table.chunks)
            if 2 * missing < len(table.chunks):
                return 0
            self._order = table.chunks
            self._came = time.monotonic()
            self._claim()
            watch = asyncio.create_task(self._watch())
            indexes = {diff_id: segment.index for diff_id, segment in self._segments.items()}
            async with contextlib.aclosing(self._stream.chunks(indexes, self._wants)) as chunks:
                async for chunk, data in chunks:
                    under_way.add(self._take(chunk, data))
                    if len(under_way) >= _UNDER_WAY:
                        _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            return self.brought
        finally:
            if watch is not None:
                watch.cancel()
            self._give_back()
            if under_way:
                await asyncio.wait(under_way)

    def _lacks(self, chunk: ChunkId) -> bool:
        segment = self._segments.get(chunk.diff_id)
        return segment is not None and chunk.number < len(segment.index.digests) and not segment.has(chunk.number)

    def _wants(self, chunk: ChunkId) -> bool:
        """Asked, in order, when a chunk's bytes are here. What is not ours has been fetched by somebody, or is being."""
        self._came = time.monotonic()
        while self._order[self._next] != chunk:
            self._next += 1  # of layers that are not the image's
        self._next += 1
        self._claim_one(chunk)  # where it was given back meanwhile
        self._claim()
        return chunk in self._claimed

    def _take(self, chunk: ChunkId, data: bytes) -> asyncio.Task[None]:
        self._claimed.pop(chunk, None)
        self.brought += 1
        return self._bringer.bring(self._segments[chunk.diff_id], chunk.number, data)

    def _claim(self) -> None:
        """Claims what comes next."""
        end = min(self._next + CLAIM, len(self._order))
        for place in range(max(self._seen, self._next), end):
            self._claim_one(self._order[place])
        self._seen = max(self._seen, end)

    def _claim_one(self, chunk: ChunkId) -> None:
        if self._lacks(chunk) and chunk.number not in self._segments[chunk.diff_id].coming:
            self._segments[chunk.diff_id].coming.add(chunk.number)
            self._claimed[chunk] = None

    def _give_back(self) -> None:
        claimed, self._claimed = self._claimed, {}
        self._seen = self._next
        for chunk in claimed:
            self._bringer.give_back(self._segments[chunk.diff_id], chunk.number)

    async def _watch(self) -> None:
        """Gives the claims back when nothing comes; the stream may bring those chunks all the same."""
        while True:
            await asyncio.sleep(SILENCE / 4)
            if time.monotonic() - self._came > SILENCE and self._claimed:
                self._give_back()  # they are claimed anew when the stream goes on
