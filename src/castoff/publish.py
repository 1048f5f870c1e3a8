"""The story of a publish: an image's layers are converted where they are not here, packed, and pushed, each as it comes.

A layer that is converted for it is packed in the same pass; one that is here already is packed from its segment; one whose
blobs the registry has is neither. Packing takes all processors, so one segment at a time is packed, while others' blobs
travel.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from castoff.artifact.keys import HostKey, host_key
from castoff.artifact.manifest import Subject
from castoff.artifact.pin import push_index
from castoff.artifact.publish import Published, publish_artifact
from castoff.artifact.repository import parse_repository
from castoff.artifact.trust import load_trust
from castoff.config import Config
from castoff.create import opened
from castoff.errors import Invalid
from castoff.hydrate.profile_file import load_profile
from castoff.hydrate.sharing import Sharing, share_profile
from castoff.image.image import Image, Layer, Platform
from castoff.image.push import RegistryWriter
from castoff.image.reference import Reference, RegistryReference, parse_reference
from castoff.image.source import ImageSource
from castoff.layers.index import LayerIndex, read_index
from castoff.layers.pack import Pack
from castoff.layers.packing import write_pack
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.conversion import convert_layer
from castoff.store.builds import uninterrupted
from castoff.store.layers import StoredLayer
from castoff.store.store import Store
from castoff.timeline import step

__all__ = ["publish"]


async def publish(
    reference: str,
    *,
    to: str | None,
    index: bool,
    platform: Platform | None,
    config: Config,
    providers: ProviderContext,
) -> Published:
    """Publishes the artifact of an image; see ``Host.publish``."""
    image_reference = parse_reference(reference)
    target = _target(image_reference, to)
    if index and (not isinstance(image_reference, RegistryReference) or target.name != image_reference.name):
        raise Invalid(
            f"{target.name} does not have {reference}, so no index there can list it", hint="leave --to or --index away"
        )
    store = providers.store
    key = await uninterrupted(host_key, store.state)
    writer = RegistryWriter(target, config.image)
    try:
        async with opened(reference, platform, config=config, store=store) as (source, image):
            packing = _Packing(source, providers)
            found = await publish_artifact(image, writer, store=store.root, packer=packing, key=key)
            await _share_profile(image, writer, key, store)
        if index:
            assert isinstance(image_reference, RegistryReference)
            pinned = await push_index(writer, image_reference, found, limit=config.image.max_manifest_size)
            found = found.pinned_by(pinned)
    finally:
        await writer.close()
    await store.keep_to_limit()
    return found


async def _share_profile(image: Image, writer: RegistryWriter, key: HostKey, store: Store) -> None:
    """Publishes what this host's machines of the image recorded, where that is news."""
    if await asyncio.to_thread(load_profile, store, image.digest) is None:
        return
    stored = [store.layer(diff_id) for diff_id in dict.fromkeys(layer.diff_id for layer in image.layers)]  # pinned
    layers = {layer.diff_id: (layer.segment, await asyncio.to_thread(read_index, layer.index)) for layer in stored if layer}
    trust = await asyncio.to_thread(load_trust, store.state)
    subject = Subject(image.media_type, image.digest, image.size)
    await share_profile(Sharing(store.root, writer, key, trust, subject, layers))


def _target(reference: Reference, to: str | None) -> RegistryReference:
    if to is not None:
        return parse_repository(to)
    if not isinstance(reference, RegistryReference):
        raise Invalid(f"{reference} is on disk, and an artifact lies in a registry", hint="name a repository with --to")
    return reference


class _Packing:
    """Makes packs of layers: a :data:`castoff.artifact.publish.Packer`."""

    def __init__(self, source: ImageSource, providers: ProviderContext) -> None:
        self._source = source
        self._providers = providers
        self._conversions = asyncio.Semaphore(providers.settings.parallel)
        self._alone = asyncio.Lock()

    async def __call__(self, layer: Layer, target: Path) -> tuple[LayerIndex, Pack]:
        store = self._providers.store
        stored = store.layer(layer.diff_id)
        here = stored is not None and stored.complete
        # A pack is about as large as the layer's blob, a segment larger; castoff.rootfs.conversion looks again.
        await asyncio.to_thread(store.require, layer.size if here else 2 * layer.size, store.root)
        if stored is None or not stored.complete:
            async with self._conversions:
                converted = await convert_layer(layer, self._source, self._providers, pack=target)
            stored = converted.stored
            if converted.pack is not None:
                return await asyncio.to_thread(read_index, stored.index), converted.pack
        async with self._alone:
            return await _pack(stored, target)


async def _pack(layer: StoredLayer, target: Path) -> tuple[LayerIndex, Pack]:
    stop = threading.Event()

    def work() -> tuple[LayerIndex, Pack]:
        index = read_index(layer.index)
        with step("layers.pack", layer=str(layer.diff_id), total=index.segment_size) as current:
            pack = write_pack(layer.segment, index, target, advance=current.advance, stopped=stop.is_set)
        return index, pack

    return await uninterrupted(work, cancelled=stop.set)
