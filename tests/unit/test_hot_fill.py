"""A hot pack's chunks go where they are wanted, and no guest waits for a stream that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from castoff.errors import CastoffError, Invalid, Unavailable
from castoff.hydrate.hot_fill import CLAIM, SILENCE, HotFill
from castoff.hydrate.hot_stream import HotPackStream
from castoff.hydrate.hotpack import decode_head, head_size
from castoff.hydrate.profile import ChunkId
from castoff.image.digest import Digest
from castoff.layers.index import LayerIndex
from hot_packs import IMAGE, Case, make_case, pieces


@dataclass
class Segment:
    """As much of a segment as a hot fill looks at."""

    index: LayerIndex
    coming: set[int] = field(default_factory=set)
    here: dict[int, bytes] = field(default_factory=dict)

    def has(self, number: int) -> bool:
        return number in self.here


@dataclass
class Taker:
    """A scheduler that fills at once, and remembers."""

    given_back: list[int] = field(default_factory=list)
    brought: list[tuple[Segment, int]] = field(default_factory=list)

    def bring(self, segment: Segment, number: int, data: bytes) -> asyncio.Task[None]:
        async def fill() -> None:
            await asyncio.sleep(0)
            segment.here[number] = data
            segment.coming.discard(number)
            self.brought.append((segment, number))

        return asyncio.create_task(fill())

    def give_back(self, segment: Segment, number: int) -> None:
        segment.coming.discard(number)
        self.given_back.append(number)


@pytest.fixture
async def case(tmp_path: Path) -> Case:
    """Two layers, and all their chunks in a hot pack."""
    return await make_case(tmp_path)


@pytest.fixture
def segments(case: Case) -> dict[Digest, Segment]:
    """Nothing is here."""
    return {diff_id: Segment(index) for diff_id, index in case.indexes.items()}


async def fill(
    case: Case, segments: dict[Digest, Segment], source: AsyncGenerator[bytes, None], taker: Taker | None = None
) -> int:
    """Takes a stream to its end."""
    async with HotPackStream(source, image=IMAGE, size=case.pack.size) as stream:
        return await HotFill(stream, segments, taker).run()


def order(case: Case) -> list[tuple[ChunkId, int]]:
    """The pack's chunks, each with the bytes of the blob up to its end."""
    head = head_size(case.data[:64], IMAGE)
    table = decode_head(case.data[:head], case.pack.size)
    found, end = [], head
    for chunk, length in zip(table.chunks, table.lengths, strict=True):
        end += length
        found.append((chunk, end))
    return found


def assert_right(case: Case, segments: dict[Digest, Segment]) -> None:
    """What is here is what should be, and nobody claims anything any more."""
    for diff_id, segment in segments.items():
        assert not segment.coming
        assert all(data == case.bytes_of(ChunkId(diff_id, number)) for number, data in segment.here.items())


async def test_all_of_it_is_brought(case: Case, segments: dict[Digest, Segment]) -> None:
    """Each chunk once, in order."""
    taker = Taker()
    assert await fill(case, segments, pieces(case.data), taker) == case.pack.chunks
    assert [(segment.index.diff_id, number) for segment, number in taker.brought] == [
        (chunk.diff_id, chunk.number) for chunk, _ in order(case)
    ]
    assert not taker.given_back
    assert_right(case, segments)


async def test_the_next_few_are_claimed_and_no_more(case: Case, segments: dict[Digest, Segment]) -> None:
    """A guest waits for what is about to come, and has the rest fetched at once; what it fetched is passed over."""
    chunks = order(case)
    going = asyncio.Event()
    claimed: set[tuple[Digest, int]] = set()
    far = chunks[CLAIM + 4][0]

    async def source() -> AsyncGenerator[bytes, None]:
        yield case.data[: chunks[1][1]]
        await going.wait()
        yield case.data[chunks[1][1] :]

    taker = Taker()
    running = asyncio.create_task(fill(case, segments, source(), taker))
    while len(taker.brought) < 2:
        await asyncio.sleep(0.01)
    claimed = {(diff_id, number) for diff_id, segment in segments.items() for number in segment.coming}
    assert claimed == {(chunk.diff_id, chunk.number) for chunk, _ in chunks[2 : 2 + CLAIM]}
    segments[far.diff_id].here[far.number] = case.bytes_of(far)  # a guest's own fetch
    going.set()
    assert await running == case.pack.chunks - 1
    assert all(segments[chunk.diff_id].has(chunk.number) for chunk, _ in chunks)
    assert_right(case, segments)


