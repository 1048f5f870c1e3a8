"""Layers that come in without a machine that waits for them: ahead of need, in large requests, and on where it stopped.

A bit in ``have`` is set only when its chunk was verified and flushed, so whatever ends this (a crash, Ctrl-C, a registry
that is gone), the next time fetches what is missing and nothing else. A hydrator may fill the same layers meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from castoff import timeline
from castoff.errors import Unavailable
from castoff.image.digest import Digest
from castoff.layers.index import LayerIndex
from castoff.layers.toc import CHUNK
from castoff.rootfs.remote import RemoteLayer
from castoff.sources.chunks import ChunkReader
from castoff.store.builds import uninterrupted
from castoff.store.incoming import IncomingSegment
from castoff.store.space import no_space_as
from castoff.store.store import Store

__all__ = ["fetch_layers"]

Numbers = Sequence[int] | NDArray[np.int64]

_BATCH = 64
"""Chunks (16 MiB) that are flushed together: what a crash may cost."""
_SOON = 0.2
"""Seconds after which they are flushed in any case: other hosts are given only what a crash cannot take back."""


async def fetch_layers(
    layers: Sequence[RemoteLayer], reader: ChunkReader, store: Store, *, only: Mapping[Digest, Numbers] | None = None
) -> int:
    """Fetches what is missing of layers; those of which nothing is missing become complete.

    Args:
        layers: Pinned; one that is there twice is fetched once.
        reader: Where chunks come from.
        store: Knows how much may be written.
        only: Of each layer the chunks to fetch, in the order in which they are wanted; None: all.

    Returns:
        Bytes of packs that were fetched.

    Raises:
        NoSpace: What is missing does not fit.
        CastoffError: What the sources raised; what came before it is kept.
    """
    distinct = {layer.stored.diff_id: layer for layer in layers if not layer.stored.complete}
    wanted = {diff_id: _missing(layer, only) for diff_id, layer in distinct.items()}
    sizes = {diff_id: _packed(layer.index, wanted[diff_id]) for diff_id, layer in distinct.items()}
    await asyncio.to_thread(store.require, sum(map(_room, distinct.values(), wanted.values())), store.root / "layers")
    with timeline.step("rootfs.preload", layers=len(distinct), total=sum(sizes.values())):
        for diff_id, layer in distinct.items():
            await _fetch(layer, wanted[diff_id], reader)
    return sum(sizes.values())


async def _fetch(layer: RemoteLayer, numbers: Sequence[int], reader: ChunkReader) -> None:
    """Fetches chunks of one layer."""
    lengths = layer.index.locations.length
    with closing(IncomingSegment(layer.stored)) as segment, no_space_as(layer.stored.segment):
        with timeline.step("sources.chunks", layer=str(layer.stored.diff_id), total=_packed(layer.index, numbers)) as step:
            try:
                async with _flushing(segment), aclosing(reader.fetch(layer.index, numbers)) as chunks:
                    async for number, data in chunks:
                        await asyncio.to_thread(_write, segment, number, data, layer.stored.segment)
                        step.advance(int(lengths[number]))
            finally:
                await uninterrupted(segment.flush)
        await uninterrupted(segment.finish)


@contextlib.asynccontextmanager
async def _flushing(segment: IncomingSegment) -> AsyncIterator[None]:
    """For the block what was written is flushed soon, also while nothing comes in."""

    async def flush() -> None:
        while True:
            await asyncio.sleep(_SOON)
            if segment.unflushed:
                with contextlib.suppress(OSError):  # whoever ends the layer flushes too, and is told
                    await uninterrupted(segment.flush)

    task = asyncio.create_task(flush())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _write(segment: IncomingSegment, number: int, data: bytes, path: Path) -> None:
    """Writes a verified chunk; flushes now and then. Blocks."""
    try:
        segment.write(number, data)
    except OSError as error:
        raise Unavailable(f"{path} cannot be written: {error.strerror}", hint="look at the disk") from error
    if segment.unflushed >= _BATCH:
        segment.flush()


def _missing(layer: RemoteLayer, only: Mapping[Digest, Numbers] | None) -> list[int]:
    absent = ~layer.stored.present()
    numbers = np.flatnonzero(absent) if only is None else np.asarray(only.get(layer.stored.diff_id, ()), np.int64)
    numbers = numbers[numbers < len(absent)]
    missing: list[int] = numbers[absent[numbers]].tolist()
    return missing


def _packed(index: LayerIndex, numbers: Sequence[int]) -> int:
    """Bytes that chunks have in their pack."""
    return int(index.locations.length[np.array(numbers, np.int64)].sum())


def _room(layer: RemoteLayer, numbers: Sequence[int]) -> int:
    """Bytes of disk that chunks will take; most have them reserved already."""
    reserved = layer.stored.segment.stat().st_blocks * 512
    return max(0, min(len(numbers) * CHUNK, layer.index.segment_size - reserved))
