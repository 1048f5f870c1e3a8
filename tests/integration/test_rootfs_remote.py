"""Layers that begin from an artifact's indexes: nothing in an artifact is believed before it was compared."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from castoff.artifact.artifact import Artifact, ArtifactLayer
from castoff.artifact.artifact import Blob as Place
from castoff.errors import CastoffError, DigestMismatch, Invalid, LimitExceeded
from castoff.image.digest import Digest
from castoff.layers.index import LayerIndex
from castoff.layers.locations import Locations
from castoff.layers.pack import Pack
from castoff.layers.packing import write_pack
from castoff.layers.published import publish_index
from castoff.layers.settings import Limits
from castoff.layers.toc import CHUNK
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.remote import begin_layers
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from hostile_registry import HostileRegistry
from layer_reader import convert_bytes
from oci_builder import Blob, LayerTar


@dataclass(frozen=True)
class Layer:
    """A layer as a publisher has it."""

    index: LayerIndex
    pack: Pack

    @property
    def published(self) -> LayerIndex:
        return dataclasses.replace(self.index, locations=self.pack.locations)


@pytest.fixture(name="layers")
async def _layers(tmp_path: Path) -> list[Layer]:
    """Two, of random files."""
    return [await _layer(tmp_path / str(seed), seed) for seed in (1, 2)]


async def _layer(directory: Path, seed: int) -> Layer:
    tar = LayerTar().file("data", random.Random(seed).randbytes(5 * CHUNK)).file("zeros", bytes(5 * CHUNK))
    index = await convert_bytes(directory, tar.bytes())
    return Layer(index, write_pack(directory / "segment", index, directory / "pack"))


@pytest.fixture(name="context")
def _context(scratch_xfs: Path) -> ProviderContext:
    return ProviderContext(Store.open(scratch_xfs / "state", StoreSettings(backing="native")))


def _artifact(host: str, layers: list[Layer], blobs: list[bytes]) -> Artifact:
    rows = tuple(
        ArtifactLayer(layer.index.diff_id, Place(Digest.of(blob), len(blob)), Place(layer.pack.digest, layer.pack.size))
        for layer, blob in zip(layers, blobs, strict=True)
    )
    return Artifact(f"{host}/team/app", Digest("0" * 64), Digest("1" * 64), rows, "somebody")


def _serve(registry: HostileRegistry, artifact: Artifact, blobs: list[bytes]) -> None:
    for layer, blob in zip(artifact.layers, blobs, strict=True):
        registry.put(f"/v2/team/app/blobs/{layer.index.digest}", Blob(blob, "application/octet-stream"))


async def test_layers_begin_with_nothing_but_their_indexes(layers: list[Layer], context: ProviderContext) -> None:
    """One request a layer, none of a pack; asked again, none at all; a layer that is twice in an image begins once."""
    registry, blobs = HostileRegistry(), [publish_index(layer.published) for layer in layers]
    async with registry.running() as host:
        artifact = _artifact(host, layers, blobs)
        _serve(registry, artifact, blobs)
        ids = [layer.index.diff_id for layer in layers]
        begun = await begin_layers([*ids, ids[0]], artifact, context)
        asked = registry.paths("GET")
        again = await begin_layers(ids, artifact, context)
        assert registry.paths("GET") == asked
    assert sorted(asked) == sorted(f"/v2/team/app/blobs/{layer.index.digest}" for layer in artifact.layers)
    assert list(begun) == ids
    for layer in layers:
        found = begun[layer.index.diff_id]
        assert not found.stored.complete
        assert found.stored.segment.stat().st_size == layer.index.segment_size
        assert found.stored.present().tolist() == layer.index.zero.tolist()
        assert (found.index.digests == layer.index.digests).all()
        assert (again[layer.index.diff_id].index.digests == layer.index.digests).all()


Forge = Callable[[list[Layer]], list[bytes]]


def _swapped(layers: list[Layer]) -> list[bytes]:
    return [publish_index(layer.published) for layer in reversed(layers)]


def _elsewhere(layers: list[Layer]) -> list[bytes]:
    """Chunks of the first are said to be in the second's pack."""
    locations = dataclasses.replace(layers[0].pack.locations, blobs=(layers[1].pack.digest,))
    return [publish_index(dataclasses.replace(layers[0].index, locations=locations)), publish_index(layers[1].published)]


