"""Whatever sources are composed of: what comes is right, and it comes as long as one that is asked is honest."""

from __future__ import annotations

import asyncio
import random
import tempfile
from contextlib import aclosing
from functools import cache
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from castoff.errors import CastoffError, NotFound, Unavailable
from castoff.fakes.chunk_source import FakeChunkSource
from castoff.sources.chain import ChainSource
from castoff.sources.chunks import ChunkReader
from castoff.sources.limit import LimitedSource
from castoff.sources.quarantine import Quarantine
from castoff.sources.race import RaceSource
from castoff.sources.ranges import Cutter, coalesce
from castoff.sources.single_flight import SingleFlightSource
from castoff.sources.source import ByteRange, ChunkSource
from packed_layer import PackedLayer, packed_layer, random_files


@cache
def layer() -> PackedLayer:
    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(packed_layer(Path(directory) / "layer", random_files(21, chunks=8)))


def leaf(dice: random.Random, name: str, *, honest: bool) -> FakeChunkSource:
    """A source that is honest, or has one of the ways not to be."""
    packs = {layer().digest: layer().pack}
    delay = dice.choice([0.0, 0.0, 0.002])
    if honest:
        return FakeChunkSource(packs, name=name, delay=delay)
    kind = dice.choice(["lies", "fails", "empty"])
    if kind == "lies":
        return FakeChunkSource(packs, name=name, delay=delay, lies=True)
    if kind == "fails":
        error = dice.choice([Unavailable("a reset"), NotFound("gone")])
        return FakeChunkSource(packs, name=name, delay=delay, fails=error, good=dice.randrange(8))
    return FakeChunkSource({}, name=name, delay=delay)


def tree(dice: random.Random, quarantine: Quarantine, names: list[str], *, honest: bool, depth: int = 2) -> ChunkSource:
    """Combinators over leaves, of which at least one is honest if ``honest``."""
    kind = dice.choice(["leaf", "chain", "race", "flight", "limit"]) if depth else "leaf"
    if kind == "leaf":
        names.append(f"source {len(names)}")
        return leaf(dice, names[-1], honest=honest)
    if kind == "flight":
        return SingleFlightSource(tree(dice, quarantine, names, honest=honest, depth=depth - 1))
    if kind == "limit":
        return LimitedSource(tree(dice, quarantine, names, honest=honest, depth=depth - 1), dice.choice([0, 1 << 30]))
    count = dice.randint(1, 3)
    good = dice.randrange(count) if honest else -1
    parts = [tree(dice, quarantine, names, honest=number == good, depth=depth - 1) for number in range(count)]
    if kind == "chain":
        return ChainSource(parts, quarantine)
    return RaceSource(parts, after=dice.choice([0.0, 0.001]), quarantine=quarantine)


async def read(seed: int, *, honest: bool) -> None:
    """Two tasks read by turns until all is here, or for so many tries."""
    dice = random.Random(seed)
    quarantine = Quarantine(0.05)
    reader = ChunkReader(tree(dice, quarantine, [], honest=honest), quarantine)

    async def task(numbers: list[int]) -> None:
        left = set(numbers)
        for _ in range(60):
            try:
                async with aclosing(reader.fetch(layer().index, sorted(left))) as chunks:
                    async for number, chunk in chunks:
                        assert chunk == layer().chunk(number)
                        left.remove(number)
                return
            except CastoffError as error:
                assert error.what
                if not honest:
                    return
                await asyncio.sleep(0.005)
        raise AssertionError(f"{sorted(left)} never came")

    numbers = layer().packed
    async with asyncio.timeout(20):
        await asyncio.gather(task(numbers), task(dice.sample(numbers, 3)))
    await reader.close()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_with_one_honest_source_all_comes(seed: int) -> None:
    """However the others lie, break and are slow."""
    layer()
    asyncio.run(read(seed, honest=True))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 32))
def test_without_one_nothing_wrong_comes(seed: int) -> None:
    """An error, or the right bytes."""
    layer()
    asyncio.run(read(seed, honest=False))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), max_size=20), st.integers(0, 40), st.integers(1, 200), st.data()
)
def test_requests_cover_what_was_asked_for(gaps: list[tuple[int, int]], hole: int, most: int, data: st.DataObject) -> None:
    """Groups have all ranges in order and keep to their bounds; a stream of a group, in any pieces, is cut into its ranges."""
    ranges, at = [], 0
    for gap, length in gaps:
        ranges.append(ByteRange(at + gap, at + gap + length))
        at += gap + length
    groups = coalesce(ranges, hole=hole, most=most)
    assert [one for group in groups for one in group] == ranges
    blob = random.Random(at).randbytes(at + 50)
    for group in groups:
        assert len(group) == 1 or group[-1].end - group[0].start <= most
        assert all(after.start - before.end <= hole for before, after in pairwise(group))
        begin = data.draw(st.integers(0, group[0].start))
        cutter, found = Cutter(group, begin), []
        while not cutter.done:
            size = data.draw(st.integers(1, 60))
            found += [(one, bytes(part)) for one, part in cutter.feed(blob[begin : begin + size])]
            begin += size
        assert found == [(one, blob[one.start : one.end]) for one in group]
