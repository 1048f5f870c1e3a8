"""The story of a preload: all that an image's machines need is made ready before anybody asks for one.

its rootfs is here?                       -> nothing is left to do
a trusted artifact is there?              -> its layers' missing chunks are fetched (or only those of the boot profile)
else                                      -> the layers are converted from their origin
every layer is complete                   -> composed: the next create is a warm one
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from castoff.config import Config
from castoff.create import locate, opened
from castoff.errors import CastoffError, NoSpace, NotFound
from castoff.image.image import Image, Platform
from castoff.machine.model import MachineRequest
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.settings import Lazy
from castoff.rootfs.size import default_size
from castoff.store.store import Store
from castoff.timeline import step

if TYPE_CHECKING:
    from castoff.artifact.artifact import Artifact
    from castoff.image.digest import Digest
    from castoff.sources.source import ChunkSource

__all__ = ["Preloaded", "Way", "preload"]


class Way(enum.StrEnum):
    """Where an image's data came from."""

    HERE = "here"
    ARTIFACT = "artifact"
    PROFILE = "profile"
    """From the artifact, and only what the boot profile names."""
    ORIGIN = "origin"


@dataclass(frozen=True, slots=True)
class Preloaded:
    """An image that is ready."""

    image: Image
    way: Way
    fetched: int
    """Bytes of packs that came in."""


async def preload(
    reference: str,
    *,
    size: int | None,
    platform: Platform | None,
    limit: int,
    profile_only: bool,
    config: Config,
    store: Store,
    providers: ProviderContext,
) -> Preloaded:
    """Makes an image ready; see ``Host.preload``."""
    request = MachineRequest(image=reference, disk_size=size, platform=platform, lazy=Lazy.NEVER)
    async with opened(reference, platform, config=config, store=store) as (source, image):
        with step("preload", image=reference):
            way, fetched = await _layers(image, _Wish(size, limit, profile_only), store, providers)
            if way is not Way.PROFILE:
                await locate(request, image, source, providers)
    return Preloaded(image, way, fetched)


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the caller asked for besides the image."""

    size: int | None
    limit: int
    profile_only: bool


async def _layers(image: Image, wish: _Wish, store: Store, providers: ProviderContext) -> tuple[Way, int]:
    """Fetches what the artifact has of the image's layers; where there is none, that is left to a conversion."""
    if await _is_here(image, wish, store, providers):
        return Way.HERE, 0
    from castoff.rootfs.trusted import NoArtifact, trusted_artifact

    try:
        artifact = await trusted_artifact(image, providers)
        fetched = await _from_artifact(image, artifact, wish, store, providers)
    except NoArtifact:
        if wish.profile_only:
            raise
        return Way.ORIGIN, 0
    except NoSpace:
        raise
    except CastoffError as error:
        if wish.profile_only:
            raise
        providers.notice(f"the artifact of {image.reference} cannot be used: {error}")
        return Way.ORIGIN, 0
    return Way.PROFILE if wish.profile_only else Way.ARTIFACT, fetched


async def _is_here(image: Image, wish: _Wish, store: Store, providers: ProviderContext) -> bool:
    """Whether nothing is missing that a file of the image has."""
    layers = [layer for one in image.layers if (layer := store.layer(one.diff_id)) is not None]
    if len(layers) < len(image.layers) or all(layer.complete for layer in layers):
        return len(layers) == len(image.layers)
    from castoff.rootfs.composition import has_all

    return await has_all(image, layers, _size(wish, [layer.have.segment_size for layer in layers], providers))


def _size(wish: _Wish, segments: Sequence[int], providers: ProviderContext) -> int:
    return wish.size or default_size(providers.settings, sum(segments))


async def _from_artifact(image: Image, artifact: Artifact, wish: _Wish, store: Store, providers: ProviderContext) -> int:
    """Fetches the missing chunks that files of the image have; bytes of packs."""
    from castoff.rootfs.composition import wanted_chunks
    from castoff.rootfs.preload import fetch_layers
    from castoff.rootfs.remote import begin_layers
    from castoff.sources.chunks import ChunkReader
    from castoff.sources.limit import LimitedSource
    from castoff.sources.quarantine import Quarantine
    from castoff.sources.registry import RegistrySource

    profile = await _profile(image, store, providers) if wish.profile_only else None
    begun = await begin_layers([layer.diff_id for layer in image.layers], artifact, providers)
    with ExitStack() as pins:
        for layer in begun.values():
            pins.callback(layer.stored.pin.close)
        stack = [begun[layer.diff_id].stored for layer in image.layers]
        size = _size(wish, [layer.have.segment_size for layer in stack], providers)
        only = profile or await wanted_chunks(image, stack, size)
        quarantine, keeper = Quarantine(providers.sources.quarantine), None
        source: ChunkSource = RegistrySource(artifact.repository, providers.sources, providers.image)
        if providers.peers.is_used:
            from castoff.peers.counted import CountedSource
            from castoff.peers.frames import indexed
            from castoff.peers.kept import KeptFrames
            from castoff.peers.swarm import SwarmSource
            from castoff.peers.tally import Tally

            book = indexed({layer.pack: layer.index for layer in begun.values()})
            swarm = SwarmSource(providers.peers, book, source, quarantine)
            source = CountedSource(swarm, Tally(store.state), quarantine)
            keeper = KeptFrames(store) if providers.peers.listen else None
        reader = ChunkReader(LimitedSource(source, wish.limit) if wish.limit else source, quarantine, keeper=keeper)
        try:
            return await fetch_layers(tuple(begun.values()), reader, store, only=only)
        finally:
            await reader.close()


async def _profile(image: Image, store: Store, providers: ProviderContext) -> dict[Digest, list[int]]:
    """The chunks that the image's boot profile names, by layer: this host's, joined with the one that is published.

    Raises:
        NotFound: There is no profile.
    """
    from castoff.hydrate.profile_file import load_profile
    from castoff.rootfs.boot_profile import adopted_profile

    await adopted_profile(image, providers, stream=False)
    profile = load_profile(store, image.digest)
    if profile is None:
        raise NotFound(f"{image.reference} has no boot profile yet", hint="the first lazy boot of it anywhere makes one")
    chunks: dict[Digest, list[int]] = {}
    for chunk in profile.chunks:
        chunks.setdefault(chunk.diff_id, []).append(chunk.number)
    return chunks
