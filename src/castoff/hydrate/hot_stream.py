"""A hot pack as it comes in: verified chunks in the order in which a boot wants them.

The stream begins to read when it is made, which may be before the layers' indexes are here: up to ``AHEAD`` bytes wait in
memory, then the sender does. One thread at a time decompresses and hashes, a batch ahead of whoever takes the chunks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from types import TracebackType
from typing import Final, Self

from castoff.errors import CastoffError, Invalid, Unavailable
from castoff.hydrate.hotpack import HEAD_SIZE, HotTable, decode_head, head_size
from castoff.hydrate.profile import ChunkId
from castoff.image.digest import Digest
from castoff.layers.index import LayerIndex
from castoff.layers.pack import chunk_size, unpack_chunk, verify_chunk

__all__ = ["AHEAD", "HotPackStream"]

AHEAD: Final = 16 << 20
"""Bytes that are read ahead of whoever takes them."""
_BATCH: Final = 16
"""Most chunks that a thread verifies at once; fewer where fewer are here, so that none waits for another's bytes."""

_Frame = tuple[LayerIndex, ChunkId, bytes]


class HotPackStream:
    """A hot pack on its way; an async context manager, made in a running event loop.

    Args:
        pieces: The blob's bytes as they come (castoff.artifact.profiles.open_hot_pack). Closed with the stream.
        image: The image's manifest.
        size: Bytes of the blob.
    """

    def __init__(self, pieces: AsyncGenerator[bytes, None], *, image: Digest, size: int) -> None:
        self._pieces = pieces
        self._image = image
        self._size = size
        self._parts: deque[bytes] = deque()
        self._held = 0
        self._came = asyncio.Event()
        self._left = asyncio.Event()
        self._end: CastoffError | None = None
        self._table: HotTable | None = None
        self.received = 0
        """Bytes of the blob that came so far."""
        self._task = asyncio.create_task(self._receive())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the transfer. Idempotent."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def table(self) -> HotTable:
        """What it holds; waits for the head alone.

        Raises:
            Invalid: It is no hot pack of this image.
            Unavailable, Unauthorized: It does not come.
        """
        if self._table is None:
            if self._size <= HEAD_SIZE:
                raise Invalid(f"the hot pack of {self._image} has {self._size} bytes")
            start = await self._take(HEAD_SIZE)
            self._table = decode_head(start + await self._take(head_size(start, self._image) - HEAD_SIZE), self._size)
        return self._table

    async def chunks(
        self, indexes: Mapping[Digest, LayerIndex], wanted: Callable[[ChunkId], bool] = lambda chunk: True
    ) -> AsyncGenerator[tuple[ChunkId, bytes], None]:
        """The chunks and their bytes, verified, in order; each once, for one consumer.

        Args:
            indexes: Of the image's layers, by diffID. Chunks of others are passed over.
            wanted: Asked when a chunk's frame is here; False spares the work where somebody else has brought it.

        Raises:
            Invalid, DigestMismatch: What came is not what the indexes say; the chunks before it are good.
            Unavailable, Unauthorized: The rest does not come.
        """
        table = await self.table()
        left = deque(zip(table.chunks, table.lengths, strict=True))
        following = asyncio.create_task(self._verified(left, indexes, wanted))
        try:
            while batch := await following:
                following = asyncio.create_task(self._verified(left, indexes, wanted))
                for chunk, data in batch:
                    if data is not None:
                        yield chunk, data
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _verified(
        self, left: deque[tuple[ChunkId, int]], indexes: Mapping[Digest, LayerIndex], wanted: Callable[[ChunkId], bool]
    ) -> list[tuple[ChunkId, bytes | None]]:
        """The next chunk, and those behind it that are here already; None for what is passed over; empty at the end."""
        batch: list[tuple[ChunkId, bytes | None]] = []
        frames: list[_Frame] = []
        while left and len(batch) < _BATCH and (not batch or left[0][1] <= self._held):
            chunk, length = left.popleft()
            frame = await self._take(length)
            index = indexes.get(chunk.diff_id)
            if index is not None and wanted(chunk):
                frames.append((index, chunk, frame))
            batch.append((chunk, None))
        if frames:
            data = await asyncio.to_thread(_unpack, frames)
            return [(chunk, data.get(chunk)) for chunk, _ in batch]
        return batch

    async def _receive(self) -> None:
        """Takes the pieces off the connection, as far as there is room."""
        try:
            async with contextlib.aclosing(self._pieces) as pieces:
                async for piece in pieces:
                    self.received += len(piece)
                    self._parts.append(piece)
                    self._held += len(piece)
                    self._came.set()
                    while self._held > AHEAD:
                        self._left.clear()
                        await self._left.wait()
            self._end = Unavailable(f"the hot pack of {self._image} ended after {self.received} of {self._size} bytes")
        except CastoffError as error:
            self._end = error
        finally:
            self._came.set()

    async def _take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        while self._held < count:
            if self._task.done():
                raise self._end or Unavailable(f"the hot pack of {self._image} was given up")
            self._came.clear()
            await self._came.wait()
        taken = []
        missing = count
        while missing:
            part = self._parts.popleft()
            if len(part) > missing:
                self._parts.appendleft(part[missing:])
                part = part[:missing]
            taken.append(part)
            missing -= len(part)
        self._held -= count
        self._left.set()
        return taken[0] if len(taken) == 1 else b"".join(taken)


def _unpack(frames: list[_Frame]) -> dict[ChunkId, bytes]:
    """The frames' chunks, verified; in a thread."""
    found = {}
    for index, chunk, frame in frames:
        if chunk.number >= len(index.digests):
            raise Invalid(f"layer {chunk.diff_id} has no chunk {chunk.number}")
        data = unpack_chunk(frame, chunk_size(index, chunk.number))
        verify_chunk(index, chunk.number, data)
        found[chunk] = data
    return found
