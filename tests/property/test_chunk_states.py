"""Whatever a guest does while its clone fills, in whatever order things happen, and whoever dies: it sees its own disk.

The core itself (states, scheduler, filler, segments) over a front in memory. Guests read and write; chunks are prefetched and
filled in the background; sources fail; hydrators die and leave chunks half filled. Checked against a plain array of bytes.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from castoff.errors import Unavailable
from castoff.fakes.chunk_source import FakeChunkSource
from castoff.hydrate.fill import Filler
from castoff.hydrate.front import Answer, Descriptors, Hydration
from castoff.hydrate.library import Library
from castoff.hydrate.record import CLONE, STATE, read_record
from castoff.hydrate.scheduler import Scheduler
from castoff.hydrate.served import Served
from castoff.hydrate.state import ABSENT, FILLING
from castoff.layers.toc import BLOCK, CHUNK
from castoff.sources.chunks import ChunkReader
from hydrator_host import Host
from packed_layer import PackedLayer, packed_layer

CHUNKS = 7


@cache
def layer() -> PackedLayer:
    """Chunks of one large file and several small ones, and one of zeros; converted once."""
    files = {f"data/{name}": bytes([65 + name]) * (CHUNK // 2 + name) for name in range(6)}
    files |= {"data/large": os.urandom(3 * CHUNK + 5), "data/zeros": bytes(2 * CHUNK)}
    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(packed_layer(Path(directory) / "layer", files))


class MemoryFront:
    """A front without a kernel: the guest asks it before it touches the file."""

    def __init__(self, fill: int) -> None:
        self.descriptors = Descriptors(-1, fill)
        self._pending: list[tuple[int, int, asyncio.Future[int]]] = []
        self._hydration: Hydration | None = None

    def start(self, hydration: Hydration) -> None:
        self._hydration = hydration
        for start, end, done in self._pending:
            hydration.want(start, end, self._answer(done))

    def die(self) -> None:
        """Whatever the core that is dead would still say is not heard."""
        self._hydration = None

    async def access(self, start: int, end: int) -> None:
        """Returns when the kernel would let the guest through."""
        if self._hydration is not None and self._hydration.present(start, end):
            return
        waiting = (start, end, asyncio.get_running_loop().create_future())
        self._pending.append(waiting)
        if self._hydration is not None:
            self._hydration.want(start, end, self._answer(waiting[2]))
        assert await waiting[2] == 0
        self._pending.remove(waiting)

    def _answer(self, done: asyncio.Future[int]) -> Answer:
        asked = self._hydration

        def answer(number: int) -> None:
            if self._hydration is asked:
                done.set_result(number)

        return answer

    def complete(self) -> None: ...

    def stop(self) -> None: ...

    def abandon(self) -> None: ...

    def close(self) -> None: ...


class Machine:
    """A guest over a core that may die."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.host = host
        self.directory = directory
        self.source = FakeChunkSource(host.packs)
        self.fill = os.open(directory / CLONE, os.O_RDWR)
        self.front = MemoryFront(self.fill)
        self.expected = bytearray(host.whole)
        self.locks: dict[int, asyncio.Lock] = {}

    async def start(self) -> None:
        """A hydrator begins, or goes on."""

        async def no_room() -> None:
            raise AssertionError("the disk is full")

        self.filler = Filler(lambda served, row: served.filled(row), no_room)
        self.scheduler = Scheduler(self.filler)
        self.library = Library(self.host.store, lambda record: ChunkReader(self.source, threads=1), lambda served, line: None)
        record = await asyncio.to_thread(read_record, self.directory)
        self.served = Served(self.directory, record, self.front, self.scheduler.want, self.scheduler.used)
        await self.library.lend(self.served)
        self.scheduler.add(self.served)
        self.front.start(self.served)

    async def die(self, torn: Sequence[int]) -> None:
        """The hydrator ends; of the rows in ``torn`` that are absent it was just writing the first half."""
        self.front.die()
        await self.scheduler.close()
        self.filler.close()
        await self.library.close()
        map = self.served.map
        for row in torn:
            if self.served.states[row % len(map)] == ABSENT:
                self._tear(row % len(map))
        self.served.states.close()

    def _tear(self, row: int) -> None:
        with (self.directory / STATE).open("r+b") as file:
            file.seek(row)
            file.write(bytes([FILLING]))
        at = self.served.map.chunk_of[row] * CHUNK
        os.pwrite(self.fill, self.host.whole[at : at + BLOCK], at)

    async def act(self, write: bool, block: int, count: int, seed: int) -> None:
        """One request of the guest; those that touch the same chunks come one after another."""
        blocks = len(self.expected) // BLOCK
        first = self.first_block + block
        start, end = first * BLOCK, min(first + count, blocks) * BLOCK
        locks = [self.locks.setdefault(chunk, asyncio.Lock()) for chunk in range(start // CHUNK, -(-end // CHUNK))]
        for lock in locks:
            await lock.acquire()
        try:
            await self.front.access(start, end)
            if write:
                data = bytes([seed]) * (end - start)
                os.pwrite(self.fill, data, start)
                self.expected[start:end] = data
            else:
                assert os.pread(self.fill, end - start, start) == self.expected[start:end]
        finally:
            for lock in locks:
                lock.release()

    @property
    def first_block(self) -> int:
        """Of the segment in the rootfs."""
        return int(self.served.map.chunk_of[0]) * CHUNK // BLOCK


blocks = st.integers(0, CHUNKS * CHUNK // BLOCK - 1)
operation = st.one_of(
    st.tuples(st.just("access"), st.booleans(), blocks, st.sampled_from([1, 3, 64, 130]), st.integers(1, 255)),
    st.tuples(st.just("prefetch"), st.lists(st.integers(0, CHUNKS), max_size=6)),
    st.tuples(st.just("bring"), st.sets(st.integers(0, CHUNKS), min_size=1)),
    st.tuples(st.just("ready")),
    st.tuples(st.just("source"), st.booleans()),
    st.tuples(st.just("die"), st.lists(st.integers(0, CHUNKS), max_size=3)),
    st.tuples(st.just("pass"), st.sampled_from([0, 1, 30])),
)


async def run(packed: PackedLayer, operations: Sequence[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        host = await Host.of(Path(name), [packed])
        machine = Machine(host, host.machine("m1"))
        await machine.start()
        guests: list[asyncio.Task[None]] = []
        for word, *values in operations:
            match word:
                case "access":
                    guests.append(asyncio.create_task(machine.act(*values)))
                case "prefetch":
                    machine.scheduler.prefetch(machine.served, [row % len(machine.served.map) for row in values[0]])
                case "bring":  # as a hot pack does, of whatever is here already
                    for number in {machine.served.map.layer_chunk_of[row % len(machine.served.map)] for row in values[0]}:
                        machine.scheduler.bring(machine.served.segments[0], number, packed.chunk(number))
                case "ready":
                    machine.served.is_ready = True
                    machine.scheduler.pump()
                case "source":
                    machine.source.fails = None if values[0] else Unavailable("gone")
                case "die":
                    await machine.die(values[0])
                    await machine.start()
                case "pass":
                    _ = await asyncio.wait(guests, timeout=values[0] / 1000) if guests else None
        machine.source.fails = None
        machine.served.is_ready = True
        machine.scheduler.pump()
        async with asyncio.timeout(30):
            await asyncio.gather(*guests)
            while not machine.served.states.complete:
                await asyncio.sleep(0.002)
        assert os.pread(machine.fill, len(machine.expected), 0) == machine.expected
        await machine.die(())
        machine.served.refuse()
        os.close(machine.fill)


@given(st.lists(operation, max_size=25))
def test_a_guest_sees_its_own_disk(operations: Sequence[tuple[Any, ...]]) -> None:
    """Never a hole, never a write that is lost, never a read that waits for ever."""
    asyncio.run(run(layer(), operations))
