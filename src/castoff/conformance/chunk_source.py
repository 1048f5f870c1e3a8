"""What every chunk source promises, as one function that an adapter's tests call.

    await check_chunk_source(lambda: MySource(...), packs={digest: b"..."})

It raises AssertionError with what was found. pytest is not needed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager

from castoff.errors import NotFound
from castoff.image.digest import Digest
from castoff.sources.source import ByteRange, ChunkSource, Piece

__all__ = ["check_chunk_source"]

_NOWHERE = Digest.of(b"castoff conformance: no source has this")


async def check_chunk_source(open_source: Callable[[], ChunkSource], packs: Mapping[Digest, bytes]) -> None:
    """Runs all of it.

    Args:
        open_source: Opens the source under test, anew each time.
        packs: Some that it has. One at least should have several MiB.
    """
    async with _open(open_source) as source:
        assert source.name, "the source has no name"
        for pack, data in packs.items():
            await _check_locate(source, pack, data)
            await _check_shapes(source, pack, data)
        await _check_not_here(source)
        await _check_many_at_a_time(source, packs)
        await _check_left_early(source, packs)
        await _check_cancelled(source, packs)
    async with _open(open_source) as source:
        pass
    await source.close()  # a second time


@asynccontextmanager
async def _open(open_source: Callable[[], ChunkSource]) -> AsyncIterator[ChunkSource]:
    source = open_source()
    try:
        yield source
    finally:
        await source.close()


async def _read(source: ChunkSource, pack: Digest, ranges: Sequence[ByteRange]) -> dict[ByteRange, bytes]:
    found: dict[ByteRange, bytes] = {}
    async with aclosing(source.read(pack, ranges)) as pieces:
        async for piece in pieces:
            _check_piece(piece, ranges, found)
            found[piece.range] = bytes(piece.data)
    assert set(found) == set(ranges), f"{len(ranges) - len(found)} of {len(ranges)} ranges did not come"
    return found


def _check_piece(piece: Piece, ranges: Sequence[ByteRange], found: Mapping[ByteRange, bytes]) -> None:
    assert piece.range in ranges, f"{piece.range} was not asked for"
    assert piece.range not in found, f"{piece.range} came twice"
    assert len(piece.data) == len(piece.range), f"{piece.range} has {len(piece.data)} bytes"
    assert piece.source, "a piece is from nobody"


async def _check_locate(source: ChunkSource, pack: Digest, data: bytes) -> None:
    located = await source.locate(pack)
    assert located is not None, f"pack {pack} is not here"
    assert located.size in (None, len(data)), f"pack {pack} has {located.size} bytes, not {len(data)}"
    assert located.source


async def _check_shapes(source: ChunkSource, pack: Digest, data: bytes) -> None:
    """First and last byte, all of it, neighbours, small and large gaps, many small ones, none."""
    size = len(data)
    dice = random.Random(size)
    edges = sorted(dice.sample(range(size + 1), min(60, size + 1) // 2 * 2))
    third = size // 3
    shapes = [
        [],
        [ByteRange(0, 1)],
        [ByteRange(size - 1, size)],
        [ByteRange(0, 1), ByteRange(size - 1, size)],
        [ByteRange(0, size)],
        [ByteRange(0, third), ByteRange(third, 2 * third), ByteRange(2 * third, size)],
        [ByteRange(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True)],
    ]
    for ranges in shapes:
        found = await _read(source, pack, ranges)
        for one, got in found.items():
            assert got == data[one.start : one.end], f"{one} of pack {pack} has wrong bytes"


async def _check_not_here(source: ChunkSource) -> None:
    assert await source.locate(_NOWHERE) is None, "a pack that is nowhere is here"
    try:
        await _read(source, _NOWHERE, [ByteRange(0, 1)])
    except NotFound as error:
        assert error.what, "an error without a word"
    else:
        raise AssertionError("a pack that is nowhere was read")


async def _check_many_at_a_time(source: ChunkSource, packs: Mapping[Digest, bytes]) -> None:
    async def one(pack: Digest, data: bytes, start: int) -> None:
        place = ByteRange(start, min(start + 70_000, len(data)))
        assert (await _read(source, pack, [place]))[place] == data[place.start : place.end], f"{place} has wrong bytes"

    jobs = [one(pack, data, start) for pack, data in packs.items() for start in range(0, len(data), max(1, len(data) // 20))]
    await asyncio.gather(*jobs)


async def _check_left_early(source: ChunkSource, packs: Mapping[Digest, bytes]) -> None:
    """A read that is left after its first piece leaves nothing behind, and the next one works."""
    pack, data = max(packs.items(), key=lambda item: len(item[1]))
    half = len(data) // 2
    ranges = [ByteRange(0, half), ByteRange(half, len(data))]
    async with aclosing(source.read(pack, ranges)) as pieces:
        async for _ in pieces:
            break
    await _read(source, pack, ranges)


async def _check_cancelled(source: ChunkSource, packs: Mapping[Digest, bytes]) -> None:
    """One of two that want the same is cancelled; the other has it, and whoever comes after them."""
    pack, data = max(packs.items(), key=lambda item: len(item[1]))
    whole = [ByteRange(0, len(data))]
    doomed = asyncio.create_task(_read(source, pack, whole))
    other = asyncio.create_task(_read(source, pack, whole))
    await asyncio.sleep(0.001)
    doomed.cancel()
    await asyncio.wait([doomed])
    assert (await other)[whole[0]] == data, "a cancelled reader took the other's bytes along"
    await _read(source, pack, whole)
