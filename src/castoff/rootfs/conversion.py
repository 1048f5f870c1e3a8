"""The layers that an image lacks on this host: converted all at once, as many at a time as the settings allow.

A layer's tables are compiled in a thread as soon as it is converted, beside the conversion of the others. Room is looked
after twice: a conversion that cannot fit is refused before its first byte, and one that turns out to unpack to more is
stopped before the disk is full, since below a loop-mounted store a full disk shows as I/O errors, not as ENOSPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from castoff import timeline
from castoff.errors import NoSpace
from castoff.image.image import Image, Layer
from castoff.image.source import ImageSource
from castoff.layers.convert import convert
from castoff.layers.pack import Pack
from castoff.rootfs.context import ProviderContext
from castoff.store.builds import uninterrupted
from castoff.store.layers import StoredLayer
from castoff.store.store import Store
from castoff.together import together

__all__ = ["ConvertedLayer", "convert_layer", "convert_layers"]

_LOOK = 8 << 20
"""Compressed bytes after which free space is looked at again."""


@dataclass(frozen=True, slots=True)
class ConvertedLayer:
    """A layer that was not here and is now.

    Attributes:
        stored: The layer, complete and pinned.
        pack: Its pack, if one was asked for and the layer was converted by us.
        is_ours: Whether it was converted by us.
    """

    stored: StoredLayer
    pack: Pack | None
    is_ours: bool


async def convert_layers(image: Image, source: ImageSource, context: ProviderContext) -> tuple[list[StoredLayer], bool]:
    """The image's layers, complete and pinned, the lowest first; and whether any of them was converted by us.

    Raises:
        Invalid, NoSpace, CastoffError: As castoff.layers.convert and the source raise; the other conversions are stopped.
    """
    distinct = {layer.diff_id: layer for layer in image.layers}
    here = ((diff_id, context.store.layer(diff_id)) for diff_id in distinct)
    found = {diff_id: layer for diff_id, layer in here if layer is not None and layer.complete}
    missing = [layer for diff_id, layer in distinct.items() if diff_id not in found]
    await asyncio.to_thread(_foresee, missing, context.store)
    turns = asyncio.Semaphore(context.settings.parallel)

    async def take_turn(layer: Layer) -> ConvertedLayer:
        async with turns:
            return await convert_layer(layer, source, context)

    with timeline.step("rootfs.conversion", layers=len(missing), total=sum(layer.size for layer in missing)):
        converted = await together(take_turn(layer) for layer in missing)
    layers = {layer.diff_id: layer for layer in (*found.values(), *(one.stored for one in converted))}
    return [layers[layer.diff_id] for layer in image.layers], any(one.is_ours for one in converted)


async def convert_layer(
    layer: Layer, source: ImageSource, context: ProviderContext, *, pack: Path | None = None
) -> ConvertedLayer:
    """One layer, converted here unless it is here already, or somebody else does it, on this host or on another.

    Args:
        layer: The layer.
        source: Where its blob comes from.
        context: The store and the limits.
        pack: A file, not there yet, for the layer's pack.

    Raises:
        Invalid, NoSpace, CastoffError: As castoff.layers.convert and the source raise.
    """
    made: Pack | None = None
    is_ours = False

    async def build(directory: Path) -> None:
        nonlocal made, is_ours
        async with source.open_blob(layer) as blob:
            pieces = _watched(blob, layer, directory, context.store)
            made = await convert(layer, pieces, directory, context.limits, pack=pack)
        await uninterrupted(_compile, directory)
        is_ours = True

    async with context.builds.turn(layer, context) as given:
        if given is None:
            stored = await context.store.build_layer(layer.diff_id, build)
            return ConvertedLayer(stored, made, is_ours)
    return ConvertedLayer(given, None, is_ours=False)


def _compile(directory: Path) -> None:
    from castoff.rootfs.composition import compile_layer  # 0.1 s, spent while other layers still come in

    compile_layer(directory)


def _foresee(missing: Sequence[Layer], store: Store) -> None:
    """Refuses what cannot fit: a segment is hardly ever smaller than its layer's blob."""
    if missing:
        store.require(sum(layer.size for layer in missing), store.root / "layers")


async def _watched(blob: AsyncIterator[bytes], layer: Layer, directory: Path, store: Store) -> AsyncIterator[bytes]:
    """The blob's pieces; an error as soon as what is to come will not fit into what is free."""
    taken, looked = 0, 0
    async for piece in blob:
        yield piece
        taken += len(piece)
        if taken - looked >= _LOOK:
            looked = taken
            await asyncio.to_thread(_look, layer, taken, directory, store)


def _look(layer: Layer, taken: int, directory: Path, store: Store) -> None:
    """Compares what the rest of the layer will take, if it is like what has come, with what is free."""
    segment = directory / "segment"
    written = segment.stat().st_size if segment.exists() else 0
    coming = written * (layer.size - taken) // taken
    # A layer may begin with what packs well, so a guess counts only late, and only if it is far over what there is.
    least = coming // 2 if taken * 4 >= layer.size else 0
    room = store.room(least)
    if least >= room:
        raise NoSpace(f"{store.root} (layer {layer.digest})", needed=max(coming, 1), available=max(room, 0))
