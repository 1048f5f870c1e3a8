"""Chain, race, single-flight and limit are sources themselves, and each does its one thing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import pytest

from castoff.conformance.chunk_source import check_chunk_source
from castoff.errors import CastoffError, NotFound, Unavailable
from castoff.fakes.chunk_source import FakeChunkSource
from castoff.image.digest import Digest
from castoff.sources.chain import ChainSource
from castoff.sources.limit import LimitedSource
from castoff.sources.merge import merged
from castoff.sources.quarantine import Quarantine
from castoff.sources.race import RaceSource
from castoff.sources.ranges import Cutter, coalesce
from castoff.sources.single_flight import SingleFlightSource
from castoff.sources.source import ByteRange, ChunkSource

DATA = random.Random(1).randbytes(3_000_000)
PACK = Digest.of(DATA)
SMALL = Digest.of(DATA[:1000])
PACKS = {PACK: DATA, SMALL: DATA[:1000]}
PARTS = [ByteRange(start, start + 50_000) for start in range(0, 1_000_000, 100_000)]


def fake(name: str = "fake", **options: object) -> FakeChunkSource:
    return FakeChunkSource(PACKS, name=name, **options)  # type: ignore[arg-type]


async def read(source: ChunkSource, ranges: Sequence[ByteRange] = PARTS) -> list[str]:
    """Reads, checks, and tells who gave each range, in the order of the ranges."""
    found = {}
    async with aclosing(source.read(PACK, ranges)) as pieces:
        async for piece in pieces:
            assert piece.range not in found
            assert piece.data == DATA[piece.range.start : piece.range.end]
            found[piece.range] = piece.source
    assert sorted(found) == sorted(ranges)
    return [found[one] for one in sorted(found)]


@pytest.mark.parametrize(
    "make",
    [
        fake,
        lambda: ChainSource([fake()]),
        lambda: ChainSource([FakeChunkSource({}, name="empty"), fake()]),
        lambda: RaceSource([fake("a"), fake("b", delay=0.002), FakeChunkSource({}, name="empty")]),
        lambda: RaceSource([fake("a", delay=0.01), fake("b")], after=0.002),
        lambda: SingleFlightSource(fake(delay=0.001)),
        lambda: LimitedSource(fake(), 0),
        lambda: LimitedSource(fake(), 1 << 30),
        lambda: SingleFlightSource(LimitedSource(RaceSource([ChainSource([fake("a")]), fake("b")]), 1 << 30)),
    ],
)
async def test_all_are_sources(make: Callable[[], ChunkSource]) -> None:
    """Of themselves and of each other."""
    await check_chunk_source(make, PACKS)


async def test_a_chain_asks_the_next_for_the_rest() -> None:
    """And for nothing that it has already."""
    first, second = fake("first", fails=Unavailable("a reset"), good=3), fake("second")
    assert await read(ChainSource([first, second])) == ["first"] * 3 + ["second"] * 7
    assert second.reads == [(PACK, tuple(PARTS[3:]))]


async def test_who_fails_where_another_does_not_is_passed_over_for_a_while() -> None:
    """So a dead peer costs its timeout once; where nobody else gives, nobody is passed over."""
    now = 0.0
    broken, good = fake("broken", fails=Unavailable("a reset")), fake("good")
    chain = ChainSource([broken, good], Quarantine(64.0, clock=lambda: now))
    await read(chain)
    await read(chain)
    assert (len(broken.reads), len(good.reads)) == (1, 2)
    now = 0.3
    good.fails = Unavailable("a stall")
    for _ in range(2):
        with pytest.raises(Unavailable, match="broken: a reset; good: a stall"):
            await read(chain)
    assert (len(broken.reads), len(good.reads)) == (3, 4)


async def test_a_chain_locates_past_a_failure() -> None:
    """Not here is None, also after one that is not here; broken is an error when nobody has it."""
    broken = fake("broken", fails=Unavailable("down"))
    located = await ChainSource([FakeChunkSource({}), broken, fake("c")]).locate(PACK)
    assert located is not None
    assert located.source == "c"
    assert await ChainSource([FakeChunkSource({})]).locate(PACK) is None
    with pytest.raises(Unavailable, match="down"):
        await ChainSource([broken, FakeChunkSource({})]).locate(PACK)
    with pytest.raises(Unavailable, match="there is no source"):
        await read(ChainSource([]))


async def test_the_fastest_wins_and_the_others_are_stopped() -> None:
    """Range by range: who stalls midway loses what it has not given."""
    slow, fast = fake("slow", delay=30), fake("fast", delay=0.01)
    assert await read(RaceSource([slow, fast])) == ["fast"] * 10
    assert (slow.under_way, fast.under_way) == (0, 0)
    broken = fake("broken", fails=Unavailable("a reset"), good=4)
    assert await read(RaceSource([broken, fast])) == ["broken"] * 4 + ["fast"] * 6


async def test_a_second_runner_begins_when_the_first_is_slow_or_out() -> None:
    """Not before; at once where the first failed; and it is asked for what is left alone."""
    first, second = fake("first"), fake("second")
    assert await read(RaceSource([first, second], after=5)) == ["first"] * 10
    assert second.reads == []
    slow = fake("slow", delay=30)
    assert await read(RaceSource([slow, second], after=0.02)) == ["second"] * 10
    broken = fake("broken", fails=Unavailable("a reset"), good=4)
    async with asyncio.timeout(5):
        assert await read(RaceSource([broken, second], after=30)) == ["broken"] * 4 + ["second"] * 6
    assert second.reads[-1] == (PACK, tuple(PARTS[4:]))


async def test_a_lost_race_has_all_reasons() -> None:
    """Each one's name; not found only where all say so; who rests is named too."""
    with pytest.raises(Unavailable, match="a: down; b: b does not have"):
        await read(RaceSource([fake("a", fails=Unavailable("down")), FakeChunkSource({}, name="b")]))
    with pytest.raises(NotFound):
        await read(RaceSource([FakeChunkSource({}, name="a"), FakeChunkSource({}, name="b")]))
    quarantine = Quarantine(clock=lambda: 0.0)
    quarantine.put("a", "it lied")
    with pytest.raises(Unavailable, match="a: it lied; left alone"):
        await read(RaceSource([fake("a")], quarantine=quarantine))
    assert await read(RaceSource([fake("a"), fake("b")], quarantine=quarantine)) == ["b"] * 10
    with pytest.raises(Unavailable, match="down"):
        await RaceSource([fake("a", fails=Unavailable("down")), FakeChunkSource({}, name="b")]).locate(PACK)


