"""Hot packs of made-up layers, and the connections that they come over, for tests."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

from castoff.errors import CastoffError
from castoff.hydrate.hotpack import HotPack, write_hot_pack
from castoff.hydrate.profile import Boot, ChunkId, Profile
from castoff.image.digest import Digest
from castoff.layers.index import LayerIndex
from castoff.layers.toc import CHUNK
from layer_reader import convert_bytes
from oci_builder import LayerTar

__all__ = ["IMAGE", "Case", "make_case", "pieces"]

IMAGE = Digest("f" * 64)


@dataclass(frozen=True)
class Case:
    """An image of two layers, a profile of it, and its hot pack."""

    layers: dict[Digest, tuple[Path, LayerIndex]]
    profile: Profile
    pack: HotPack
    data: bytes

    @property
    def indexes(self) -> dict[Digest, LayerIndex]:
        return {diff_id: index for diff_id, (_, index) in self.layers.items()}

    def bytes_of(self, chunk: ChunkId) -> bytes:
        """From the segment."""
        segment = self.layers[chunk.diff_id][0].read_bytes()
        return segment[chunk.number * CHUNK : (chunk.number + 1) * CHUNK]


async def make_case(directory: Path) -> Case:
    """Chunks that compress and such that do not, a short last one, one of zeros; read in no order of the segments."""
    layers = {}
    for number in range(2):
        noise = random.Random(number).randbytes(5 * CHUNK)
        tar = (
            LayerTar().file("noise", noise).file("text", b"words " * 300_000).file("zeros", bytes(4 * CHUNK)).file("end", b"end")
        )
        index = await convert_bytes(directory / f"layer{number}", tar.bytes())
        layers[index.diff_id] = (directory / f"layer{number}" / "segment", index)
    found = [ChunkId(diff_id, at) for diff_id, (_, index) in layers.items() for at in range(len(index.digests))]
    random.Random(3).shuffle(found)
    profile = Profile.of(IMAGE, [Boot(1, "0" * 16, (*found, ChunkId(Digest("9" * 64), 0)))])
    pack = write_hot_pack(profile, layers, directory / "hot")
    assert pack is not None
    return Case(layers, profile, pack, (directory / "hot").read_bytes())


async def pieces(
    data: bytes, sizes: Sequence[int] = (65536,), *, fail: CastoffError | None = None
) -> AsyncGenerator[bytes, None]:
    """As they come off a connection."""
    at = number = 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        yield data[at : at + size]
        at += size
        number += 1
        await asyncio.sleep(0)
    if fail is not None:
        raise fail
