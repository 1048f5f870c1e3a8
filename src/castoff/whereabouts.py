"""Where every part of an image's rootfs is: in the store, in an artifact, at its origin. Looks, and fetches no data."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from castoff.config import Config
from castoff.create import opened
from castoff.errors import CastoffError
from castoff.image.image import Image, Platform
from castoff.rootfs.context import ProviderContext
from castoff.store.rootfs import read_record, rootfs_names
from castoff.store.store import Store

if TYPE_CHECKING:
    from castoff.artifact.artifact import Artifact, ArtifactLayer
    from castoff.image.image import Layer

__all__ = ["LayerParts", "Whereabouts", "whereabouts"]


@dataclass(frozen=True, slots=True)
class LayerParts:
    """Where one layer is. Bytes."""

    diff_id: str
    origin: str
    """Digest of the blob that its registry has."""
    origin_size: int
    chunks: int | None
    """Of its segment; None where nothing of it is here."""
    here: int
    """Chunks that are here."""
    complete: bool
    index_size: int | None
    """Of the artifact's blob; None where no artifact counts."""
    pack: str | None
    pack_size: int | None


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where the parts of an image's rootfs are."""

    image: Image
    rootfs: tuple[str, ...]
    """Names of those that are composed here."""
    machines: tuple[str, ...]
    """Machines that stand on its layers."""
    artifact: Artifact | None
    why: str
    """Why there is no artifact that counts; empty where there is one."""
    layers: tuple[LayerParts, ...]
    """The lowest first."""


async def whereabouts(
    reference: str, *, platform: Platform | None, config: Config, store: Store, providers: ProviderContext
) -> Whereabouts:
    """Looks at one image; see ``Host.whereabouts``."""
    from castoff.rootfs.trusted import trusted_artifact

    async with opened(reference, platform, config=config, store=store) as (_, image):
        artifact: Artifact | None = None
        why = ""
        try:
            artifact = await trusted_artifact(image, providers)
        except CastoffError as error:
            why = error.what
    packed = {} if artifact is None else {layer.diff_id: layer for layer in artifact.layers}
    layers = [await asyncio.to_thread(_layer, layer, packed.get(layer.diff_id), store) for layer in image.layers]
    rootfs, machines = await asyncio.to_thread(_users, image, store)
    return Whereabouts(image, rootfs, machines, artifact, why, tuple(layers))


def _layer(layer: Layer, packed: ArtifactLayer | None, store: Store) -> LayerParts:
    found = store.layer(layer.diff_id)
    present = None if found is None else found.present()
    return LayerParts(
        diff_id=str(layer.diff_id),
        origin=str(layer.digest),
        origin_size=layer.size,
        chunks=None if present is None else len(present),
        here=0 if present is None else int(present.sum()),
        complete=found is not None and found.complete,
        index_size=None if packed is None else packed.index.size,
        pack=None if packed is None else str(packed.pack.digest),
        pack_size=None if packed is None else packed.pack.size,
    )


def _users(image: Image, store: Store) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names of its root filesystems here, ids of machines that have its layers)."""
    from castoff.store.machines import machine_rootfs

    layers = tuple(str(layer.diff_id) for layer in image.layers)
    names = [str(name) for name in rootfs_names(store.root) if read_record(store.root / "rootfs" / str(name)).layers == layers]
    machines = [directory.name for directory, record in machine_rootfs(store.machines) if record.layers == layers]
    return tuple(names), tuple(machines)
