"""Chunks are verified whoever sends them, and come from whoever has them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from castoff.errors import Internal, Invalid, NotFound, Unavailable
from castoff.fakes.chunk_source import FakeChunkSource
from castoff.image.digest import Digest
from castoff.layers.locations import Locations
from castoff.sources.chain import ChainSource
from castoff.sources.chunks import ChunkReader
from castoff.sources.quarantine import Quarantine
from castoff.sources.source import ByteRange, Piece
from packed_layer import PackedLayer, packed_layer, random_files


@pytest.fixture
async def layer(tmp_path: Path) -> PackedLayer:
    return await packed_layer(tmp_path / "layer", random_files(3))


async def fetch(reader: ChunkReader, layer: PackedLayer, numbers: list[int] | None = None) -> dict[int, bytes]:
    """What comes, checked against the segment."""
    found: dict[int, bytes] = {}
    async with aclosing(reader.fetch(layer.index, layer.packed if numbers is None else numbers)) as chunks:
        async for number, chunk in chunks:
            assert number not in found
            assert chunk == layer.chunk(number)
            found[number] = chunk
    return found


@pytest.fixture
async def source(layer: PackedLayer) -> FakeChunkSource:
    return FakeChunkSource({layer.digest: layer.pack})


@pytest.fixture
async def reader(source: FakeChunkSource) -> AsyncIterator[ChunkReader]:
    reader = ChunkReader(source)
    yield reader
    await reader.close()


async def test_all_chunks_come_once(reader: ChunkReader, layer: PackedLayer, source: FakeChunkSource) -> None:
    """In whatever order they are asked for, and however often in one call."""
    assert sorted(await fetch(reader, layer, [*reversed(layer.packed), *layer.packed])) == layer.packed
    assert len(source.reads) == 1
    assert await fetch(reader, layer, []) == {}
    last = layer.packed[-1]
    assert await fetch(reader, layer, [last]) == {last: layer.chunk(last)}


async def test_a_liar_is_named_and_left_alone_and_another_is_asked(layer: PackedLayer) -> None:
    """Nothing wrong comes through; the liar is asked again when its time is over."""
    now = 0.0
    liar = FakeChunkSource({layer.digest: layer.pack}, name="liar", lies=True)
    honest = FakeChunkSource({layer.digest: layer.pack}, name="honest")
    reader = ChunkReader(ChainSource([liar, honest], Quarantine(64.0, clock=lambda: now)))
    assert sorted(await fetch(reader, layer)) == layer.packed
    assert {wrong.source for wrong in reader.wrong} == {"liar"}
    assert sorted(wrong.number for wrong in reader.wrong) == layer.packed
    assert "liar sent wrong bytes for chunk" in reader.quarantine.names()["liar"]
    await fetch(reader, layer)
    assert (len(liar.reads), len(honest.reads)) == (1, 2)
    now, liar.lies = 0.3, False
    await fetch(reader, layer)
    assert (len(liar.reads), len(honest.reads)) == (2, 2)
    await reader.close()
    assert liar.closed
    assert honest.closed


async def test_a_liar_alone_gives_nothing(reader: ChunkReader, layer: PackedLayer, source: FakeChunkSource) -> None:
    """The error says who, and what."""
    source.lies = True
    with pytest.raises(Unavailable, match=r"cannot be read from fake: fake sent wrong bytes for chunk \d+ of layer sha256:"):
        await fetch(reader, layer)


async def test_what_can_be_had_comes_before_the_failure(layer: PackedLayer) -> None:
    """Two that break after a few pieces each give what they can; the error has both their reasons."""
    first = FakeChunkSource({layer.digest: layer.pack}, name="first", fails=Unavailable("a reset"), good=3)
    second = FakeChunkSource({layer.digest: layer.pack}, name="second", fails=Unavailable("a stall"), good=4)
    reader = ChunkReader(ChainSource([first, second]))
    seen = []
    with pytest.raises(Unavailable, match="first: a reset; second: a stall"):
        async for number, chunk in reader.fetch(layer.index, layer.packed):
            assert chunk == layer.chunk(number)
            seen.append(number)
    assert len(seen) == 7
    await reader.close()


async def test_a_pack_that_is_nowhere_is_not_found(layer: PackedLayer) -> None:
    """With one source, and with two."""
    for count in (1, 2):
        reader = ChunkReader(ChainSource([FakeChunkSource({}, name=f"empty {number}") for number in range(count)]))
        with pytest.raises(NotFound, match="empty 0"):
            await fetch(reader, layer)
        await reader.close()


async def test_an_index_that_says_nonsense_is_refused(reader: ChunkReader, layer: PackedLayer) -> None:
    """Chunks within each other, empty ones; asking for what is in no pack is our mistake."""
    where = layer.index.locations
    first, second = layer.packed[:2]
    for offset, length in ((int(where.offset[first]) + 1, 10), (int(where.offset[second]), 0)):
        changed = replace(where, offset=where.offset.copy(), length=where.length.copy())
        changed.offset[second], changed.length[second] = offset, length
        with pytest.raises(Invalid, match="within another"):
            await fetch(reader, replace(layer, index=replace(layer.index, locations=changed)))
    zero = int(np.flatnonzero(layer.index.zero)[0])
    with pytest.raises(Internal, match="is in no pack"):
        await fetch(reader, layer, [zero])
    nowhere = replace(layer.index, locations=Locations.local(len(layer.index.zero)))
    with pytest.raises(Internal, match="is in no pack"):
        await fetch(reader, replace(layer, index=nowhere), [0])


@pytest.mark.parametrize("damage", ["short", "long", "other", "empty", "bomb"])
async def test_every_kind_of_wrong_bytes_is_seen(layer: PackedLayer, damage: str) -> None:
    """Frames cut short, with something behind, of another chunk, no frame, and one that would unpack to a GiB."""
    import zstandard

    number = layer.packed[0]
    start, length = int(layer.index.locations.offset[number]), int(layer.index.locations.length[number])
    frame = layer.pack[start : start + length]
    wrong = {
        "short": frame[:-1] + b"\0",
        "long": zstandard.ZstdCompressor().compress(layer.chunk(number)[:-4096]).ljust(length, b"\0")[:length],
        "other": zstandard.ZstdCompressor().compress(layer.chunk(layer.packed[1]))[:length].ljust(length, b"\0"),
        "empty": bytes(length),
        "bomb": zstandard.ZstdCompressor().compress(bytes(1 << 30)).ljust(length, b"\0")[:length],
    }[damage]
    pack = layer.pack[:start] + wrong + layer.pack[start + length :]
    reader = ChunkReader(FakeChunkSource({layer.digest: pack}))
    with pytest.raises(Unavailable, match="sent wrong bytes"):
        await fetch(reader, layer, [number])
    await reader.close()


async def test_a_fetch_that_is_left_ends_what_it_began(layer: PackedLayer, source: FakeChunkSource) -> None:
    """After its first chunk; and when it is cancelled."""
    reader = ChunkReader(source)
    async with aclosing(reader.fetch(layer.index, layer.packed)) as chunks:
        async for _ in chunks:
            break
    assert source.under_way == 0
    source.delay = 60
    task = asyncio.create_task(fetch(reader, layer))
    await asyncio.sleep(0.01)
    assert source.under_way == 1
    task.cancel()
    await asyncio.wait([task])
    assert source.under_way == 0
    await reader.close()


async def test_a_slow_taker_is_not_run_over(layer: PackedLayer, source: FakeChunkSource) -> None:
    """Chunks are read ahead of whoever takes them, and only so many."""
    reader = ChunkReader(source, threads=2)
    async with aclosing(reader.fetch(layer.index, layer.packed)) as chunks:
        await anext(chunks)
        await asyncio.sleep(0.1)
        assert source.given <= 1 + 4 + 4 + 1  # taken, waiting to be taken, being checked, waiting for that
        assert len(layer.packed) > source.given
        await asyncio.sleep(0.1)
        assert len([number async for number, _ in chunks]) == len(layer.packed) - 1
    await reader.close()


async def test_our_own_mistake_is_raised(layer: PackedLayer) -> None:
    """Neither swallowed, nor waited for, nor anybody's fault but ours."""

    class Wrong(FakeChunkSource):
        async def read(self, pack: Digest, ranges: Sequence[ByteRange]) -> AsyncGenerator[Piece, None]:
            yield Piece(ByteRange(0, 1), b"x", self.name)
            yield Piece(ByteRange(1, 2), b"x", self.name)

    for wanted in (layer.packed, layer.packed[:1]):
        reader = ChunkReader(Wrong({}))
        with pytest.raises(KeyError):
            await fetch(reader, layer, wanted)
        await reader.close()


