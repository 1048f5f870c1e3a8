"""What a rootfs artifact is: an OCI artifact with the layer indexes and packs of one image (docs/formats.md, "Artifact").

The manifest's ``artifactType`` is ARTIFACT_TYPE, its ``subject`` the image's manifest, its layers are index and pack of the
image's layers in turn, each annotated with its diffID. Nothing in it describes the image as a whole: a host composes the
root filesystem from the indexes itself. It counts only where its manifest's digest is signed by a key that this host trusts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from castoff.image.digest import Digest

__all__ = ["ARTIFACT_TYPE", "INDEX_TYPE", "PACK_TYPE", "Artifact", "ArtifactLayer", "Blob"]

ARTIFACT_TYPE: Final = "application/vnd.castoff.rootfs.v1"
INDEX_TYPE: Final = "application/vnd.castoff.layer-index.v1+zstd"
"""A layer index, one zstd frame."""
PACK_TYPE: Final = "application/vnd.castoff.pack.v1"


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob of the registry."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class ArtifactLayer:
    """One layer of the image, as the artifact has it."""

    diff_id: Digest
    index: Blob
    pack: Blob


@dataclass(frozen=True, slots=True)
class Artifact:
    """A rootfs artifact whose signature was checked."""

    repository: str
    """``HOST[:PORT]/PATH`` where its blobs are."""
    digest: Digest
    """Of its manifest."""
    image: Digest
    """Of the image's manifest: its subject."""
    layers: tuple[ArtifactLayer, ...]
    """The lowest first; as many as the image has distinct layers."""
    signer: str
    """The key that signed it, as ``castoff trust list`` shows it."""
