"""An artifact's layers become layers of the store that come in later: their indexes are fetched, nothing of their data is.

Nothing is believed: a blob must have its digest, an index must be of the layer that the artifact says and may name no other
blob than that layer's pack, within its bounds. Chunks are checked one by one when they come in (castoff.sources.chunks).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from castoff import timeline
from castoff.artifact.artifact import Artifact, ArtifactLayer, Blob
from castoff.artifact.repository import open_repository
from castoff.errors import Invalid, LimitExceeded
from castoff.image.client import RegistryClient
from castoff.image.digest import Digest
from castoff.image.verify import check
from castoff.layers.index import LayerIndex, read_index
from castoff.layers.pack import check_locations
from castoff.layers.published import read_published
from castoff.layers.settings import Limits
from castoff.rootfs.composition import layer_tables
from castoff.rootfs.context import ProviderContext
from castoff.store.layers import StoredLayer
from castoff.together import together

__all__ = ["RemoteLayer", "begin_layers", "fetch_index"]

_AN_ENTRY = 128
"""Bytes that an entry of a published index may have; most have a fifth of it."""


@dataclass(frozen=True, slots=True)
class RemoteLayer:
    """A layer of the store, and its index."""

    stored: StoredLayer
    index: LayerIndex
    pack: Digest


async def begin_layers(diff_ids: Sequence[Digest], artifact: Artifact, context: ProviderContext) -> dict[Digest, RemoteLayer]:
    """The layers, pinned: those that are here as they are, and the others with nothing but their indexes.

    Args:
        diff_ids: The image's.
        artifact: The image's, trusted.
        context: The store, and how to reach registries.

    Raises:
        Invalid: The artifact lacks a layer, or an index is broken, or of another layer.
        CastoffError: The registry did not give an index, or the store cannot take it.
    """
    published = {layer.diff_id: layer for layer in artifact.layers}
    wanted = dict.fromkeys(diff_ids)
    for diff_id in wanted:
        if diff_id not in published:
            raise Invalid(f"the artifact {artifact.digest} has no layer {diff_id}", hint="publish the image again")
    layers = [published[diff_id] for diff_id in wanted]
    with timeline.step("rootfs.remote", layers=len(layers), total=sum(layer.index.size for layer in layers)) as step:
        async with open_repository(artifact.repository, context.image) as client:

            async def begin(layer: ArtifactLayer) -> RemoteLayer:
                found = await _begin(layer, client, context)
                step.advance(layer.index.size)
                return found

            begun = await together(begin(layer) for layer in layers)
    return {layer.stored.diff_id: layer for layer in begun}


async def _begin(layer: ArtifactLayer, client: RegistryClient, context: ProviderContext) -> RemoteLayer:
    here = context.store.layer(layer.diff_id)
    if here is not None:
        index = await asyncio.to_thread(read_index, here.index)
        if here.complete or index.locations.blobs == (layer.pack.digest,):
            return RemoteLayer(here, index, layer.pack.digest)
    index = await fetch_index(layer, client, context.limits)
    stored = await context.store.begin_layer(layer.diff_id, index)
    await asyncio.to_thread(layer_tables, stored.path, index.toc)  # while other indexes still come in
    return RemoteLayer(stored, index, layer.pack.digest)


async def fetch_index(layer: ArtifactLayer, client: RegistryClient, limits: Limits) -> LayerIndex:
    """A layer's published index, checked against all that the artifact says of it.

    Raises:
        DigestMismatch, Invalid: It is something else.
        CastoffError: It is not to be had.
    """
    what = f"the index of layer {layer.diff_id}"
    data = await read_blob(what, layer.index, client, limit=limits.max_entries * _AN_ENTRY)

    def read() -> LayerIndex:
        index = read_published(check(what, data, layer.index.digest, layer.index.size), limits)
        _check_index(what, index, layer)
        return index

    with timeline.step("layers.published", layer=str(layer.diff_id)):
        return await asyncio.to_thread(read)


async def read_blob(what: str, blob: Blob, client: RegistryClient, *, limit: int) -> bytes:
    """A small blob, whole; its digest is the caller's to check, in a thread."""
    if blob.size > limit:
        raise LimitExceeded(f"{what}, in bytes,", limit=limit, setting="layers.max_entries")
    data, _ = await client.read(what, f"blobs/{blob.digest}", "*/*", blob.size)
    return data


def _check_index(what: str, index: LayerIndex, layer: ArtifactLayer) -> None:
    if index.diff_id != layer.diff_id:
        raise Invalid(f"{what} is that of layer {index.diff_id}", hint="publish the image again")
    check_locations(index, layer.pack.digest, layer.pack.size)
