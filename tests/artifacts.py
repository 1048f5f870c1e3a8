"""Rootfs artifacts of made-up images, signed or forged, and the registries that have them, for tests.

Indexes and packs are not among them: what finds an artifact reads its manifest and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from castoff.artifact.artifact import ArtifactLayer, Blob
from castoff.artifact.keys import HostKey
from castoff.artifact.manifest import ArtifactManifest, Subject, encode_manifest
from castoff.artifact.signature import sign, signature_manifest
from castoff.artifact.trust import OWN_NAME, Trust, TrustedKey
from castoff.image.digest import Digest
from castoff.image.image import Image, ImageConfig, Layer, Platform
from castoff.image.media import EMPTY_JSON, OCI_INDEX, OCI_MANIFEST
from castoff.image.referrers import referrers_tag
from hostile_registry import HostileRegistry
from oci_builder import Blob as Document
from oci_builder import BuiltImage, LayerTar, build_image

__all__ = [
    "MINE",
    "STRANGER",
    "Published",
    "artifact_of",
    "as_image",
    "built",
    "signature_of",
    "trusting",
    "upload",
]

MINE = HostKey.of(bytes(range(32)))
STRANGER = HostKey.of(bytes(range(1, 33)))


def built(*names: str) -> BuiltImage:
    """An image with a layer for each name."""
    return build_image([LayerTar().file("name", name.encode()) for name in names])


def as_image(image: BuiltImage, reference: str = "the image") -> Image:
    """The image, as castoff has it when it is resolved."""
    layers = tuple(
        Layer(Digest.parse(blob.digest), len(blob.data), blob.media_type, Digest.parse(diff_id))
        for blob, diff_id in zip(image.layers, image.diff_ids, strict=True)
    )
    return Image(reference, Digest.parse(image.digest), Platform(), ImageConfig(), layers)


def trusting(*keys: HostKey) -> Trust:
    """Trust in these keys, the first as the host's own."""
    return Trust(tuple(TrustedKey(key.public, OWN_NAME if n == 0 else f"key-{n}", own=n == 0) for n, key in enumerate(keys)))


def artifact_of(image: BuiltImage, *, subject: BuiltImage | None = None, diff_ids: Sequence[str] | None = None) -> Document:
    """The manifest of an artifact of ``image``; ``subject`` and ``diff_ids`` of another."""
    chosen = image.diff_ids if diff_ids is None else diff_ids
    of = subject or image
    layers = tuple(_layer(Digest.parse(diff_id)) for diff_id in dict.fromkeys(chosen))
    row = Subject(of.manifest.media_type, Digest.parse(of.digest), len(of.manifest.data))
    return Document(encode_manifest(ArtifactManifest(row, layers, "zstd 1.5.7 level 3")), OCI_MANIFEST)


def _layer(diff_id: Digest) -> ArtifactLayer:
    return ArtifactLayer(diff_id, _blob(b"index", diff_id), _blob(b"pack", diff_id))


def _blob(kind: bytes, diff_id: Digest) -> Blob:
    data = kind + diff_id.hex.encode()
    return Blob(Digest.of(data), len(data))


def signature_of(image: BuiltImage, artifact: Document, key: HostKey = MINE) -> Document:
    """The manifest of a signature."""
    made = sign(key, image=Digest.parse(image.digest), artifact=Digest.parse(artifact.digest))
    return Document(signature_manifest(made, media_type=image.manifest.media_type, size=len(image.manifest.data)), OCI_MANIFEST)


@dataclass
class Published:
    """What a registry lists as referring to one image."""

    image: BuiltImage
    documents: list[Document] = field(default_factory=list)

    def add(self, *documents: Document) -> Published:
        self.documents += documents
        return self

    def index(self, *, annotations: bool = True) -> bytes:
        """The list of referrers, as a registry or a client keeps it."""
        rows = [referrer(document, annotations=annotations) for document in self.documents]
        return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows}).encode()

    def put_on(
        self, registry: HostileRegistry, repository: str, *, kept_by: Literal["registry", "clients"] = "registry", **how: Any
    ) -> None:
        """Makes the registry answer with it."""
        digest = Digest.parse(self.image.digest)
        path = f"referrers/{digest}" if kept_by == "registry" else f"manifests/{referrers_tag(digest)}"
        registry.put(f"/v2/{repository}/{path}", Document(self.index(**how), OCI_INDEX))
        for document in self.documents:
            registry.put(f"/v2/{repository}/manifests/{document.digest}", document)


def referrer(document: Document, *, annotations: bool = True) -> dict[str, Any]:
    """A manifest's row in a list of referrers."""
    told = json.loads(document.data)
    row: dict[str, Any] = document.descriptor(artifactType=told.get("artifactType", ""))
    if annotations and told.get("annotations"):
        row["annotations"] = told["annotations"]
    return row


def upload(host: str, repository: str, published: Published, *, more: Mapping[str, bytes] | None = None) -> None:
    """Pushes all of it to a real registry without the referrers API: image, artifacts, signatures, and their list."""
    image = published.image
    blobs = [EMPTY_JSON, image.config.data, *(layer.data for layer in image.layers)]
    for document in published.documents:
        for row in json.loads(document.data)["layers"]:
            diff_id = row.get("annotations", {}).get("vnd.castoff.diff-id", "")
            blobs += [kind + diff_id.removeprefix("sha256:").encode() for kind in (b"index", b"pack") if diff_id]
    for blob in blobs:
        _put_blob(host, repository, blob)
    for name, media_type, data in [
        (image.digest, image.manifest.media_type, image.manifest.data),
        *((document.digest, document.media_type, document.data) for document in published.documents),
        (referrers_tag(Digest.parse(image.digest)), OCI_INDEX, published.index()),
        *((name, OCI_INDEX, data) for name, data in (more or {}).items()),
    ]:
        _request("PUT", f"http://{host}/v2/{repository}/manifests/{name}", data, media_type)


def _put_blob(host: str, repository: str, data: bytes) -> None:
    location = _request("POST", f"http://{host}/v2/{repository}/blobs/uploads/", b"", "application/octet-stream")
    separator = "&" if "?" in location else "?"
    _request("PUT", f"{location}{separator}digest=sha256:{hashlib.sha256(data).hexdigest()}", data, "application/octet-stream")


def _request(method: str, url: str, data: bytes, content_type: str) -> str:
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return str(answer.headers.get("Location", ""))
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{method} {url}: {error.code} {error.read()[:500]!r}") from error
