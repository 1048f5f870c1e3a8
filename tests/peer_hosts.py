"""Hosts that give chunks to one another, for tests: real stores, real doors, a registry in memory that counts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from castoff.agent.peers.server import serving_peers
from castoff.image.digest import Digest
from castoff.layers.locations import LocationKind, Locations
from castoff.layers.pack import HEAD, pack_chunk
from castoff.layers.toc import CHUNK
from castoff.peers.settings import PeerSettings
from castoff.store.incoming import IncomingSegment
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from packed_layer import PackedLayer, packed_layer

__all__ = ["Sharing", "put", "real_pack", "sharing"]


async def real_pack(directory: Path, files: dict[str, bytes]) -> PackedLayer:
    """A layer with its pack as castoff makes it."""
    layer = await packed_layer(directory, files)
    count = len(layer.index.zero)
    kind, offset, length = np.zeros(count, np.uint8), np.zeros(count, np.uint64), np.zeros(count, np.uint32)
    data = bytearray(HEAD)
    for number in layer.packed:
        frame = pack_chunk(layer.segment[number * CHUNK : (number + 1) * CHUNK])
        kind[number], offset[number], length[number] = LocationKind.PACK, len(data), len(frame)
        data += frame
    locations = Locations(kind, np.zeros(count, np.uint32), offset, length, (Digest.of(bytes(data)),))
    return PackedLayer(replace(layer.index, locations=locations), layer.segment, bytes(data), layer.tar)


@dataclass(frozen=True, slots=True)
class Sharing:
    """A host that serves others."""

    store: Store
    url: str


async def put(store: Store, layer: PackedLayer, numbers: Sequence[int] | None = None) -> None:
    """Has chunks of a layer in a store: all, or those of ``numbers``."""
    stored = await store.begin_layer(layer.index.diff_id, layer.index)
    segment = IncomingSegment(stored)
    for number in layer.packed if numbers is None else numbers:
        segment.write(number, layer.chunk(number))
    segment.finish()
    segment.close()
    stored.pin.close()


@contextlib.asynccontextmanager
async def sharing(
    directory: Path, layers: Sequence[PackedLayer] = (), settings: PeerSettings | None = None
) -> AsyncIterator[Sharing]:
    """A host with a store of its own, which serves what it has."""
    store = Store.open(directory, StoreSettings(backing="native"))
    for layer in layers:
        await put(store, layer)
    settings = settings or PeerSettings(listen="127.0.0.1:0")
    scheme = "http" if settings.authority is None else "https"
    async with serving_peers(settings, store, lambda: False) as address:
        yield Sharing(store, f"{scheme}://{address}")
