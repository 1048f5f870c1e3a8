"""The hydrator over real fanotify events on XFS: another process reads and writes a clone while it fills."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import clone_guest
from castoff.fakes.chunk_source import FakeChunkSource
from castoff.hydrate.record import CLONE, LOG, MAP, STATE, read_record
from hydrator_host import Host, eventually
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
        assert hydrator.is_idle
    assert not any((directory / name).exists() for name in (MAP, STATE, LOG))
    assert host.said == []
