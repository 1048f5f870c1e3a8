"""Chunks, verified: the only door through which bytes from elsewhere come into a segment.

    status, length -> the source; zstd (bounded) -> BLAKE3 -> the caller, who writes them

What a source sends is checked in threads, while the next pieces come in. One that sent wrong bytes is named, left alone for
a while, and another is asked for the chunk.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Protocol, TypeAlias

from castoff.errors import CastoffError, Internal, Invalid
from castoff.image.digest import Digest
from castoff.layers.index import LayerIndex, LocationKind
from castoff.layers.pack import chunk_size, unpack_chunk, verify_chunk
from castoff.sources.chain import ChainSource
from castoff.sources.failure import failure_of
from castoff.sources.quarantine import Quarantine
from castoff.sources.source import ByteRange, ChunkSource, Piece

__all__ = ["ChunkReader", "FrameKeeper", "WrongBytes"]

_REMEMBERED = 100
_Results: TypeAlias = "asyncio.Queue[tuple[ByteRange, bytes] | None]"


class FrameKeeper(Protocol):
    """Wants the frames that chunks came in (castoff.peers.kept)."""

    def keep(self, index: LayerIndex, number: int, frame: bytes | memoryview) -> None:
        """A chunk's verified frame. Blocks; called in threads."""
        ...

    def close(self) -> None:
        """Ends it; what is called afterwards has no effect. Blocks."""
        ...


class WrongBytes(Invalid):
    """A source sent something else than the chunk that it was asked for. Nobody saw it but the reader."""

    def __init__(self, source: str, number: int, diff_id: Digest, reason: Invalid) -> None:
        super().__init__(f"{source} sent wrong bytes for chunk {number} of layer {diff_id}: {reason.what}")
        self.source = source
        self.number = number


