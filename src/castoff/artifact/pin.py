"""The link pinned: an image index that lists image, artifact and signature together, under a tag of its own.

Referrers get lost when an image is copied by a tool that does not know them; an index is copied with all that it lists
(``skopeo copy --all``). The image's own tag is left as it is: ``app:v1`` gets a sister ``app:v1-castoff``, which is as good
an image to every puller. Each publish of another platform's image adds to what is there, as long as the original lists it.

skopeo writes an index anew, with the fields that it knows, in the order of Go's structs: 1.9 knows no ``artifactType``. So
rows of ours are told by their annotations, and written as Go writes them; the copy then has the same digest.
"""

from __future__ import annotations

import json
from typing import Any, Final

from castoff.artifact.publish import Published, Referring
from castoff.errors import Invalid, LimitExceeded, NotFound
from castoff.image import media
from castoff.image.digest import Digest
from castoff.image.image import Image
from castoff.image.manifest import Index, decode, decode_json
from castoff.image.push import RegistryWriter
from castoff.image.reference import RegistryReference
from castoff.image.verify import check

__all__ = ["SUFFIX", "push_index", "tag_of"]

SUFFIX: Final = "-castoff"
OF: Final = "vnd.castoff.image"
"""Annotation of the rows of artifact and signature: the digest of the image's manifest."""
_TAG_LIMIT = 128


def tag_of(reference: RegistryReference) -> str:
    """The tag of the index that pins ``reference``.

    Raises:
        Invalid: The reference's tag is too long for one.
    """
    name = reference.tag or f"sha256-{reference.digest.hex[:16] if reference.digest else ''}"
    if len(name) + len(SUFFIX) > _TAG_LIMIT:
        raise Invalid(f"the tag {name} has no room for {SUFFIX}", hint="tag the image with a shorter one besides")
    return name + SUFFIX


async def push_index(writer: RegistryWriter, reference: RegistryReference, published: Published, *, limit: int) -> str:
    """Pushes the index for ``reference``.

    Args:
        writer: The image's own repository.
        reference: How the image was named.
        published: Its artifact.
        limit: Bytes of a manifest.

    Returns:
        ``REPOSITORY:TAG@DIGEST``.

    Raises:
        Invalid: The artifact is in another repository, where an index cannot list the image.
        CastoffError: The registry does not give, or not take, something.
    """
    if writer.reference.name != reference.name:
        raise Invalid(
            f"{writer.reference.name} does not have the image, so no index can list it", hint="leave --to or --index away"
        )
    tag, image = tag_of(reference), published.image
    root = await _read(writer, str(reference.digest or reference.tag), reference.digest, limit)
    rows = _rows_of(root, image)
    listed = {row["digest"] for row in rows}
    earlier = _earlier(await _read(writer, tag, None, limit))
    rows += [row for row in earlier if _of(row) in listed and _of(row) != str(image.digest)]
    rows += [_row(published.artifact, image), _row(published.signature, image)]
    data = json.dumps({"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": rows}, separators=(",", ":")).encode()
    if len(data) > limit:
        raise LimitExceeded(f"the index {tag}, in bytes,", limit=limit, setting="image.max_manifest_size")
    await writer.put_manifest(f"the index {tag}", data, media.OCI_INDEX, tag=tag)
    return f"{reference.name}:{tag}@{Digest.of(data)}"


async def _read(writer: RegistryWriter, name: str, digest: Digest | None, limit: int) -> bytes | None:
    try:
        data, _ = await writer.client.read(f"{writer.repository}:{name}", f"manifests/{name}", media.ACCEPT, limit)
    except NotFound:
        return None
    return data if digest is None else check(name, data, digest)


def _rows_of(root: bytes | None, image: Image) -> list[dict[str, Any]]:
    """The image's row, or those of the index that it is in, as they stand."""
    what = f"the index of {image.reference}"
    if root is not None and isinstance(decode(what, root), Index):
        rows: list[dict[str, Any]] = decode_json(what, root, dict[str, Any])["manifests"]
        rows = [row for row in rows if _of(row) is None]
        if any(row.get("digest") == str(image.digest) for row in rows):
            return rows
    platform = {"architecture": image.platform.architecture, "os": image.platform.os}
    if image.platform.variant:
        platform["variant"] = image.platform.variant
    return [{"mediaType": image.media_type, "digest": str(image.digest), "size": image.size, "platform": platform}]


def _earlier(index: bytes | None) -> list[dict[str, Any]]:
    """The rows of artifacts and signatures in an earlier index."""
    if index is None or not isinstance(decode("the earlier index", index), Index):
        return []
    rows: list[dict[str, Any]] = decode_json("the earlier index", index, dict[str, Any])["manifests"]
    return [row for row in rows if _of(row) is not None]


def _of(row: dict[str, Any]) -> str | None:
    """The image that a row of artifact or signature is of; None: it is neither."""
    annotations = row.get("annotations") or {}
    return annotations.get(OF) if isinstance(annotations, dict) else None


def _row(manifest: Referring, image: Image) -> dict[str, Any]:
    """A row that no puller takes for an image: a platform that is none, as BuildKit gives its attestations."""
    return {
        "mediaType": media.OCI_MANIFEST,
        "digest": str(manifest.digest),
        "size": manifest.size,
        "annotations": dict(sorted({**manifest.annotations, OF: str(image.digest)}.items())),
        "platform": {"architecture": "unknown", "os": "unknown"},
    }
