"""Hot packs: what is written comes out verified and in order, in whatever pieces; anything else is refused before it is used."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest

from castoff.errors import CastoffError, Invalid, Unavailable
from castoff.hydrate import hot_stream
from castoff.hydrate.hot_stream import HotPackStream
from castoff.hydrate.hotpack import HEAD_SIZE, decode_head, head_size, write_hot_pack
from castoff.hydrate.profile import ChunkId
from castoff.image.digest import Digest
from castoff.layers.toc import CHUNK
from hot_packs import IMAGE, Case, make_case, pieces


@pytest.fixture
async def case(tmp_path: Path) -> Case:
    """Two layers, and all their chunks in a hot pack."""
    return await make_case(tmp_path)


async def taken(case: Case, data: bytes, sizes: Sequence[int] = (65536,), size: int | None = None) -> list[tuple[ChunkId, bytes]]:
    """All chunks of a stream of ``data``."""
    async with HotPackStream(pieces(data, sizes), image=IMAGE, size=len(data) if size is None else size) as stream:
        return [item async for item in stream.chunks(case.indexes)]


def expected(case: Case) -> list[ChunkId]:
    """What the pack should hold: no zeros, nothing of a layer that the image has not."""
    return [one for one in case.profile.chunks if one.diff_id in case.layers and not case.indexes[one.diff_id].zero[one.number]]


async def test_the_profiles_chunks_come_in_its_order(case: Case) -> None:
    """Each with the segment's bytes; zeros are not sent."""
    found = await taken(case, case.data)
    assert [chunk for chunk, _ in found] == expected(case)
    assert len(found) == case.pack.chunks
    assert all(data == case.bytes_of(chunk) for chunk, data in found)
    assert any(index.zero.any() for index in case.indexes.values())


@pytest.mark.parametrize("sizes", [(1 << 30,), (1000, 1, 300_000), (777,)])
async def test_pieces_do_not_matter(case: Case, sizes: tuple[int, ...]) -> None:
    """A connection may give any."""
    assert await taken(case, case.data, sizes) == await taken(case, case.data)


async def test_chunks_that_are_here_no_longer_are_left_out(case: Case, tmp_path: Path) -> None:
    """Evicted, so zeros stand there: the others come as ever, and nothing of the file is left over."""
    evicted = expected(case)[3]
    segment = case.layers[evicted.diff_id][0]
    with segment.open("r+b") as file:
        file.seek(evicted.number * CHUNK)
        file.write(bytes(len(case.bytes_of(evicted))))
    pack = write_hot_pack(case.profile, case.layers, tmp_path / "fewer")
    assert pack is not None
    data = (tmp_path / "fewer").read_bytes()
    assert (Digest.of(data), len(data)) == (pack.digest, pack.size)
    found = await taken(case, data)
    assert [chunk for chunk, _ in found] == [chunk for chunk in expected(case) if chunk != evicted]
    assert all(data == case.bytes_of(chunk) for chunk, data in found)


