"""Images as ``docker save`` writes them: a tar with ``manifest.json``, a config and a tar for each layer.

Source: moby's image/spec (v1.2, "Combined Image JSON + Filesystem Changeset Format"). Docker before 25 wrote layers as
plain tars under names that are no digests; later ones, and other tools, name blobs by digest and may compress them.
The format has no image manifest. The image's digest is that of the OCI manifest which castoff writes for it, so that the
same archive has the same digest everywhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from castoff.errors import CastoffError, Invalid, NotFound
from castoff.image import media
from castoff.image.config import decode_config
from castoff.image.digest import Digest
from castoff.image.files import Files, Span, read_pieces, read_span, stream_span
from castoff.image.image import Image, Layer, Platform
from castoff.image.manifest import MAX_LAYERS, decode_json
from castoff.image.platforms import fitness
from castoff.image.reference import LayoutReference, parse_reference
from castoff.image.resolve import wrong_platform
from castoff.image.settings import ImageSettings
from castoff.image.spool import compression_at
from castoff.timeline import step

__all__ = ["DockerArchiveSource"]

_MAX_IMAGES = 1000
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})\Z")
_MEDIA_TYPES = {"none": media.OCI_LAYER, "gzip": f"{media.OCI_LAYER}+gzip", "zstd": f"{media.OCI_LAYER}+zstd"}


class _Entry(msgspec.Struct, rename="pascal"):
    config: str
    repo_tags: tuple[str, ...] | None = None
    layers: tuple[str, ...] | None = None


class DockerArchiveSource:
    """An ImageSource over the files of a docker archive.

    Args:
        reference: What was asked for; its tag is an image's name, ``NAME[:TAG]``.
        files: The archive's members; closed with the source.
        settings: For the limits.
    """

    def __init__(self, reference: LayoutReference, files: Files, settings: ImageSettings) -> None:
        self._reference = reference
        self._files = files
        self._limit = settings.max_manifest_size
        self._members: dict[Digest, str] = {}

    async def resolve(self, platform: Platform) -> Image:
        with step("image.docker_archive", reference=str(self._reference)):
            await self._files.prepare()
            entry = self._choose(self._entries())
            data = self._read(entry.config)
            what = f"config {entry.config[:100]} of {self._reference}"
            config, offered, diff_ids = decode_config(what, data, platform)
            if fitness(offered, platform) is None:
                raise wrong_platform(str(self._reference), platform, [offered])
            layers = await asyncio.to_thread(self._layers, entry.layers or (), diff_ids)
            manifest = _manifest(data, layers)
            digest = Digest.of(manifest)
            if self._reference.digest not in (None, digest):
                raise NotFound(f"{self._reference} is not in this archive", hint=f"its image is {digest}")
            return Image(str(self._reference), digest, offered, config, layers, size=len(manifest))

    @asynccontextmanager
    async def open_blob(self, layer: Layer) -> AsyncIterator[AsyncIterator[bytes]]:
        name = self._members.get(layer.digest)
        if name is None:
            raise NotFound(f"layer {layer.digest} is not one of {self._reference}")
        with self._files.open(name) as span:
            if span is None or span.size != layer.size:
                raise Invalid(f"layer {layer.digest} of {self._reference} changed since it was resolved")
            pieces = stream_span(span)
            try:
                yield pieces
            finally:
                await pieces.aclose()

    async def close(self) -> None:
        self._files.close()

    def _entries(self) -> list[_Entry]:
        with self._files.open("manifest.json") as span:
            if span is None:
                raise NotFound(f"{self._files.what} is not a docker archive: it has no manifest.json", hint=self._other_kind())
            data = read_span(span, self._limit)
        entries = decode_json(f"manifest.json of {self._files.what}", data, list[_Entry])
        if len(entries) > _MAX_IMAGES or any(len(entry.layers or ()) > MAX_LAYERS for entry in entries):
            raise Invalid(f"manifest.json of {self._files.what} lists too much", hint=f"at most {MAX_LAYERS} layers are read")
        return entries

    def _other_kind(self) -> str:
        with self._files.open("index.json") as span:
            if span is not None:
                return f"it looks like an OCI layout: write oci-archive:{self._reference.path}"
        return "make one with docker save (1.10 or later)"

    def _choose(self, entries: Sequence[_Entry]) -> _Entry:
        names = [name for entry in entries for name in entry.repo_tags or ()]
        shown = ", ".join(name[:200] for name in names[:20]) or "no names at all"
        if self._reference.tag is None:
            if len(entries) != 1:
                raise Invalid(f"{self._reference} holds {len(entries)} images", hint=f"name one: {shown}")
            return entries[0]
        wanted = str(parse_reference(self._reference.tag))
        for entry in entries:
            if any(_same_name(name, wanted) for name in entry.repo_tags or ()):
                return entry
        raise NotFound(f"{self._reference} is not in this archive", hint=f"it has {shown}")

    def _read(self, name: str) -> bytes:
        with self._files.open(name) as span:
            if span is None:
                raise NotFound(
                    f"{name[:100]!r} is missing in {self._files.what}", hint="the archive is incomplete; save it again"
                )
            return read_span(span, self._limit)

    def _layers(self, names: Sequence[str], diff_ids: Sequence[Digest]) -> tuple[Layer, ...]:
        if len(names) != len(diff_ids):
            raise Invalid(
                f"{self._reference} has {len(names)} layers and its config {len(diff_ids)} diffIDs",
                hint="the archive is broken; save it again",
            )
        return tuple(self._layer(name, diff_id) for name, diff_id in zip(names, diff_ids, strict=True))

    def _layer(self, name: str, diff_id: Digest) -> Layer:
        with self._files.open(name) as span:
            if span is None:
                raise NotFound(
                    f"layer {name[:100]!r} is missing in {self._files.what}", hint="the archive is incomplete; save it again"
                )
            compression = compression_at(span)
            # A plain tar's digest is the diffID by definition: whoever reads the layer checks it, there is no need to now.
            digest = diff_id if compression == "none" else _blob_digest(name, span)
            self._members[digest] = name
            return Layer(digest, span.size, _MEDIA_TYPES[compression], diff_id)


def _blob_digest(name: str, span: Span) -> Digest:
    if named := _BLOB.search(name):
        return Digest(named[1])
    sha256 = hashlib.sha256()
    for piece in read_pieces(span):
        sha256.update(piece)
    return Digest(sha256.hexdigest())


def _same_name(name: str, wanted: str) -> bool:
    try:
        return str(parse_reference(name)) == wanted
    except CastoffError:
        return False  # a name that nobody could ask for


def _manifest(config: bytes, layers: Sequence[Layer]) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": media.OCI_MANIFEST,
        "config": {"mediaType": media.OCI_CONFIG, "digest": str(Digest.of(config)), "size": len(config)},
        "layers": [{"mediaType": row.media_type, "digest": str(row.digest), "size": row.size} for row in layers],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
