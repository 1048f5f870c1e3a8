"""Is an artifact what its image's own layers give? They are fetched and converted anew, and every digest is compared.

Everything in an artifact follows from the layers, so whoever doubts a key can do what its owner did. What another version
of the compressor made may differ in the pack's bytes; then what is in it decides: the digest of each chunk.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from functools import partial
from typing import TYPE_CHECKING

from castoff.config import Config
from castoff.create import opened
from castoff.image.image import Layer, Platform
from castoff.rootfs.context import ProviderContext
from castoff.store.builds import uninterrupted
from castoff.store.scratch import scratch
from castoff.store.store import Store
from castoff.timeline import step

if TYPE_CHECKING:
    from castoff.artifact.artifact import ArtifactLayer
    from castoff.image.client import RegistryClient
    from castoff.image.source import ImageSource
    from castoff.layers.index import LayerIndex
    from castoff.rootfs.verify import Verdict

__all__ = ["verify_origin"]


async def verify_origin(
    reference: str, *, platform: Platform | None, config: Config, store: Store, providers: ProviderContext
) -> tuple[Verdict, ...]:
    """Compares the trusted artifact of an image with its origin; see ``Host.verify_origin``."""
    from castoff.artifact.repository import open_repository
    from castoff.rootfs.trusted import trusted_artifact

    async with opened(reference, platform, config=config, store=store) as (source, image):
        artifact = await trusted_artifact(image, providers)
        published = {layer.diff_id: layer for layer in artifact.layers}
        origin = {layer.diff_id: layer for layer in image.layers}
        with step("origin", image=reference, total=sum(layer.size for layer in origin.values())):
            async with open_repository(artifact.repository, providers.image) as client:
                return tuple(
                    [
                        await _verify(layer, published[diff_id], source, client, store, providers)
                        for diff_id, layer in origin.items()
                    ]
                )


async def _verify(
    layer: Layer,
    published: ArtifactLayer,
    source: ImageSource,
    client: RegistryClient,
    store: Store,
    providers: ProviderContext,
) -> Verdict:
    from castoff.errors import Invalid
    from castoff.layers.convert import convert
    from castoff.layers.index import read_index
    from castoff.layers.packing import write_pack
    from castoff.rootfs.remote import fetch_index
    from castoff.rootfs.verify import Verdict

    name = str(layer.diff_id)
    try:
        told = await fetch_index(published, client, providers.limits)
    except Invalid as error:
        return Verdict("layer", name, error.what)
    async with scratch(store.root) as directory:
        async with source.open_blob(layer) as blob:
            await convert(layer, blob, directory, providers.limits)
        made = await asyncio.to_thread(read_index, directory / "index")
        problem = await asyncio.to_thread(_difference, told, made)
        if problem:
            return Verdict("layer", name, problem)
        stop = threading.Event()
        make = partial(write_pack, directory / "segment", made, directory / "pack", stopped=stop.is_set)
        pack = await uninterrupted(make, cancelled=stop.set)
    if pack.digest == published.pack.digest:
        return Verdict("layer", name, "")
    return Verdict("layer", name, "", f"every chunk is as published, and its pack is not as {pack.compressor} makes it here")


def _difference(told: LayerIndex, made: LayerIndex) -> str:
    """What an artifact's index says that the origin does not give; empty where nothing is."""
    from castoff.layers.index import encode_index
    from castoff.layers.locations import Locations

    if told.segment_size != made.segment_size:
        return f"its segment has {told.segment_size} bytes in the artifact, and its origin gives {made.segment_size}"
    wrong = (told.digests != made.digests).any(axis=1) | (told.zero != made.zero)
    if wrong.any():
        return f"{int(wrong.sum())} of {len(wrong)} chunks are not what its origin gives, the first is {int(wrong.argmax())}"
    local = Locations.local(len(wrong))
    one, other = (b"".join(encode_index(dataclasses.replace(index, locations=local))) for index in (told, made))
    return "" if one == other else "its table of contents is not what its origin gives"