def test_quarantine_grows_and_ends() -> None:
    """Twice as long each time, up to the longest; sixteen right chunks, and all is forgotten."""
    now = 0.0
    quarantine = Quarantine(64.0, clock=lambda: now)
    for seconds in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 64):
        quarantine.put("a", "it lied")
        quarantine.put("a", "what was under way")
        now += seconds - 0.1
        assert quarantine.why("a") == "it lied; left alone for 0.1 s more"
        assert quarantine.why("b") is None
        now += 0.2
        assert quarantine.why("a") is None
    for _ in range(16):
        quarantine.good("a")
    quarantine.put("a", "it lied again")
    now += 0.3
    assert quarantine.names() == {}


async def test_the_reader_is_of_one_pack_or_many(tmp_path: Path) -> None:
    """An index whose chunks lie in two packs."""
    layer = await packed_layer(tmp_path / "layer", random_files(4, chunks=6))
    where = layer.index.locations
    second = b"\0" * 100 + layer.pack
    blob, offset = where.blob.copy(), where.offset.copy()
    for number in layer.packed[::2]:
        blob[number], offset[number] = 1, where.offset[number] + 100
    moved = replace(where, blob=blob, offset=offset, blobs=(layer.digest, Digest.of(second)))
    both = replace(layer, index=replace(layer.index, locations=moved))
    reader = ChunkReader(FakeChunkSource({layer.digest: layer.pack, Digest.of(second): second}))
    assert sorted(await fetch(reader, both)) == layer.packed
    await reader.close()