async def test_many_that_want_the_same_cause_one_read() -> None:
    """Also where they want it in part; what was read once is read anew later."""
    below = fake(delay=0.02)
    source = SingleFlightSource(below)
    await asyncio.gather(*(read(source, PARTS[: 2 + number]) for number in range(8)))
    asked = [one for _, ranges in below.reads for one in ranges]
    assert sorted(asked) == PARTS[:9]
    await read(source, PARTS[:1])
    assert len(below.reads) == 9


async def test_the_first_caller_may_go() -> None:
    """The read goes on for those who wait; when the last one goes, it ends, and the next begins anew."""
    below = fake(delay=0.05)
    source = SingleFlightSource(below)
    first, second = asyncio.create_task(read(source)), asyncio.create_task(read(source, PARTS[:2]))
    await asyncio.sleep(0.01)
    first.cancel()
    assert await second == ["fake"] * 2
    assert len(below.reads) == 1
    below.delay = 30
    last = asyncio.create_task(read(source))
    await asyncio.sleep(0.01)
    last.cancel()
    await asyncio.wait([last])
    below.delay = 0
    assert await read(source) == ["fake"] * 10
    assert below.under_way == 0


async def test_a_failed_flight_fails_for_all_and_for_nobody_after() -> None:
    """What came before the failure is good; the next read asks anew."""
    below = fake(delay=0.01, fails=Unavailable("a reset"), good=3)
    source = SingleFlightSource(below)
    failed = await asyncio.gather(*(read(source) for _ in range(3)), return_exceptions=True)
    assert [str(one) for one in failed] == ["a reset"] * 3
    seen = []
    with pytest.raises(Unavailable):
        async for piece in source.read(PACK, PARTS):
            seen.append(piece.range)  # noqa: PERF401 - what came before the failure is what counts
    assert sorted(seen) == PARTS[:3]
    below.fails = None
    assert await read(source) == ["fake"] * 10


