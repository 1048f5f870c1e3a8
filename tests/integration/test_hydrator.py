"""The hydrator over real fanotify events on XFS: another process reads and writes a clone while it fills."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import clone_guest
import daemons
from castoff.errors import Conflict, NotFound, Unavailable
from castoff.fakes.chunk_source import FakeChunkSource
from castoff.hydrate.pressure import Pressure
from castoff.hydrate.record import CLONE, EVENTS, LOG, MAP, STATE, read_record
from castoff.hydrate.state import ABSENT, PRESENT
from castoff.layers.toc import CHUNK
from hydrator_host import Host, attached, eventually
from packed_layer import random_files


async def guest(host: Host, directory: Path, *, seed: int = 1, operations: int = 60) -> asyncio.subprocess.Process:
    """Starts one, and returns when it has the clone open."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, clone_guest.__file__, str(directory / CLONE), str(host.store.state.parent / "whole.ext4")),
        *(str(seed), str(operations)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"begun\n"
    return process


async def verdict(process: asyncio.subprocess.Process) -> str:
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return output.decode().strip()


async def test_a_guest_reads_and_writes_while_its_clone_fills(scratch_xfs: Path) -> None:
    """Buffered and direct, by four threads: every byte is right, those that it wrote too; then the clone is a plain file."""
    host = await Host.make(scratch_xfs, [random_files(1, chunks=40), random_files(2, chunks=20)])
    directory = host.machine("m1", background=False)
    async with host.hydrator(FakeChunkSource(host.packs, delay=0.002)) as hydrator:
        await hydrator.attach(directory)
        process = await guest(host, directory)
        assert await verdict(process) == "right"
        await eventually(lambda: read_record(directory).complete)  # the guest has read all of it in the end
        await eventually(lambda: hydrator.is_idle)
    assert not any((directory / name).exists() for name in (MAP, STATE, LOG))
    assert host.said == []


async def read(path: Path, offset: int, size: int = 4096) -> bytes:
    """What another process reads there; OSError as it gets it."""
    code = (
        "import os, sys\n"
        "descriptor = os.open(sys.argv[1], os.O_RDONLY)\n"
        "try:\n    data = os.pread(descriptor, int(sys.argv[3]), int(sys.argv[2]))\n"
        "except OSError as error:\n    sys.exit(error.errno)\n"
        "sys.stdout.buffer.write(data)\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(path), str(offset), str(size), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise OSError(process.returncode, os.strerror(process.returncode))
    return output


def events(directory: Path) -> list[str]:
    """What the machine's events say, without the times."""
    path = directory / EVENTS
    return [line.partition(" ")[2] for line in path.read_text().splitlines()] if path.exists() else []


async def test_a_read_waits_for_a_source_that_fails_and_goes_on_when_it_is_back(scratch_xfs: Path) -> None:
    """The guest only waits; why is told once, and that it is over once, however often was tried."""
    host = await Host.make(scratch_xfs, [random_files(1, chunks=6)])
    directory = host.machine("m1", background=False)
    source = FakeChunkSource(host.packs, fails=Unavailable("the registry is down"))
    async with host.hydrator(source) as hydrator:
        served = await attached(hydrator, directory)
        at = served.map.chunk_of[2] * CHUNK
        reading = asyncio.create_task(read(directory / CLONE, at))
        await eventually(lambda: len(source.reads) > 3)
        assert not reading.done()
        assert "the registry is down" in served.progress.failing
        assert served.progress.waiting == 1
        source.fails = None
        assert await reading == host.whole[at : at + 4096]
        assert served.progress.failing == ""
        told = events(directory)
        assert len(told) == 2
        assert "the registry is down" in told[0]
        assert "is back" in told[1]


async def test_a_read_that_waited_long_enough_ends_in_eio_and_a_later_one_starts_anew(scratch_xfs: Path) -> None:
    """After ``give_up`` seconds. Nothing of it sticks to the chunk."""
    host = await Host.make(scratch_xfs, [random_files(1, chunks=6)])
    directory = host.machine("m1", background=False, give_up=0.4)
    source = FakeChunkSource(host.packs, fails=Unavailable("the registry is down"))
    async with host.hydrator(source) as hydrator:
        served = await attached(hydrator, directory)
        at = served.map.chunk_of[2] * CHUNK
        for _ in range(2):
            with pytest.raises(OSError) as failure:
                await read(directory / CLONE, at)
            assert failure.value.errno == errno.EIO
        assert await read(directory / CLONE, 0) == host.whole[:4096]  # metadata is there
        source.fails = None
        assert await read(directory / CLONE, at) == host.whole[at : at + 4096]
        assert sum("given up" in line for line in events(directory)) == 2


async def test_wrong_bytes_never_reach_a_guest(scratch_xfs: Path) -> None:
    """They count as a source that fails, and are told of; the segment stays clean."""
    host = await Host.make(scratch_xfs, [random_files(1, chunks=6)])
    directory = host.machine("m1", background=False, give_up=30.0)
    source = FakeChunkSource(host.packs, lies=True)
    async with host.hydrator(source) as hydrator:
        served = await attached(hydrator, directory)
        at = served.map.chunk_of[2] * CHUNK
        reading = asyncio.create_task(read(directory / CLONE, at))
        await eventually(lambda: "wrong bytes" in served.progress.failing)
        assert served.progress.present == 0
        source.lies = False
        assert await reading == host.whole[at : at + 4096]


async def test_machines_share_what_comes_in(scratch_xfs: Path) -> None:
    """Two machines of one image that boot at once: each chunk is fetched once, and both are right."""
    host = await Host.make(scratch_xfs, [random_files(1, chunks=20)])
    one, two = host.machine("m1", background=False), host.machine("m2", background=False)
    source = FakeChunkSource(host.packs, delay=0.002)
    async with host.hydrator(source) as hydrator:
        await hydrator.attach(one)
        await hydrator.attach(two)
        served = hydrator.served("m1")
        assert served is not None
        wanted = len(served.map)
        guests = [await guest(host, one, seed=1, operations=30), await guest(host, two, seed=2, operations=30)]
        assert [await verdict(process) for process in guests] == ["right", "right"]
        assert sum(len(ranges) for _, ranges in source.reads) == wanted
        await eventually(lambda: hydrator.is_idle)
    for directory in (one, two):
        assert read_record(directory).complete


async def test_the_background_waits_until_the_machine_is_ready(scratch_xfs: Path) -> None:
    """Then it fetches all, nobody having read a byte; the layer is complete, and the clone has every byte."""
    host = await Host.make(scratch_xfs, [random_files(1, chunks=30)])
    directory = host.machine("m1")
    source = FakeChunkSource(host.packs)
    async with host.hydrator(source) as hydrator:
        await hydrator.attach(directory)
        await asyncio.sleep(0.3)
        assert source.reads == []
        await hydrator.ready("m1", time.monotonic())
        await eventually(lambda: read_record(directory).complete)
        await eventually(lambda: hydrator.is_idle)
    assert (directory / CLONE).read_bytes() == host.whole
    layer = host.store.layer(host.layers[0].index.diff_id)
    assert layer is not None
    assert layer.complete
    assert layer.segment.read_bytes() == host.layers[0].segment


async def test_the_background_keeps_to_its_limit(scratch_xfs: Path) -> None:
    """Bytes of packs a second; a batch more at the beginning."""
    host = await Host.make(scratch_xfs, [random_files(1, chunks=40)])
    directory = host.machine("m1", background_limit=8 << 20)
    async with host.hydrator(FakeChunkSource(host.packs)) as hydrator:
        served = await attached(hydrator, directory)
        began = time.monotonic()
        await hydrator.ready("m1", began)
        await eventually(lambda: served.states.complete)
        took = time.monotonic() - began
    size = len(host.layers[0].pack)
    assert took > (size - 32 * CHUNK) / (8 << 20)


class Crowded(Pressure):
    """A host where something waits for a processor at all times."""

    looks = 0

    def share(self) -> float:
        self.looks += 1
        return 1.0


async def test_the_background_ends_on_a_host_without_a_processor_to_spare(scratch_xfs: Path) -> None:
    """It looks after each batch, rests, and goes on."""
    host = await Host.make(scratch_xfs, [random_files(1, chunks=20)])
    directory = host.machine("m1")
    source, crowded = FakeChunkSource(host.packs), Crowded()
    async with host.hydrator(source, crowded) as hydrator:
        await hydrator.attach(directory)
        await hydrator.ready("m1", time.monotonic())
        await eventually(lambda: read_record(directory).complete)
    assert crowded.looks == len(source.reads) >= 5


async def test_a_guest_is_served_before_the_background(scratch_xfs: Path) -> None:
    """While somebody waits no batch begins: what a guest wants is asked for next."""
    host = await Host.make(scratch_xfs, [random_files(1, chunks=80)])
    directory = host.machine("m1")
    source = FakeChunkSource(host.packs, delay=0.05)
    async with host.hydrator(source) as hydrator:
        served = await attached(hydrator, directory)
        await hydrator.ready("m1", time.monotonic())
        await eventually(lambda: len(source.reads) >= 2)
        before = len(source.reads)
        at = served.map.chunk_of[-1] * CHUNK
        assert await read(directory / CLONE, at) == host.whole[at : at + 4096]
        wanted = host.layers[0].index.locations.offset[served.map.layer_chunk_of[-1]]
        assert [ranges[0].start for _, ranges in source.reads[before : before + 4] if len(ranges) == 1] == [wanted]


async def test_a_profile_is_prefetched_in_its_order(scratch_xfs: Path) -> None:
    """In small batches, several at a time; the rest is left alone."""
    host = await Host.make(scratch_xfs, [random_files(1, chunks=40)])
    directory = host.machine("m1", background=False)
    source = FakeChunkSource(host.packs, delay=0.01)
    async with host.hydrator(source) as hydrator:
        served = await attached(hydrator, directory)
        rows = [31, 7, 30, 8, 29, 9, 28, 10, 3, 2]
        hydrator.prefetch("m1", rows)
        await eventually(lambda: served.progress.present == len(rows))
        offset = host.layers[0].index.locations.offset
        batches = [[one.start for one in ranges] for _, ranges in source.reads]
        wanted = [int(offset[served.map.layer_chunk_of[row]]) for row in rows]
        assert sorted(batches[0]) == sorted(wanted[:8])
        assert sorted(batches[1]) == sorted(wanted[8:])


async def test_a_machine_that_is_gone_is_let_go(scratch_xfs: Path) -> None:
    """Detached while a reader waits: it gets EIO, never a hole. A directory that vanished is detached by itself."""
    host = await Host.make(scratch_xfs, [random_files(1, chunks=6)])
    directory, other = host.machine("m1", background=False), host.machine("m2", background=False)
    source = FakeChunkSource(host.packs, delay=3600)
    async with host.hydrator(source) as hydrator:
        await hydrator.attach(directory)
        await hydrator.attach(other)
        served = hydrator.served("m1")
        assert served is not None
        reading = asyncio.create_task(read(directory / CLONE, served.map.chunk_of[0] * CHUNK))
        await eventually(lambda: served.progress.waiting == 1)
        await hydrator.detach("m1")
        with pytest.raises(OSError) as failure:
            await reading
        assert failure.value.errno == errno.EIO
        assert hydrator.served("m1") is None
        shutil.rmtree(other)
        await eventually(lambda: hydrator.served("m2") is None)
        await hydrator.detach("m1")  # twice is once


async def test_a_machine_may_go_while_its_rootfs_becomes_a_plain_file(scratch_xfs: Path) -> None:
    """Whatever is being done with its descriptors then is done before they are closed, and their numbers are another's."""
    host = await Host.make(scratch_xfs, [random_files(1, chunks=2)])
    async with host.hydrator(FakeChunkSource(host.packs)) as hydrator:
        for number in range(12):
            directory = host.machine(f"m{number}")
            await hydrator.attach(directory)
            await hydrator.ready(directory.name, time.monotonic())
            served = hydrator.served(directory.name)
            assert served is not None
            while not served.is_ending:
                await asyncio.sleep(0)
            await asyncio.sleep(number * 0.0005)
            await hydrator.detach(directory.name)
        await eventually(lambda: hydrator.is_idle)
    assert host.said == []


async def test_what_cannot_be_served_is_refused(scratch_xfs: Path) -> None:
    """No directory, no layer, the name of another; and nothing is left open of it."""
    host = await Host.make(scratch_xfs, [random_files(1, chunks=6)])
    directory = host.machine("m1", background=False)
    async with host.hydrator(FakeChunkSource(host.packs)) as hydrator:
        with pytest.raises(NotFound):
            await hydrator.attach(host.store.machines / "nobody")
        found = await hydrator.attach(directory)
        assert await hydrator.attach(directory) == found  # who asks again may have lost the answer
        with pytest.raises(Conflict):
            await hydrator.attach(host.store.root / "m1")
        await hydrator.detach("m1")
        before = len(list(Path("/proc/self/fd").iterdir()))
        shutil.rmtree(host.store.root / "layers" / host.layers[0].index.diff_id.hex)
        with pytest.raises(NotFound):
            await hydrator.attach(directory)
        assert len(list(Path("/proc/self/fd").iterdir())) <= before


async def test_a_full_disk_makes_a_guest_wait_and_nothing_else(scratch_xfs: Path) -> None:
    """What the store can spare goes first; then the operator is told, and the read goes on when there is room."""
    with daemons.xfs(scratch_xfs / "small", size=512 << 20) as mount:
        host = await Host.make(mount, [random_files(1, chunks=12)])
        directory = host.machine("m1", background=False, give_up=0.5)
        hog = mount / "hog"
        async with host.hydrator(FakeChunkSource(host.packs)) as hydrator:
            await hydrator.attach(directory)
            served = hydrator.served("m1")
            assert served is not None
            # As if there had been no room to reserve it when it was begun.
            segment = host.store.root / "layers" / host.layers[0].index.diff_id.hex / "segment"
            length = str(segment.stat().st_size)
            subprocess.run(["fallocate", "--punch-hole", "--offset", "0", "--length", length, str(segment)], check=True)
            fill_disk(hog)
            at = served.map.chunk_of[2] * CHUNK
            reading = asyncio.create_task(read(directory / CLONE, at))
            await eventually(lambda: "No space" in served.progress.failing)
            await asyncio.sleep(1.0)
            assert not reading.done()  # longer than it would have waited for a source
            hog.unlink()
            assert await reading == host.whole[at : at + 4096]
            assert [line.split(":")[0] for line in events(directory)] == ["waiting for room", "there is room again"]


def fill_disk(path: Path) -> None:
    """Leaves not a block."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


async def test_a_file_is_read_ahead_within_itself(scratch_xfs: Path) -> None:
    """A chunk behind one that a guest waited for, and behind that one when it is used; nothing beyond the file's end, nor where
    it is switched off."""
    files = {"data/large": os.urandom(6 * CHUNK), "data/next": os.urandom(2 * CHUNK)}
    host = await Host.make(scratch_xfs, [files])
    directory = host.machine("m1", background=False)
    async with host.hydrator(FakeChunkSource(host.packs)) as hydrator:
        served = await attached(hydrator, directory)

        async def absent_after(row: int, rows: list[int]) -> None:
            await read(directory / CLONE, served.map.chunk_of[row] * CHUNK)
            await eventually(lambda: served.states.absent() == rows)

        await absent_after(0, [2, 3, 4, 5, 6, 7])
        await absent_after(1, [3, 4, 5, 6, 7])  # it was here, and is used now
        await absent_after(1, [3, 4, 5, 6, 7])
        await absent_after(4, [3, 6, 7])
        await absent_after(5, [3, 6, 7])  # where the file ends
        await absent_after(3, [6, 7])  # what follows is here
        await absent_after(7, [6])
    other = host.machine("m2", background=False, read_ahead=0)
    async with host.hydrator(FakeChunkSource(host.packs)) as hydrator:
        served = await attached(hydrator, other)
        await read(other / CLONE, served.map.chunk_of[6] * CHUNK)
        await asyncio.sleep(0.1)
        assert [served.states[row] for row in (6, 7)] == [PRESENT, ABSENT]