async def test_of_nothing_there_is_no_file(case: Case, tmp_path: Path) -> None:
    """An image without layers here."""
    assert write_hot_pack(case.profile, {}, tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


async def test_the_blob_is_the_same_each_time(case: Case, tmp_path: Path) -> None:
    """Same profile, same chunks, same bytes; the digest is theirs."""
    again = write_hot_pack(case.profile, case.layers, tmp_path / "again")
    assert again == case.pack
    assert Digest.of(case.data) == case.pack.digest
    assert len(case.data) == case.pack.size


async def test_the_table_comes_first(case: Case) -> None:
    """Whoever plans around the hot pack knows what it will bring when its head is here."""

    async def stuck() -> AsyncGenerator[bytes, None]:
        yield case.data[: HEAD_SIZE + 64 + 12 * case.pack.chunks]
        await asyncio.Event().wait()

    async with HotPackStream(stuck(), image=IMAGE, size=case.pack.size) as stream:
        table = await asyncio.wait_for(stream.table(), 5)
    assert list(table.chunks) == expected(case)
    assert HEAD_SIZE + 64 + 12 * case.pack.chunks + sum(table.lengths) == case.pack.size


async def test_a_chunk_comes_when_its_last_byte_did(case: Case) -> None:
    """No chunk waits for the bytes of the next."""
    table = decode_head(case.data[: head_size(case.data[:HEAD_SIZE], IMAGE)], case.pack.size)
    first = case.pack.size - sum(table.lengths) + table.lengths[0]

    async def stuck() -> AsyncGenerator[bytes, None]:
        yield case.data[:first]
        await asyncio.Event().wait()

    async with HotPackStream(stuck(), image=IMAGE, size=case.pack.size) as stream:
        chunk, data = await asyncio.wait_for(anext(stream.chunks(case.indexes)), 5)
    assert (chunk, data) == (table.chunks[0], case.bytes_of(chunk))


async def test_chunks_that_are_not_wanted_are_passed_over(case: Case) -> None:
    """Where somebody else has brought them."""
    unwanted = set(expected(case)[::2])
    async with HotPackStream(pieces(case.data), image=IMAGE, size=case.pack.size) as stream:
        found = [chunk async for chunk, _ in stream.chunks(case.indexes, lambda chunk: chunk not in unwanted)]
    assert found == expected(case)[1::2]


async def test_chunks_of_other_layers_are_passed_over(case: Case) -> None:
    """What an index is not here for cannot be verified."""
    only = dict([next(iter(case.indexes.items()))])
    async with HotPackStream(pieces(case.data), image=IMAGE, size=case.pack.size) as stream:
        found = [chunk async for chunk, _ in stream.chunks(only)]
    assert found == [chunk for chunk in expected(case) if chunk.diff_id in only]


async def test_any_changed_byte_is_seen(case: Case) -> None:
    """A bit flipped anywhere: refused, or what is yielded is right all the same (a frame's own header has bits to spare)."""
    picks = random.Random(5)
    head = head_size(case.data[:HEAD_SIZE], IMAGE)
    places = [*range(0, head, 7), *(picks.randrange(head, len(case.data)) for _ in range(60))]
    refused = 0
    for place in places:
        data = bytearray(case.data)
        data[place] ^= 1 << picks.randrange(8)
        try:
            found = await taken(case, bytes(data), (1 << 30,))
        except CastoffError:
            refused += 1
            continue
        assert all(data == case.bytes_of(chunk) for chunk, data in found), place
    assert refused > len(places) * 3 / 4


async def test_frames_that_changed_places_are_seen(case: Case) -> None:
    """A chunk is verified as the one that the table says it is."""
    head = head_size(case.data[:HEAD_SIZE], IMAGE)
    table = decode_head(case.data[:head], case.pack.size)
    rows = head - 12 * len(table.chunks)
    data = bytearray(case.data)
    one, two = (next(at for at, size in enumerate(table.lengths) if table.chunks[at].number == number) for number in (0, 1))
    for at, other in ((one, two), (two, one)):
        data[rows + 12 * at : rows + 12 * at + 8] = case.data[rows + 12 * other : rows + 12 * other + 8]
    with pytest.raises(Invalid):
        await taken(case, bytes(data))


async def test_a_transfer_that_ends_early(case: Case) -> None:
    """The chunks that came whole are given, then the failure."""
    cut = case.data[: len(case.data) // 2]
    for failure in (None, Unavailable("the registry went away")):
        found = []
        async with HotPackStream(pieces(cut, fail=failure), image=IMAGE, size=case.pack.size) as stream:
            with pytest.raises(Unavailable, match="went away" if failure else "ended after"):
                async for chunk, _ in stream.chunks(case.indexes):
                    found.append(chunk)
        assert found == expected(case)[: len(found)]
        assert found


async def test_memory_is_bounded(case: Case) -> None:
    """A sender that is faster than the taker waits."""
    sent = 0

    async def endless() -> AsyncGenerator[bytes, None]:
        nonlocal sent
        while True:
            sent += 1 << 20
            yield bytes(1 << 20)
            await asyncio.sleep(0)

    async with HotPackStream(endless(), image=IMAGE, size=1 << 40) as stream:
        await asyncio.sleep(0.1)
        assert hot_stream.AHEAD <= sent <= hot_stream.AHEAD + (2 << 20)
        with pytest.raises(Invalid):
            await stream.table()


async def test_closing_ends_the_transfer(case: Case) -> None:
    """Its connection too, also where nothing was taken."""
    closed = asyncio.Event()

    async def source() -> AsyncGenerator[bytes, None]:
        try:
            yield case.data[:10]
            await asyncio.Event().wait()
        finally:
            closed.set()

    stream = HotPackStream(source(), image=IMAGE, size=case.pack.size)
    await asyncio.sleep(0)
    await stream.close()
    await stream.close()
    assert closed.is_set()


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"\0\0\0\0"),
        (8, b"castoffP"),
        (16, struct.pack("<I", 2)),
        (20, struct.pack("<I", 4096)),
        (24, struct.pack("<I", 0xFFFFFFFF)),
        (28, struct.pack("<I", 0xFFFFFFFF)),
        (4, struct.pack("<I", 0)),
        (32, bytes(32)),
    ],
)
async def test_heads_are_checked(case: Case, at: int, value: bytes) -> None:
    """Another format, version, chunk size or image, or counts that cannot be: refused before memory is taken for them."""
    data = case.data[:at] + value + case.data[at + len(value) :]
    with pytest.raises(Invalid):
        head_size(data[:HEAD_SIZE], IMAGE)


@pytest.mark.parametrize("size", [0, 10, HEAD_SIZE, HEAD_SIZE + 1])
async def test_a_blob_of_another_size_is_refused(case: Case, size: int) -> None:
    """The signed size binds."""
    with pytest.raises(Invalid):
        await taken(case, case.data, size=size)


async def test_what_is_not_here_is_left_out(case: Case, tmp_path: Path) -> None:
    """A hole in a segment is no chunk; a layer that is gone has none; with nothing left there is no pack."""
    diff_id = next(iter(case.layers))
    segment, index = case.layers[diff_id]
    data = bytearray(segment.read_bytes())
    data[CHUNK : 2 * CHUNK] = bytes(CHUNK)
    holed = tmp_path / "holed"
    holed.write_bytes(data)
    layers = {diff_id: (holed, index), Digest("8" * 64): (tmp_path / "gone", index)}
    pack = write_hot_pack(case.profile, layers, tmp_path / "part")
    assert pack is not None
    found = await taken(case, (tmp_path / "part").read_bytes())
    assert [chunk for chunk, _ in found] == [chunk for chunk in expected(case) if chunk.diff_id == diff_id and chunk.number != 1]
    assert write_hot_pack(case.profile, {}, tmp_path / "none") is None
    assert not (tmp_path / "none").exists()
