"""A layer with its pack, for tests: converted for real, its chunks put into zstd frames here, plainly."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import zstandard

from castoff.image.digest import Digest
from castoff.layers.index import LayerIndex
from castoff.layers.locations import LocationKind, Locations
from castoff.layers.toc import CHUNK
from castoff.rootfs.remote import RemoteLayer
from castoff.store.store import Store
from layer_reader import convert_bytes
from oci_builder import LayerTar

__all__ = ["PackedLayer", "begin", "packed_layer", "random_files"]


@dataclass(frozen=True)
class PackedLayer:
    """A layer, its segment's bytes and its pack's."""

    index: LayerIndex
    """With locations in the pack."""
    segment: bytes = field(repr=False)
    pack: bytes = field(repr=False)
    tar: bytes = field(repr=False)

    @property
    def digest(self) -> Digest:
        """The pack's."""
        return self.index.locations.blobs[0]

    def chunk(self, number: int) -> bytes:
        """The bytes of a chunk."""
        return self.segment[number * CHUNK : (number + 1) * CHUNK]

    @property
    def packed(self) -> list[int]:
        """Numbers of the chunks that are in the pack."""
        return [int(number) for number in np.flatnonzero(~self.index.zero)]


def random_files(seed: int, *, chunks: int = 12, zeros: int = 2) -> dict[str, bytes]:
    """Files of about so many chunks that do not compress, and one of zeros."""
    dice = random.Random(seed)
    files = {f"data/{number}": dice.randbytes(CHUNK - 4096 * dice.randrange(8)) for number in range(chunks)}
    return files | {"data/zeros": bytes(zeros * 4 * CHUNK), "data/text": b"to be or not to be\n" * 30_000}


async def packed_layer(directory: Path, files: Mapping[str, bytes], *, gap: int = 0) -> PackedLayer:
    """Converts a layer of these files in ``directory``, and packs it.

    Args:
        directory: Made if need be; afterwards it has the segment and the index, without locations.
        files: Names and contents.
        gap: Bytes of nothing between the pack's frames.
    """
    layer = LayerTar().directory("data")
    for name, data in files.items():
        layer.file(name, data)
    index = await convert_bytes(directory, layer.bytes())
    segment = (directory / "segment").read_bytes()
    return pack(index, segment, layer.bytes(), gap=gap)


def pack(index: LayerIndex, segment: bytes, tar: bytes, *, gap: int = 0) -> PackedLayer:
    """The pack of a segment: frames in the segment's order, zero chunks left out."""
    compressor = zstandard.ZstdCompressor(level=1)
    count = len(index.zero)
    kind, blob = np.zeros(count, np.uint8), np.zeros(count, np.uint32)
    offset, length = np.zeros(count, np.uint64), np.zeros(count, np.uint32)
    data = bytearray()
    for number in np.flatnonzero(~index.zero):
        frame = compressor.compress(segment[number * CHUNK : (number + 1) * CHUNK])
        kind[number], offset[number], length[number] = LocationKind.PACK, len(data), len(frame)
        data += frame + bytes(gap)
    locations = Locations(kind, blob, offset, length, (Digest.of(bytes(data)),))
    return PackedLayer(replace(index, locations=locations), segment, bytes(data), tar)


async def begin(store: Store, layers: Sequence[PackedLayer], pins: ExitStack) -> list[RemoteLayer]:
    """Layers of the store that come in, nothing of them here; pinned until ``pins`` closes."""
    found = []
    for layer in layers:
        stored = await store.begin_layer(layer.index.diff_id, layer.index)
        pins.callback(stored.pin.close)
        found.append(RemoteLayer(stored, layer.index, layer.digest))
    return found
