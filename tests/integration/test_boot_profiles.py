"""Boot profiles in a hydrator over real fanotify events: recorded, prefetched, streamed from a hot pack that may fail."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from castoff.fakes.chunk_source import FakeChunkSource
from castoff.hydrate.boot_profiles import BootProfiles
from castoff.hydrate.fill import Filler
from castoff.hydrate.hotpack import HotPack, write_hot_pack
from castoff.hydrate.profile import Boot, ChunkId, Profile
from castoff.hydrate.profile_file import read_profile, update_profile
from castoff.hydrate.record import CLONE, EVENTS, HotPackRecord, read_record, write_record
from castoff.hydrate.scheduler import Scheduler
from castoff.image.digest import Digest
from castoff.image.settings import ImageSettings
from castoff.layers.toc import CHUNK
from hostile_registry import HostileRegistry, break_after, once
from hydrator_host import Host, eventually
from oci_builder import Blob as Document
from packed_layer import random_files

IMAGE = Digest("1" * 64)
"""Of what hydrator_host's machines are of."""
QUICK = ImageSettings(retries=2, retry_delay=0.01, read_timeout=2.0, connect_timeout=2.0)
ORDER = [9, 4, 5, 17, 2, 12, 0]
"""Chunks of the layer that a boot reads."""


async def make_host(directory: Path, *, registry: str = "registry.example") -> Host:
    """A host that has nothing of a layer of twenty chunks; two of them have the same layer."""
    directory.mkdir()
    host = await Host.make(directory, [random_files(1, chunks=20)])
    host.repository = f"{registry}/app"
    return host


def profile_of(host: Host, numbers: list[int] = ORDER) -> Profile:
    """A boot that read these."""
    diff_id = host.layers[0].index.diff_id
    return Profile.of(IMAGE, [Boot(1, "0" * 16, tuple(ChunkId(diff_id, number) for number in numbers))])