def _beyond(layers: list[Layer]) -> list[bytes]:
    locations = layers[0].pack.locations
    moved = dataclasses.replace(locations, offset=locations.offset + layers[0].pack.size * (locations.kind != 0))
    return [publish_index(dataclasses.replace(layers[0].index, locations=moved)), publish_index(layers[1].published)]


def _nowhere(layers: list[Layer]) -> list[bytes]:
    local = dataclasses.replace(layers[0].index, locations=Locations.local(len(layers[0].index.zero)))
    return [publish_index(local), publish_index(layers[1].published)]


def _broken(layers: list[Layer]) -> list[bytes]:
    return [publish_index(layers[0].published)[:-9], publish_index(layers[1].published)]


@pytest.mark.parametrize(
    ("forge", "told"),
    [
        (_swapped, "is that of layer"),
        (_elsewhere, "not in its pack"),
        (_beyond, "outside of its pack"),
        (_nowhere, "not in its pack"),
        (_broken, "cannot be decompressed"),
    ],
)
async def test_what_an_index_may_not_say(layers: list[Layer], context: ProviderContext, forge: Forge, told: str) -> None:
    """Signed or not: nothing of that layer begins."""
    registry, blobs = HostileRegistry(), forge(layers)
    async with registry.running() as host:
        artifact = _artifact(host, layers, blobs)
        _serve(registry, artifact, blobs)
        with pytest.raises(Invalid, match=told):
            await begin_layers([layer.index.diff_id for layer in layers], artifact, context)
    assert context.store.layer(layers[0].index.diff_id) is None


async def test_another_blob_than_the_artifact_names_is_refused(layers: list[Layer], context: ProviderContext) -> None:
    """A registry that gives other bytes of the same length, one bit changed."""
    registry, blobs = HostileRegistry(), [publish_index(layer.published) for layer in layers]
    async with registry.running() as host:
        artifact = _artifact(host, layers, blobs)
        _serve(registry, artifact, [bytes([blob[0], blob[1] ^ 1, *blob[2:]]) for blob in blobs])
        with pytest.raises(DigestMismatch):
            await begin_layers([layers[0].index.diff_id], artifact, context)
    assert context.store.layer(layers[0].index.diff_id) is None


async def test_an_artifact_that_lacks_a_layer_is_none(layers: list[Layer], context: ProviderContext) -> None:
    """Seen before anything is fetched."""
    artifact = _artifact("127.0.0.1:1", layers[:1], [b"index"])
    with pytest.raises(Invalid, match="has no layer"):
        await begin_layers([layer.index.diff_id for layer in layers], artifact, context)


async def test_an_index_too_large_is_not_fetched(layers: list[Layer], context: ProviderContext) -> None:
    """The limits that bound conversions bound it."""
    small = dataclasses.replace(context, limits=Limits(max_entries=1))
    artifact = _artifact("127.0.0.1:1", layers[:1], [bytes(4096)])
    with pytest.raises(LimitExceeded):
        await begin_layers([layers[0].index.diff_id], artifact, small)


async def test_a_failure_ends_the_others(layers: list[Layer], context: ProviderContext) -> None:
    """A registry that has one of two indexes."""
    registry, blobs = HostileRegistry(), [publish_index(layer.published) for layer in layers]
    async with registry.running() as host:
        artifact = _artifact(host, layers, blobs)
        _serve(registry, Artifact(artifact.repository, artifact.digest, artifact.image, artifact.layers[:1], ""), blobs[:1])
        with pytest.raises(CastoffError, match="nothing of that name"):
            await begin_layers([layer.index.diff_id for layer in layers], artifact, context)
