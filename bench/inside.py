"""castoff in this process, as a program that stays up uses it: the provider chain, asked directly."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.stage import Published, Stage
from castoff.create import opened
from castoff.disk.clone import CloneKind
from castoff.host import Host
from castoff.rootfs.chain import ProviderChain, configured_chain
from castoff.rootfs.provider import RootfsRequest

__all__ = ["Asked", "asked", "build_cold", "host", "written_bytes"]


@dataclass(frozen=True, slots=True)
class Asked:
    """An image that is resolved, and the providers that answer for it."""

    host: Host
    chain: ProviderChain
    request: RootfsRequest

    async def locate(self) -> float:
        """Seconds that the providers took to answer."""
        begun = time.perf_counter()
        found = await self.chain.locate(self.request)
        seconds = time.perf_counter() - begun
        assert found is not None
        return seconds

    async def locate_and_clone(self, name: str) -> float:
        """Seconds from the question to a machine's drives; the clone is deleted afterwards."""
        directory = self.host.store.machines / name
        directory.mkdir()
        begun = time.perf_counter()
        rootfs = await self.chain.locate(self.request)
        assert rootfs is not None
        drives = await rootfs.clone(name, directory)
        seconds = time.perf_counter() - begun
        assert drives
        await rootfs.release(name)
        await asyncio.to_thread(shutil.rmtree, directory)
        return seconds


@asynccontextmanager
async def host(stage: Stage) -> AsyncIterator[Host]:
    """The stage's state, opened."""
    async with Host.open(config=stage.config()) as found:
        yield found


@asynccontextmanager
async def asked(found: Host, image: Published, *, clone: CloneKind | None = None) -> AsyncIterator[Asked]:
    """Resolves ``image`` by its digest."""
    async with opened(image.pinned, None, config=found.config, store=found.store) as (source, resolved):
        request = RootfsRequest(image=resolved, source=source, clone=clone)
        yield Asked(found, configured_chain(found.providers), request)


async def build_cold(stage: Stage, image: Published) -> float:
    """Seconds from the reference to the rootfs, of an image of which nothing is here, in this process."""
    async with host(stage) as found:
        await asyncio.to_thread(stage.forget)
        begun = time.perf_counter()
        async with asked(found, image) as question:
            await question.locate()
        return time.perf_counter() - begun


def written_bytes() -> int:
    """Bytes that this process has caused to be written so far (proc(5), ``write_bytes``: counted when a page is dirtied)."""
    text = Path("/proc/self/io").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("write_bytes"))