async def read(path: Path, *chunks: int) -> None:
    """Another process reads a block of each of these chunks of the file, one after another."""
    code = (
        "import os, sys\ndescriptor = os.open(sys.argv[1], os.O_RDONLY)\n"
        f"for at in sys.argv[2:]:\n    assert len(os.pread(descriptor, 4096, int(at) * {CHUNK})) == 4096\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(path), *map(str, chunks))
    assert await asyncio.wait_for(process.wait(), 30) == 0


def events(directory: Path) -> str:
    """What the machine's events say."""
    path = directory / EVENTS
    return path.read_text() if path.exists() else ""


@dataclass
class Streamed:
    """A hot pack in a registry that misbehaves."""

    registry: HostileRegistry
    pack: HotPack

    @property
    def record(self) -> HotPackRecord:
        return HotPackRecord(repository=f"{self.registry.host}/app", digest=str(self.pack.digest), size=self.pack.size)

    @property
    def gets(self) -> int:
        return len(self.registry.requests)

    def machine(self, host: Host, name: str) -> Path:
        """A machine of the host whose image has the hot pack."""
        directory = host.machine(name, background=False)
        record = msgspec.structs.replace(read_record(directory), profile=self.record, registry=QUICK)
        write_record(directory, record)
        return directory


@asynccontextmanager
async def streamed(directory: Path, host: Host) -> AsyncIterator[Streamed]:
    """Publishes the hot pack of ORDER."""
    segment = directory / "whole"
    segment.write_bytes(host.layers[0].segment)
    index = host.layers[0].index
    pack = write_hot_pack(profile_of(host), {index.diff_id: (segment, index)}, directory / "hot")
    assert pack is not None
    registry = HostileRegistry()
    registry.put(f"/v2/app/blobs/{pack.digest}", Document((directory / "hot").read_bytes(), "application/octet-stream"))
    async with registry.running():
        yield Streamed(registry, pack)


async def adopt(host: Host) -> None:
    """The create keeps the published profile before it attaches."""
    await update_profile(host.store.root, IMAGE, lambda own: profile_of(host))


async def test_a_boot_is_recorded_and_the_next_one_prefetches(scratch_xfs: Path) -> None:
    """In order of first use, up to READY; a later machine has it all before it asks, and no more."""
    host = await make_host(scratch_xfs / "a")
    first = host.machine("m1", background=False, read_ahead=0)
    async with host.hydrator(FakeChunkSource(host.packs)) as hydrator:
        await hydrator.attach(first)
        served = hydrator.served("m1")
        assert served is not None
        where = {number: served.map.chunk_of[row] for row, number in enumerate(served.map.layer_chunk_of)}
        await read(first / CLONE, *(where[number] for number in [*ORDER, 4, 9]))
        await hydrator.ready("m1", time.monotonic())
        await read(first / CLONE, where[max(set(where) - set(ORDER))])
    recorded = read_profile(host.store.root, IMAGE)
    assert recorded is not None
    assert [chunk.number for chunk in recorded.chunks] == ORDER

    other = await make_host(scratch_xfs / "b")
    await update_profile(other.store.root, IMAGE, lambda own: recorded)
    second = other.machine("m2", background=False, read_ahead=0)
    source = FakeChunkSource(other.packs)
    async with other.hydrator(source) as hydrator:
        await hydrator.attach(second)
        await eventually(lambda: (served := hydrator.served("m2")) is not None and served.progress.present == len(ORDER))
        assert sum(len(ranges) for _, ranges in source.reads) <= len(ORDER)
        asked = len(source.reads)
        await read(second / CLONE, *(where[number] for number in ORDER))
        assert len(source.reads) == asked
        served = hydrator.served("m2")
        assert served is not None
        assert served.progress.misses == 0
    assert (second / CLONE).read_bytes()[where[9] * CHUNK :][:CHUNK] == other.layers[0].chunk(9)


async def test_the_hot_pack_brings_all_in_one_get(scratch_xfs: Path) -> None:
    """For two machines of an image that are attached at once, too; nothing is fetched from the packs."""
    host = await make_host(scratch_xfs / "a")
    async with streamed(scratch_xfs, host) as hot:
        one, two = hot.machine(host, "m1"), hot.machine(host, "m2")
        await adopt(host)
        source = FakeChunkSource(host.packs)
        async with host.hydrator(source) as hydrator:
            await hydrator.attach(one)
            await hydrator.attach(two)
            for name in ("m1", "m2"):
                served = hydrator.served(name)
                assert served is not None
                await eventually(lambda served=served: served.progress.present == len(ORDER))
            await eventually(lambda: f"the hot pack brought {len(ORDER)} chunks" in events(one))
        assert (source.reads, hot.gets) == ([], 1)
    assert host.said == []


async def test_the_hot_pack_begins_before_the_rootfs_is_attached(scratch_xfs: Path) -> None:
    """As soon as a create knows of it; told twice, it is fetched once."""
    host = await make_host(scratch_xfs / "a")
    async with streamed(scratch_xfs, host) as hot:
        directory = hot.machine(host, "m1")
        source = FakeChunkSource(host.packs)
        async with host.hydrator(source) as hydrator:
            await hydrator.profiles.expect(IMAGE, hot.record, QUICK)
            await hydrator.profiles.expect(IMAGE, hot.record, QUICK)
            assert not hydrator.is_idle
            await eventually(lambda: hot.gets == 1)
            await adopt(host)
            await hydrator.attach(directory)
            served = hydrator.served("m1")
            assert served is not None
            await eventually(lambda: served.progress.present == len(ORDER))
        assert (source.reads, hot.gets) == ([], 1)


@pytest.mark.parametrize("fault", ["gone", "broken", "wrong"])
async def test_what_a_hot_pack_does_not_bring_comes_from_the_packs(scratch_xfs: Path, fault: str) -> None:
    """Its registry gone, breaking off again and again, or giving other bytes: the profile is prefetched all the same."""
    host = await make_host(scratch_xfs / "a")
    async with streamed(scratch_xfs, host) as hot:
        directory = hot.machine(host, "m1")
        if fault == "wrong":
            data = bytearray((scratch_xfs / "hot").read_bytes())
            data[-9] ^= 1
            hot.registry.put(f"/v2/app/blobs/{hot.pack.digest}", Document(bytes(data), "application/octet-stream"))
        else:
            hot.registry.faults.append(break_after(0 if fault == "gone" else hot.pack.size // 20))
        await adopt(host)
        async with host.hydrator(FakeChunkSource(host.packs)) as hydrator:
            await hydrator.attach(directory)
            served = hydrator.served("m1")
            assert served is not None
            await eventually(lambda: served.progress.present == len(ORDER))
        assert "the hot pack did not come whole" in events(directory)
    data = (directory / CLONE).read_bytes()
    for row, number in enumerate(served.map.layer_chunk_of):
        if number in ORDER:
            at = served.map.chunk_of[row] * CHUNK
            assert data[at : at + CHUNK] == host.layers[0].chunk(number)[:CHUNK]


async def test_a_guest_does_not_wait_for_a_stream_that_stands_still(scratch_xfs: Path) -> None:
    """What it wants is fetched from the packs within a second, though the stream had claimed it."""
    host = await make_host(scratch_xfs / "a")
    async with streamed(scratch_xfs, host) as hot:
        directory = hot.machine(host, "m1")
        hot.registry.faults.append(once(break_after(hot.pack.size // 2, stall=20)))
        await adopt(host)
        async with host.hydrator(FakeChunkSource(host.packs)) as hydrator:
            await hydrator.attach(directory)
            served = hydrator.served("m1")
            assert served is not None
            await eventually(lambda: served.progress.present > 0)
            last = served.map.chunk_of[served.map.layer_chunk_of.index(ORDER[-1])]
            began = time.monotonic()
            await read(directory / CLONE, last)
            assert time.monotonic() - began < 10


async def test_a_machine_that_goes_ends_its_stream(scratch_xfs: Path) -> None:
    """Detached midway: the transfer ends, nothing is claimed any more, the hydrator may go too."""
    host = await make_host(scratch_xfs / "a")
    async with streamed(scratch_xfs, host) as hot:
        directory = hot.machine(host, "m1")
        hot.registry.faults.append(once(break_after(hot.pack.size // 2, stall=20)))
        async with host.hydrator(FakeChunkSource(host.packs)) as hydrator:
            await hydrator.attach(directory)
            served = hydrator.served("m1")
            assert served is not None
            await eventually(lambda: served.progress.present > 0)
            segments = list(served.segments)
            await hydrator.detach("m1")
            await eventually(lambda: hydrator.is_idle)
            assert not any(segment.coming for segment in segments)
    assert host.said == []


async def test_a_hot_pack_that_nobody_takes_is_let_go(scratch_xfs: Path) -> None:
    """A create that failed after it had told of one."""

    async def make_room() -> None:
        raise AssertionError

    host = await make_host(scratch_xfs / "a")
    async with streamed(scratch_xfs, host) as hot:
        filler = Filler(lambda served, row: None, make_room)
        profiles = BootProfiles(host.store, Scheduler(filler), patience=0.2)
        await profiles.expect(IMAGE, hot.record, QUICK)
        assert profiles.busy
        await eventually(lambda: not profiles.busy)
        await profiles.close()
        filler.close()


async def test_a_hot_pack_whose_chunks_are_here_is_not_fetched(scratch_xfs: Path) -> None:
    """A machine of the image ran here before."""
    host = await make_host(scratch_xfs / "a")
    async with streamed(scratch_xfs, host) as hot:
        await adopt(host)
        one = hot.machine(host, "m1")
        async with host.hydrator(FakeChunkSource(host.packs)) as hydrator:
            await hydrator.attach(one)
            await eventually(lambda: "the hot pack brought" in events(one))
        assert hot.gets == 1
        two = hot.machine(host, "m2")
        async with host.hydrator(FakeChunkSource(host.packs)) as hydrator:
            await hydrator.profiles.expect(IMAGE, hot.record, QUICK)
            await hydrator.attach(two)
            served = hydrator.served("m2")
            assert served is not None
            await eventually(lambda: served.progress.present == len(ORDER))
        assert hot.gets == 1
