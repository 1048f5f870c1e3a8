"""The artifact's manifest: written the same way each time, read strictly (docs/formats.md, "Artifact").

Source: OCI image spec 1.1, manifest.md, "Guidelines for Artifact Usage".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from castoff.artifact.artifact import ARTIFACT_TYPE, INDEX_TYPE, PACK_TYPE, ArtifactLayer, Blob
from castoff.artifact.document import encode_referrer
from castoff.errors import CastoffError, Invalid
from castoff.image import media
from castoff.image.digest import Digest
from castoff.image.manifest import MAX_LAYERS, Descriptor, decode_json, read_digest

__all__ = ["COMPRESSOR", "DIFF_ID", "ArtifactManifest", "Subject", "encode_manifest", "parse_manifest"]

DIFF_ID: Final = "vnd.castoff.diff-id"
"""Annotation of an index or a pack: the diffID of the layer that it is of."""
COMPRESSOR: Final = "vnd.castoff.compressor"
"""Annotation of the manifest: what made the packs' frames, with its version; another makes other bytes of the same chunks."""

MAX_INDEX: Final = 1 << 30
"""Bytes of a published index; of a layer with a million entries it has a tenth of that."""
MAX_PACK: Final = 1 << 37
"""Bytes of a pack: twice the largest layer that is converted by default."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The image's manifest, as a descriptor names it."""

    media_type: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class ArtifactManifest:
    """What an artifact's manifest says."""

    subject: Subject
    layers: tuple[ArtifactLayer, ...]
    """The lowest first, each diffID once."""
    compressor: str = ""


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor
    schema_version: int
    media_type: str
    annotations: dict[str, str] | None = None


def encode_manifest(manifest: ArtifactManifest) -> bytes:
    """The manifest's bytes, which follow from its values. Besides its layers' blobs it has one, ``media.EMPTY_JSON``."""
    subject = manifest.subject
    return encode_referrer(
        ARTIFACT_TYPE,
        layers=[row for layer in manifest.layers for row in _rows(layer)],
        subject={"mediaType": subject.media_type, "digest": str(subject.digest), "size": subject.size},
        annotations={COMPRESSOR: manifest.compressor} if manifest.compressor else {},
    )


def parse_manifest(what: str, data: bytes) -> ArtifactManifest:
    """Reads a manifest, whose digest and whose signer the caller checks.

    Args:
        what: Names it in errors.
        data: Its bytes.

    Raises:
        Invalid: It is no artifact's manifest of this version.
    """
    document = decode_json(what, data, _Document)
    if (document.schema_version, document.media_type, document.artifact_type) != (2, media.OCI_MANIFEST, ARTIFACT_TYPE):
        raise Invalid(f"{what} is a {document.artifact_type[:100]!r}, not a rootfs artifact")
    if document.config.media_type != media.OCI_EMPTY:
        raise Invalid(f"{what} has a config, and artifacts have none")
    if len(document.layers) % 2 or len(document.layers) > 2 * MAX_LAYERS:
        raise Invalid(f"{what} has {len(document.layers)} blobs, not an index and a pack for each layer")
    pairs = zip(document.layers[::2], document.layers[1::2], strict=True)
    layers = tuple(_layer(f"layer {n} in {what}", *pair) for n, pair in enumerate(pairs))
    if len({layer.diff_id for layer in layers}) != len(layers):
        raise Invalid(f"{what} has a layer twice")
    subject = Subject(document.subject.media_type, read_digest(what, document.subject), document.subject.size)
    return ArtifactManifest(subject, layers, (document.annotations or {}).get(COMPRESSOR, ""))


def _rows(layer: ArtifactLayer) -> tuple[dict[str, Any], dict[str, Any]]:
    def row(kind: str, blob: Blob) -> dict[str, Any]:
        annotations = {DIFF_ID: str(layer.diff_id)}
        return {"mediaType": kind, "digest": str(blob.digest), "size": blob.size, "annotations": annotations}

    return row(INDEX_TYPE, layer.index), row(PACK_TYPE, layer.pack)


def _layer(what: str, index: Descriptor, pack: Descriptor) -> ArtifactLayer:
    diff_id = _diff_id(what, index)
    if (index.media_type, pack.media_type) != (INDEX_TYPE, PACK_TYPE) or _diff_id(what, pack) != diff_id:
        raise Invalid(f"{what} is not the index and the pack of one layer")
    return ArtifactLayer(diff_id, _blob(f"index of {what}", index, MAX_INDEX), _blob(f"pack of {what}", pack, MAX_PACK))


def _blob(what: str, row: Descriptor, limit: int) -> Blob:
    if not 0 < row.size <= limit:
        raise Invalid(f"{what} has {row.size} bytes", hint=f"at most {limit} are read")
    return Blob(read_digest(what, row), row.size)


def _diff_id(what: str, row: Descriptor) -> Digest:
    try:
        return Digest.parse((row.annotations or {}).get(DIFF_ID, ""))
    except CastoffError as error:
        raise Invalid(f"{what} does not say of which layer it is: {error.what}") from error
