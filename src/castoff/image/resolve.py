"""From a root document to an image: index, platform choice, manifest, config. The same walk for every source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from castoff.errors import CastoffError, Invalid, NotFound, Unsupported
from castoff.image import media
from castoff.image.config import decode_config
from castoff.image.digest import Digest
from castoff.image.image import Image, Layer, Platform
from castoff.image.known import KnownImages
from castoff.image.manifest import Descriptor, Index, Manifest, decode, read_digest
from castoff.image.platforms import fitness, listing

__all__ = ["Fetch", "read_image", "wrong_platform"]

MAX_DEPTH = 4
"""Indexes within indexes."""
MAX_UNLABELLED = 16
"""Manifests without a platform in their index whose configs are read to learn it."""


class Fetch(Protocol):
    """Gets a document by its descriptor, with digest and size checked."""

    async def __call__(self, kind: Literal["manifest", "config"], digest: Digest, size: int | None) -> bytes: ...


class _WrongPlatform(Exception):
    """A document offers only other platforms than the one asked for."""

    def __init__(self, offered: Sequence[Platform]) -> None:
        super().__init__()
        self.offered = tuple(offered)


@dataclass(frozen=True, slots=True)
class _Walk:
    reference: str
    asked: Platform
    fetch: Fetch
    known: KnownImages | None = None

    def name(self, kind: str, digest: Digest) -> str:
        return f"{kind} {digest} of {self.reference}"

    async def document(self, digest: Digest, size: int | None, depth: int) -> Image:
        if self.known is not None and (found := self.known.get(self.reference, digest, self.asked)) is not None:
            return found
        what = self.name("manifest", digest)
        data = await self.fetch("manifest", digest, size)
        document = decode(what, data)
        if isinstance(document, Manifest):
            image = replace(await self.image(digest, document), size=len(data))
        else:
            image = await self.index(what, document, depth)
        if self.known is not None:
            self.known.keep(digest, self.asked, image)
        return image

    async def index(self, what: str, index: Index, depth: int = 0) -> Image:
        if depth >= MAX_DEPTH:
            raise Invalid(f"{what} is an index {depth} indexes deep", hint=f"at most {MAX_DEPTH} are followed")
        offered: list[Platform] = []
        labelled, unlabelled = _sort(index, self.asked, offered)
        for row in labelled[:1] or unlabelled[:MAX_UNLABELLED]:
            try:
                return await self.document(read_digest(what, row), row.size, depth + 1)
            except _WrongPlatform as error:
                offered.extend(error.offered)
        raise _WrongPlatform(offered)

    async def image(self, digest: Digest, manifest: Manifest) -> Image:
        what = self.name("manifest", digest)
        if manifest.config.media_type not in media.CONFIGS:
            raise Unsupported(
                f"{what} is not an image but an artifact of type {manifest.config.media_type[:100]!r}",
                hint="only images can be booted; name the image that it belongs to",
            )
        config_digest = read_digest(f"config in {what}", manifest.config)
        data = await self.fetch("config", config_digest, manifest.config.size)
        config, platform, diff_ids = decode_config(self.name("config", config_digest), data, self.asked)
        if fitness(platform, self.asked) is None:
            raise _WrongPlatform([platform])
        layers = _layers(what, manifest.layers, diff_ids)
        return Image(self.reference, digest, platform, config, layers, manifest.media_type or media.OCI_MANIFEST)


async def read_image(
    reference: str, root: Digest | Index, fetch: Fetch, asked: Platform, known: KnownImages | None = None
) -> Image:
    """Resolves a root document to the image for one platform.

    Args:
        reference: The image's name, for errors and the result.
        root: Digest of a manifest or an index, or an index that has no digest (a layout's own).
        fetch: Gets the documents.
        asked: The platform.
        known: Has what was read before, and gets what is read now.

    Raises:
        NotFound: The image is not made for that platform; the message lists the ones that it is made for.
        Invalid, Unsupported: A document is broken or hostile, or something else than an image.
    """
    walk = _Walk(reference, asked, fetch, known)
    try:
        if isinstance(root, Index):
            return await walk.index(f"index of {reference}", root)
        return await walk.document(root, None, 0)
    except _WrongPlatform as error:
        raise wrong_platform(reference, asked, error.offered) from None


def wrong_platform(reference: str, asked: Platform, offered: Sequence[Platform]) -> NotFound:
    """The error for an image that is made for other platforms than the one asked for."""
    there = f"it has {listing(offered)}" if offered else "it has none at all"
    return NotFound(f"{reference} has no image for {asked}: {there}", hint="choose another image, or build it for this platform")


def _sort(index: Index, asked: Platform, offered: list[Platform]) -> tuple[list[Descriptor], list[Descriptor]]:
    """The entries that fit, best first, and those that do not tell; what does not fit goes to ``offered``."""
    fitting: list[tuple[int, Descriptor]] = []
    unlabelled: list[Descriptor] = []
    for row in index.manifests:
        if not _may_be_image(row):
            continue
        if row.platform is None or not row.platform.architecture:
            unlabelled.append(row)
            continue
        platform = row.platform.platform()
        fit = fitness(platform, asked)
        if fit is None:
            offered.append(platform)
        else:
            fitting.append((fit, row))
    fitting.sort(key=lambda pair: -pair[0])
    return [row for _, row in fitting], unlabelled


def _may_be_image(row: Descriptor) -> bool:
    if row.artifact_type or (row.media_type and row.media_type not in media.MANIFESTS | media.INDEXES):
        return False
    # BuildKit puts provenance and SBOMs among the images, for a platform that is none
    # (https://docs.docker.com/build/metadata/attestations/attestation-storage/).
    if (row.annotations or {}).get("vnd.docker.reference.type") == "attestation-manifest":
        return False
    return row.platform is None or (row.platform.os, row.platform.architecture) != ("unknown", "unknown")


def _layers(what: str, rows: Sequence[Descriptor], diff_ids: Sequence[Digest]) -> tuple[Layer, ...]:
    if len(rows) != len(diff_ids):
        raise Invalid(
            f"{what} has {len(rows)} layers and its config {len(diff_ids)} diffIDs", hint="the image is broken; build it again"
        )
    return tuple(
        _layer(f"layer {n} in {what}", row, diff_id) for n, (row, diff_id) in enumerate(zip(rows, diff_ids, strict=True))
    )


def _layer(what: str, row: Descriptor, diff_id: Digest) -> Layer:
    if media.compression_of(row.media_type) is None:
        raise Unsupported(
            f"{what} has the unknown media type {row.media_type[:100]!r}",
            hint="castoff reads tar, gzip and zstd layers of OCI and Docker images",
        )
    try:
        return Layer(read_digest(what, row), row.size, row.media_type, diff_id)
    except CastoffError as error:
        raise Invalid(f"{what}: {error.what}", hint=error.hint) from error