class ChunkReader:
    """Fetches chunks of layers and checks them. Close it; its source is closed with it.

    Args:
        source: Whom to ask.
        quarantine: Who is left alone; a chain brings its own. What is inside of ``source`` must have been given the same.
        threads: That check; as many as there are processors by default.
        keeper: Is given the frame of each chunk that was right, before anybody sees the chunk; closed with this.
    """

    def __init__(
        self,
        source: ChunkSource,
        quarantine: Quarantine | None = None,
        *,
        threads: int | None = None,
        keeper: FrameKeeper | None = None,
    ) -> None:
        chain = source if isinstance(source, ChainSource) else ChainSource([source], quarantine)
        self.quarantine = chain.quarantine
        self.wrong: deque[WrongBytes] = deque(maxlen=_REMEMBERED)
        """The latest wrong bytes."""
        self._source = chain
        self._keeper = keeper
        self._depth = 2 * (threads or len(os.sched_getaffinity(0)))
        self._threads = ThreadPoolExecutor(self._depth // 2, "castoff-chunks")

    async def fetch(self, index: LayerIndex, numbers: Sequence[int]) -> AsyncGenerator[tuple[int, bytes], None]:
        """Yields (number, bytes) of each chunk once, as soon as it is verified, in any order.

        Close the generator (``contextlib.aclosing``) to stop early. What cannot be had fails after the rest was yielded.

        Args:
            index: The layer's, with locations in packs.
            numbers: Chunks that are not zeros, in any order.

        Raises:
            Unavailable, NotFound: No source gave what is left; the message names each source and its reason.
            Invalid: The index says nonsense of where the chunks are.
        """
        for pack, left in _places(index, numbers).items():
            liars: dict[str, WrongBytes] = {}
            while left:  # each turn ends with fewer left, with one more liar, or by raising
                before, known = len(left), len(liars)
                async with aclosing(self._read(index, pack, dict(left), liars)) as chunks:
                    async for place, chunk in chunks:
                        yield left.pop(place), chunk
                if (len(left), len(liars)) == (before, known):
                    raise failure_of(pack, liars)

    async def close(self) -> None:
        """Closes source and threads."""
        await self._source.close()
        self._threads.shutdown(wait=False)
        if self._keeper is not None:
            await asyncio.to_thread(self._keeper.close)

    async def _read(
        self, index: LayerIndex, pack: Digest, places: dict[ByteRange, int], liars: dict[str, WrongBytes]
    ) -> AsyncGenerator[tuple[ByteRange, bytes], None]:
        """The chunks that were right; raises the source's failure when these are through. Adds to ``liars``."""
        if len(places) == 1:  # somebody waits for it: a task and a queue would be a third of its cost
            async with aclosing(self._source.read(pack, list(places))) as pieces:
                async for piece in pieces:
                    chunk = await self._check(index, places[piece.range], piece, liars)
                    if chunk is not None:
                        yield piece.range, chunk
            return
        results: _Results = asyncio.Queue(self._depth)
        reading = asyncio.create_task(self._read_many(index, pack, places, liars, results))
        try:
            while (result := await results.get()) is not None:
                yield result
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read_many(
        self, index: LayerIndex, pack: Digest, places: dict[ByteRange, int], liars: dict[str, WrongBytes], results: _Results
    ) -> None:
        """Checks pieces while others come in; None after the last result, and then the source's failure is raised."""
        turns = asyncio.Semaphore(self._depth)
        checks: list[asyncio.Task[None]] = []
        failure: Exception | None = None

        async def check(piece: Piece) -> None:
            try:
                chunk = await self._check(index, places[piece.range], piece, liars)
                if chunk is not None:
                    await results.put((piece.range, chunk))  # waits while the caller is behind, and holds up the source
            finally:
                turns.release()

        try:
            try:
                async with aclosing(self._source.read(pack, list(places))) as pieces:
                    async for piece in pieces:
                        await turns.acquire()
                        checks.append(asyncio.create_task(check(piece)))
            except CastoffError as error:
                failure = error
            await asyncio.gather(*checks)
        except Exception as error:
            failure = error
        finally:
            for task in checks:
                task.cancel()
            await asyncio.gather(*checks, return_exceptions=True)
        await results.put(None)
        if failure is not None:
            raise failure

    async def _check(self, index: LayerIndex, number: int, piece: Piece, liars: dict[str, WrongBytes]) -> bytes | None:
        """The chunk; None where its bytes are wrong, for which their source is left alone."""
        check = partial(_verified, index, number, piece, self._keeper)
        try:
            chunk = await asyncio.get_running_loop().run_in_executor(self._threads, check)
        except Invalid as error:
            wrong = WrongBytes(piece.source, number, index.diff_id, error)
            self.wrong.append(wrong)
            liars[piece.source] = wrong
            self.quarantine.put(piece.source, wrong.what)
            return None
        self.quarantine.good(piece.source)
        return chunk


def _places(index: LayerIndex, numbers: Iterable[int]) -> dict[Digest, dict[ByteRange, int]]:
    """Of each pack, its ranges that are wanted, ascending, with the chunk that is there."""
    where = index.locations
    packs: dict[Digest, dict[ByteRange, int]] = {}
    for number in sorted(set(numbers), key=lambda number: int(where.offset[number])):
        if where.kind[number] != LocationKind.PACK:
            raise Internal(f"chunk {number} of layer {index.diff_id} is in no pack, and was asked for")
        start = int(where.offset[number])
        place = ByteRange(start, start + int(where.length[number]))
        places = packs.setdefault(where.blobs[int(where.blob[number])], {})
        if not place or (places and place.start < next(reversed(places)).end):
            raise Invalid(f"the index of layer {index.diff_id} has chunk {number} within another", hint="publish the image again")
        places[place] = number
    return packs


def _verified(index: LayerIndex, number: int, piece: Piece, keeper: FrameKeeper | None) -> bytes:
    """The chunk in a piece. Blocks; its work is done by C libraries that let other threads run."""
    if len(piece.data) != len(piece.range):
        raise Invalid(f"there are {len(piece.data)} bytes and {len(piece.range)} were asked for")
    chunk = unpack_chunk(piece.data, chunk_size(index, number))
    verify_chunk(index, number, chunk)
    if keeper is not None:
        keeper.keep(index, number, piece.data)
    return chunk