async def test_closing_ends_what_is_under_way() -> None:
    """Who waits is told."""
    source = SingleFlightSource(fake(delay=30))
    waiting = asyncio.create_task(read(source))
    await asyncio.sleep(0.01)
    await source.close()
    with pytest.raises(CastoffError, match="ended before"):
        await waiting


async def test_a_limit_is_kept_by_all_reads_together() -> None:
    """Two reads of 500 kB each at 2 MB/s take a quarter of a second at least (the last part has no time to wait for)."""
    source = LimitedSource(fake(), 2_000_000)
    clock = asyncio.get_running_loop().time
    began = clock()
    await asyncio.gather(read(source), read(source))
    took = clock() - began
    assert 0.24 <= took < 2
    source.rate = 0
    began = clock()
    await read(source)
    assert clock() - began < 0.3


async def test_a_limit_below_a_range_lets_it_through_alone() -> None:
    """And its parts are no larger than a quarter of a second."""
    below = fake()
    await read(LimitedSource(below, 1_000_000))
    assert [len(ranges) for _, ranges in below.reads] == [5, 5]
    below = fake()
    source = LimitedSource(below, 1_000)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await read(source)
    assert [len(ranges) for _, ranges in below.reads] == [1]


async def test_merged_jobs_end_with_the_first_failure() -> None:
    """At most so many at a time; what came before it is yielded; the others are cancelled and have ended."""
    running = most = 0
    ended: list[int] = []

    async def job(number: int) -> AsyncGenerator[int, None]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(0.001 * number)
            if number == 5:
                raise ValueError("five")
            yield number
            if number > 5:
                await asyncio.sleep(30)
        finally:
            running -= 1
            ended.append(number)

    seen = []
    with pytest.raises(ValueError, match="five"):
        async for number in merged([job(number) for number in range(9)], at_once=3):
            seen.append(number)  # noqa: PERF401 - as above
    assert set(range(5)) <= set(seen)
    assert most == 3
    assert running == 0
    assert [number async for number in merged([job(1)], at_once=5)] == [1]
    nothing: list[AsyncGenerator[int, None]] = []
    assert [number async for number in merged(nothing, at_once=5)] == []


def test_neighbours_are_grouped() -> None:
    """Adjacent, over a small hole, not over a large one, not over the largest request; one may be larger than that."""
    a, b, c = ByteRange(0, 10), ByteRange(10, 20), ByteRange(30, 40)
    assert coalesce([a, b, c], hole=10) == [[a, b, c]]
    assert coalesce([a, b, c], hole=9) == [[a, b], [c]]
    assert coalesce([a, b, c], hole=10, most=20) == [[a, b], [c]]
    assert coalesce([a, b, c], hole=10, most=5) == [[a], [b], [c]]
    assert coalesce([]) == []


def test_streams_are_cut() -> None:
    """In pieces of any size, from any beginning; a property, tried by chance."""
    dice = random.Random(3)
    for _ in range(300):
        edges = sorted(dice.sample(range(200), 10))
        ranges = [ByteRange(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True)]
        begin = dice.randint(0, ranges[0].start)
        cutter, found, at = Cutter(ranges, begin), [], begin
        while not cutter.done:
            size = dice.randint(1, 60)
            found += cutter.feed(DATA[at : at + size])
            at += size
        assert found == [(one, DATA[one.start : one.end]) for one in ranges]
