"""Publishes the artifact of an image: per layer an index and a pack, then the manifest that names them all, then a signature.

The order is that of trust: a manifest is put when all of its blobs are there, so that a registry's garbage collection
cannot take one that it needs, and the signature when the manifest is. Whatever breaks, the next publish asks for each blob
first and sends what is missing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from castoff.artifact.artifact import ARTIFACT_TYPE, ArtifactLayer, Blob
from castoff.artifact.blobs import KnownBlobs, read_known, write_known
from castoff.artifact.keys import HostKey
from castoff.artifact.manifest import ArtifactManifest, Subject, encode_manifest
from castoff.artifact.signature import SIGNATURE_TYPE, sign, signature_manifest
from castoff.errors import Unsupported
from castoff.image import media
from castoff.image.digest import Digest
from castoff.image.image import Image, Layer
from castoff.image.outgoing import OutgoingBlob
from castoff.image.push import Pushed, RegistryWriter
from castoff.layers.index import LayerIndex
from castoff.layers.pack import COMPRESSOR, Pack
from castoff.layers.published import publish_index
from castoff.store.builds import uninterrupted
from castoff.store.scratch import scratch
from castoff.timeline import step
from castoff.together import together

__all__ = ["Packer", "Published", "Referring", "publish_artifact"]

Packer = Callable[[Layer, Path], Awaitable[tuple[LayerIndex, Pack]]]
"""Makes a layer's pack in a file that is not there yet; answers with the layer's index."""

_LAYERS = 8
"""Layers whose blobs are asked for and sent at a time."""


@dataclass(frozen=True, slots=True)
class Referring:
    """A manifest that refers to the image, as lists of referrers and indexes describe it."""

    digest: Digest
    size: int
    artifact_type: str
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Published:
    """What was published."""

    image: Image
    repository: str
    """``HOST[:PORT]/PATH`` where the artifact is."""
    artifact: Referring
    signature: Referring
    signer: str
    """The key that signed it."""
    blobs: dict[Pushed, int]
    """How many were sent, mounted from another repository, there already."""
    sent: int
    """Bytes of blobs that travelled."""
    index: str | None = None
    """``REPOSITORY:TAG@DIGEST`` of the image index that pins the link, where one was wanted."""

    def pinned_by(self, index: str) -> Published:
        """The same, with the index."""
        return replace(self, index=index)


async def publish_artifact(image: Image, writer: RegistryWriter, *, store: Path, packer: Packer, key: HostKey) -> Published:
    """Makes what is missing of an image's artifact in a repository.

    Args:
        image: The image, resolved.
        writer: The repository.
        store: The store's directory, for packs on their way and for what is known of those that went.
        packer: Makes packs of layers; called only for those that the registry does not have.
        key: This host's.

    Raises:
        Unsupported: The image has no layers.
        CastoffError: A pack could not be made, or the registry does not take something.
    """
    layers = tuple({layer.diff_id: layer for layer in image.layers}.values())
    if not layers:
        raise Unsupported(f"{image.reference} has no layers, so there is nothing to publish")
    with step("artifact.publish", image=str(image.digest), repository=writer.repository, layers=len(layers)) as current:
        push = _Push(image, writer, store, packer)
        turns = asyncio.Semaphore(_LAYERS)

        async def publish(layer: Layer) -> ArtifactLayer:
            async with turns:
                return await push.layer(layer)

        # The largest first: while its pack travels, the others are made.
        rows = await together(publish(layer) for layer in sorted(layers, key=lambda layer: -layer.size))
        order = {layer.diff_id: number for number, layer in enumerate(layers)}
        rows.sort(key=lambda row: order[row.diff_id])
        await push.blob(OutgoingBlob.of("an empty configuration", media.EMPTY_JSON))
        artifact = await push.artifact(tuple(rows))
        signature = await push.signature(artifact, key)
        current.attributes |= {"sent": push.sent, **{kind.value: count for kind, count in push.blobs.items()}}
    return Published(
        image, writer.repository, artifact, signature, str(key.public), {kind: push.blobs[kind] for kind in Pushed}, push.sent
    )


class _Push:
    """One publish under way, and what it counts."""

    def __init__(self, image: Image, writer: RegistryWriter, store: Path, packer: Packer) -> None:
        self._image = image
        self._subject = Subject(image.media_type, image.digest, image.size)
        self._writer = writer
        self._store = store
        self._packer = packer
        self.blobs: Counter[Pushed] = Counter()
        self.sent = 0

    async def layer(self, layer: Layer) -> ArtifactLayer:
        """The layer's blobs, there; the pack is made only where they are not."""
        known = await asyncio.to_thread(read_known, self._store, layer.diff_id, COMPRESSOR)
        if known is None or not await self._adopt(known):
            known = await self._make(layer, known)
        await asyncio.to_thread(write_known, self._store, known.at(self._writer.repository))
        return known.layer

    async def _adopt(self, known: KnownBlobs) -> bool:
        """Whether the repository has a layer's blobs, or could take both from another of its registry."""
        sources = known.beside(self._writer.reference.registry)
        found = []
        for blob in (known.layer.pack, known.layer.index):
            found.append(await self._writer.adopt_blob(_outgoing(known.layer, blob, b""), mount_from=sources))
            if found[-1] is None:
                return False
        self.blobs.update(kind for kind in found if kind is not None)
        return True

    async def _make(self, layer: Layer, known: KnownBlobs | None) -> KnownBlobs:
        async with scratch(self._store) as directory:
            path = directory / "pack"
            index, pack = await self._packer(layer, path)
            data = await asyncio.to_thread(lambda: publish_index(replace(index, locations=pack.locations)))
            row = ArtifactLayer(layer.diff_id, Blob(Digest.of(data), len(data)), Blob(pack.digest, pack.size))
            sources = known.beside(self._writer.reference.registry) if known else ()
            for blob in (_outgoing(row, row.index, data), _outgoing(row, row.pack, path)):
                await self.blob(blob, *sources)
            return KnownBlobs(row, pack.compressor, known.repositories if known else ())

    async def blob(self, blob: OutgoingBlob, *mount_from: str) -> None:
        """Sees to it that the repository has a blob."""
        with step("image.push", blob=blob.what, total=blob.size) as current:
            pushed = await self._writer.push_blob(blob, mount_from=mount_from, sent=current.advance)
            current.attributes["was"] = pushed.value
        self.blobs[pushed] += 1
        self.sent += blob.size if pushed is Pushed.SENT else 0

    async def artifact(self, rows: tuple[ArtifactLayer, ...]) -> Referring:
        data = encode_manifest(ArtifactManifest(self._subject, rows, COMPRESSOR))
        return await self._refer("artifact", data, ARTIFACT_TYPE, {})

    async def signature(self, artifact: Referring, key: HostKey) -> Referring:
        signature = await uninterrupted(lambda: sign(key, image=self._image.digest, artifact=artifact.digest))
        data = signature_manifest(signature, media_type=self._subject.media_type, size=self._subject.size)
        return await self._refer("signature", data, SIGNATURE_TYPE, signature.annotations())

    async def _refer(self, kind: str, data: bytes, artifact_type: str, annotations: dict[str, str]) -> Referring:
        what = f"the {kind} of {self._image.reference}"
        digest = await self._writer.put_referrer(
            what, data, subject=self._image.digest, artifact_type=artifact_type, annotations=annotations
        )
        return Referring(digest, len(data), artifact_type, annotations)


def _outgoing(layer: ArtifactLayer, blob: Blob, source: bytes | Path) -> OutgoingBlob:
    kind = "index" if blob is layer.index else "pack"
    return OutgoingBlob(f"the {kind} of layer {layer.diff_id}", blob.digest, blob.size, source)