async def test_what_others_fetch_is_left_to_them(case: Case, segments: dict[Digest, Segment]) -> None:
    """A chunk that is coming by another way is neither claimed nor given back."""
    chunk = order(case)[3][0]
    segments[chunk.diff_id].coming.add(chunk.number)
    taker = Taker()
    assert await fill(case, segments, pieces(case.data), taker) == case.pack.chunks - 1
    assert segments[chunk.diff_id].coming == {chunk.number}
    assert not taker.given_back


async def test_a_stream_that_stands_still_gives_its_claims_back(case: Case, segments: dict[Digest, Segment]) -> None:
    """Within a second; when it goes on, it brings what nobody fetched meanwhile, and claims again."""
    chunks = order(case)
    going = asyncio.Event()
    stop = chunks[1][1]

    async def source() -> AsyncGenerator[bytes, None]:
        yield case.data[:stop]
        await going.wait()
        async for piece in pieces(case.data[stop:]):
            yield piece

    taker = Taker()
    running = asyncio.create_task(fill(case, segments, source(), taker))
    await asyncio.sleep(2 * SILENCE)
    assert len(taker.given_back) == CLAIM
    assert not any(segment.coming for segment in segments.values())
    going.set()
    assert await running == case.pack.chunks
    assert_right(case, segments)


@pytest.mark.parametrize("fault", ["broken", "wrong"])
async def test_a_stream_that_fails_leaves_the_rest_free(case: Case, segments: dict[Digest, Segment], fault: str) -> None:
    """What it brought is good; what it claimed is given back; the failure is told."""
    chunks = order(case)
    if fault == "broken":
        source = pieces(case.data[: chunks[6][1] + 10], fail=Unavailable("the registry went away"))
    else:
        data = bytearray(case.data)
        data[chunks[10][1] - 8] ^= 1
        source = pieces(bytes(data), (4096,))
    taker = Taker()
    with pytest.raises(Unavailable if fault == "broken" else Invalid):
        await fill(case, segments, source, taker)
    assert taker.given_back
    assert taker.brought
    assert_right(case, segments)


async def test_what_is_mostly_here_is_not_streamed(case: Case, segments: dict[Digest, Segment]) -> None:
    """The few chunks that are missing are cheaper to fetch by themselves."""
    chunks = order(case)
    for chunk, _ in chunks[2:]:
        segments[chunk.diff_id].here[chunk.number] = case.bytes_of(chunk)
    taker = Taker()
    assert await fill(case, segments, pieces(case.data), taker) == 0
    assert not taker.brought
    assert not taker.given_back


async def test_a_fill_that_is_cancelled_claims_nothing(case: Case, segments: dict[Digest, Segment]) -> None:
    """As when the machine goes."""

    async def source() -> AsyncGenerator[bytes, None]:
        yield case.data[: order(case)[1][1]]
        await asyncio.Event().wait()

    taker = Taker()
    running = asyncio.create_task(fill(case, segments, source(), taker))
    while not taker.brought:
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert_right(case, segments)


async def test_another_images_pack_is_refused(case: Case, segments: dict[Digest, Segment]) -> None:
    """Before anything is claimed."""
    taker = Taker()
    with pytest.raises(CastoffError):
        await fill(case, segments, pieces(case.data[:40] + bytes(16) + case.data[56:]), taker)
    assert not taker.given_back
