"""Manifests and indexes, OCI's and Docker's (schema 2): decoded, bounded, and told apart by what they hold.

Sources: OCI image spec 1.1 (manifest.md, image-index.md) and distribution's manifest-v2-2.md. What a document *is* is
decided by its fields, not by a Content-Type that the same bytes could be served under: a document that could be read
both ways is refused (CVE-2021-41190).
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from castoff.errors import CastoffError, Invalid, Unsupported
from castoff.image import media
from castoff.image.digest import Digest
from castoff.image.image import Platform

__all__ = ["MAX_LAYERS", "Descriptor", "Index", "Manifest", "decode", "decode_index", "decode_json", "read_digest"]

MAX_LAYERS = 1000
"""Layers in an image. Docker allows 127, overlayfs 500."""
MAX_INDEX_ENTRIES = 4096

_T = TypeVar("_T")
_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class PlatformRow(msgspec.Struct, frozen=True):
    """A descriptor's platform, as it stands."""

    os: str = ""
    architecture: str = ""
    variant: str | None = None

    def platform(self) -> Platform:
        return Platform(self.os, self.architecture, self.variant or "")


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A descriptor, as it stands: its digest is text that nobody checked yet (``read_digest``)."""

    digest: str
    size: _Size
    media_type: str = ""
    urls: tuple[str, ...] | None = None
    annotations: dict[str, str] | None = None
    platform: PlatformRow | None = None
    artifact_type: str | None = None


class Index(msgspec.Struct, frozen=True):
    """An image index (Docker: manifest list)."""

    manifests: tuple[Descriptor, ...]


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """An image manifest, of an image or of something else that is stored like one."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str | None = None
    """Of itself; OCI's may leave it out."""


class _Shape(msgspec.Struct, rename="camel"):
    """The fields that tell what a document is; their contents stay unread."""

    schema_version: int = 2
    media_type: str | None = None
    manifests: msgspec.Raw = msgspec.Raw(b"")
    config: msgspec.Raw = msgspec.Raw(b"")
    layers: msgspec.Raw = msgspec.Raw(b"")
    fs_layers: msgspec.Raw = msgspec.Raw(b"")


def decode_json(what: str, data: bytes, type: type[_T]) -> _T:
    """Decodes ``data``; ``what`` names it in errors.

    Raises:
        Invalid: It is not JSON of that type.
    """
    try:
        return msgspec.json.decode(data, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"{what} cannot be read: {str(error)[:200]}", hint="it is broken, or not what its place says") from error


def decode(what: str, data: bytes) -> Index | Manifest:
    """Decodes an index or a manifest.

    Raises:
        Invalid: It is neither, both, or over a limit.
        Unsupported: It is Docker's schema 1.
    """
    shape = decode_json(what, data, _Shape)
    if shape.schema_version == 1 or _given(shape.fs_layers):
        raise Unsupported(
            f"{what} is a Docker schema 1 manifest",
            hint="push it again with any Docker of the last years, or convert it: skopeo copy --format oci",
        )
    is_index = _given(shape.manifests)
    is_manifest = _given(shape.config) or _given(shape.layers)
    if is_index and is_manifest:
        raise Invalid(f"{what} can be read as an index and as an image manifest", hint="such a document is an attack; refused")
    _check_media_type(what, shape.media_type, is_index=is_index)
    if is_index:
        return decode_index(what, data)
    if not is_manifest:
        raise Invalid(f"{what} is neither an image manifest nor an index")
    manifest = decode_json(what, data, Manifest)
    if len(manifest.layers) > MAX_LAYERS:
        raise Invalid(f"{what} has {len(manifest.layers)} layers", hint=f"at most {MAX_LAYERS} are read")
    return manifest


def decode_index(what: str, data: bytes) -> Index:
    """Decodes an index, such as a layout's ``index.json``; raises as :func:`decode` does."""
    index = decode_json(what, data, Index)
    if len(index.manifests) > MAX_INDEX_ENTRIES:
        raise Invalid(f"{what} has {len(index.manifests)} entries", hint=f"at most {MAX_INDEX_ENTRIES} are read")
    return index


def read_digest(what: str, descriptor: Descriptor) -> Digest:
    """The descriptor's digest, checked."""
    try:
        return Digest.parse(descriptor.digest)
    except CastoffError as error:
        raise Invalid(f"{what}: {error.what}", hint="castoff reads sha256 only") from error


def _check_media_type(what: str, media_type: str | None, *, is_index: bool) -> None:
    if media_type is None:  # optional in OCI's
        return
    if media_type not in (media.INDEXES if is_index else media.MANIFESTS):
        raise Invalid(f"{what} says of itself that it is {media_type[:100]!r} and is {'an index' if is_index else 'not'}")


def _given(raw: msgspec.Raw) -> bool:
    return bytes(raw) not in (b"", b"null")
