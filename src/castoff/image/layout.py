"""Images in an OCI layout: a directory, or a tar of one (``oci-archive``).

Source: OCI image spec 1.1, image-layout.md. Tags are annotations in ``index.json``; containerd adds whole names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from castoff.errors import Invalid, NotFound
from castoff.image.digest import Digest
from castoff.image.files import Files, read_span, stream_span
from castoff.image.image import Image, Layer, Platform
from castoff.image.known import KnownImages
from castoff.image.manifest import Descriptor, Index, decode_index, read_digest
from castoff.image.reference import LayoutReference
from castoff.image.resolve import read_image
from castoff.image.settings import ImageSettings
from castoff.image.verify import check
from castoff.timeline import step

__all__ = ["LayoutSource"]

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"


class LayoutSource:
    """An ImageSource over the files of an OCI layout.

    Args:
        reference: What was asked for.
        files: The layout's files; closed with the source.
        settings: For the limits.
        known: What this process has resolved already.
    """

    def __init__(
        self, reference: LayoutReference, files: Files, settings: ImageSettings, known: KnownImages | None = None
    ) -> None:
        self._reference = reference
        self._files = files
        self._limit = settings.max_manifest_size
        self._known = known

    async def resolve(self, platform: Platform) -> Image:
        with step("image.layout", reference=str(self._reference)):
            await self._files.prepare()
            return await read_image(str(self._reference), self._root(), self._fetch, platform, self._known)

    @asynccontextmanager
    async def open_blob(self, layer: Layer) -> AsyncIterator[AsyncIterator[bytes]]:
        what = f"layer {layer.digest} of {self._reference}"
        with self._files.open(_blob_name(layer.digest)) as span:
            if span is None:
                raise NotFound(f"{what} is missing", hint="the layout is incomplete; copy or build it again")
            if span.size != layer.size:
                raise Invalid(f"{what} has {span.size} bytes and its manifest says {layer.size}", hint="copy or build it again")
            pieces = stream_span(span)
            try:
                yield pieces
            finally:
                await pieces.aclose()

    async def close(self) -> None:
        self._files.close()

    def _root(self) -> Digest | Index:
        if self._reference.digest is not None:
            return self._reference.digest
        index = decode_index(f"index.json of {self._files.what}", self._read_index())
        rows = _tagged(index, self._reference.tag) if self._reference.tag else _only(index, str(self._reference))
        if not rows:
            tags = ", ".join(_tags(index)) or "no tags at all"
            raise NotFound(f"{self._reference} is not in this layout", hint=f"it has {tags}")
        if len(rows) == 1:
            return read_digest(f"index.json of {self._files.what}", rows[0])
        return Index(tuple(rows))

    def _read_index(self) -> bytes:
        with self._files.open("index.json") as span:
            if span is None:
                raise NotFound(f"{self._files.what} is not an OCI layout: it has no index.json", hint=self._other_kind())
            return read_span(span, self._limit)

    def _other_kind(self) -> str:
        with self._files.open("manifest.json") as span:
            if span is not None:
                return f"it looks like docker save's: write docker-archive:{self._reference.path}"
        return "make one with skopeo copy, buildah push or docker buildx build --output type=oci"

    async def _fetch(self, kind: Literal["manifest", "config"], digest: Digest, size: int | None) -> bytes:
        what = f"{kind} {digest} of {self._reference}"
        with self._files.open(_blob_name(digest)) as span:
            if span is None:
                raise NotFound(f"{what} is missing", hint="the layout is incomplete; copy or build it again")
            return check(what, read_span(span, self._limit), digest, size)


def _blob_name(digest: Digest) -> str:
    return f"blobs/sha256/{digest.hex}"


def _tagged(index: Index, tag: str) -> list[Descriptor]:
    return [row for row in index.manifests if tag in _names(row)]


def _only(index: Index, what: str) -> list[Descriptor]:
    tags = _tags(index)
    if len(tags) > 1:
        raise Invalid(f"{what} holds several images", hint=f"name one: {', '.join(tags)}")
    return list(index.manifests)


def _names(row: Descriptor) -> list[str]:
    annotations = row.annotations or {}
    return [annotations[key] for key in (REF_NAME, CONTAINERD_NAME) if key in annotations]


def _tags(index: Index) -> list[str]:
    """The first name of each entry that has one, for a person to read."""
    return list(dict.fromkeys(_names(row)[0][:200] for row in index.manifests if _names(row)))[:20]
