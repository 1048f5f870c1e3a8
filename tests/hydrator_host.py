"""A host with layers of which nothing is here, machines' directories over them, and a hydrator in this process.

host = await Host.make(directory, [files of a layer, ...])
machine = host.machine("m1")                 # lazy.json, lazy.map, lazy.state, root.ext4
async with host.hydrator(source) as hydrator:
    await hydrator.attach(machine)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from castoff.ext4.compose import compose
from castoff.ext4.tables import compile_tables
from castoff.hydrate.map import write_map
from castoff.hydrate.pressure import Pressure
from castoff.hydrate.record import CLONE, MAP, STATE, FrontKind, LazyLayer, LazyRecord, write_record
from castoff.hydrate.served import Served
from castoff.hydrate.server import Hydrator
from castoff.hydrate.settings import HydrateSettings
from castoff.hydrate.state import write_state
from castoff.image.digest import Digest
from castoff.layers.toc import CHUNK
from castoff.sources.chunks import ChunkReader
from castoff.sources.source import ChunkSource
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from packed_layer import PackedLayer, packed_layer

__all__ = ["Host", "attached", "eventually"]


async def attached(hydrator: Hydrator, directory: Path) -> Served:
    """A machine's rootfs, served from now on."""
    await hydrator.attach(directory)
    served = hydrator.served(directory.name)
    assert served is not None
    return served


@dataclass
class Host:
    """A store with layers that are empty, and where their packs are."""

    store: Store
    layers: Sequence[PackedLayer]
    whole: bytes = field(repr=False)
    """The rootfs as every reader must see it: a row's bytes, and nothing where a chunk is dead or zero."""
    said: list[str] = field(default_factory=list)
    repository: str = "registry.example/app"

    @classmethod
    async def make(cls, directory: Path, layers: Sequence[Mapping[str, bytes]]) -> Host:
        packed = [await packed_layer(directory / f"layer{number}", files) for number, files in enumerate(layers)]
        return await cls.of(directory, packed)

    @classmethod
    async def of(cls, directory: Path, packed: Sequence[PackedLayer]) -> Host:
        store = Store.open(directory / "state", StoreSettings(backing="native"))
        (store.state / "hydrate").mkdir(mode=0o700)
        for layer in packed:
            (await store.begin_layer(layer.index.diff_id, layer.index)).pin.close()
        host = cls(store, packed, b"")
        host.whole = host._compose(directory / "whole.ext4", whole=True)
        return host

    @property
    def packs(self) -> dict[Digest, bytes]:
        return {layer.digest: layer.pack for layer in self.layers}

    def machine(self, name: str, *, front: FrontKind = FrontKind.FANOTIFY, **settings: float) -> Path:
        """A directory that can be attached."""
        directory = self.store.machines / name
        directory.mkdir()
        self._compose(directory / CLONE, whole=False)
        hydrate = HydrateSettings(**settings)  # type: ignore[arg-type]
        record = LazyRecord(
            image=f"sha256:{'1' * 64}",
            repository=self.repository,
            artifact=f"sha256:{'2' * 64}",
            layers=tuple(LazyLayer(diff_id=str(layer.index.diff_id), pack=str(layer.digest)) for layer in self.layers),
            size=len(self.whole),
            front=front,
            hydrate=hydrate,
        )
        write_record(directory, record)
        return directory

    def _compose(self, path: Path, *, whole: bool) -> bytes:
        tables = [(layer.index.diff_id, compile_tables(layer.index.toc)) for layer in self.layers]
        composition = compose(tables, size=48 << 20)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        composition.write(descriptor)
        chunks, numbers, parts = [], [], []
        for placed in composition.placements:
            layer = self.layers[placed.layer]
            wanted = np.flatnonzero(composition.live_chunks(placed.layer) & ~layer.index.zero)
            for number in wanted.tolist() if whole else ():
                os.pwrite(descriptor, layer.chunk(number), placed.offset + number * CHUNK)
            chunks.append(wanted + placed.offset // CHUNK)
            numbers.append(np.full(len(wanted), placed.layer))
            parts.append(wanted)
        os.close(descriptor)
        if whole:
            return path.read_bytes()
        write_map(path.parent / MAP, np.concatenate(chunks), np.concatenate(numbers), np.concatenate(parts))
        write_state(path.parent / STATE, sum(map(len, parts)))
        return b""

    @asynccontextmanager
    async def hydrator(self, source: ChunkSource, pressure: Pressure | None = None) -> AsyncIterator[Hydrator]:
        """A hydrator without a keeper; all that it serves is detached in the end."""
        hydrator = Hydrator(self.store, None, lambda record: ChunkReader(source), self.said.append, pressure)
        try:
            yield hydrator
        finally:
            for directory in sorted(self.store.machines.iterdir()):
                await hydrator.detach(directory.name)
            await hydrator.close()


async def eventually(condition: object, seconds: float = 20.0) -> None:
    """Waits until ``condition()`` is true."""
    assert callable(condition)
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)
