"""Images that clients name. One in a registry anybody may name; one on the host's disk is a host path, so whoever comes over
the network names only those under directories that the operator allowed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from castoff.api.auth import OPERATOR, Grant
from castoff.errors import Invalid
from castoff.image.reference import LayoutReference, RegistryReference, parse_reference

__all__ = ["check_image", "image_reference", "is_local"]

_LOCAL: Final = ("oci:", "oci-archive:", "docker-archive:")


def is_local(image: str) -> bool:
    """Whether a reference names an image on this host's disk; looks at the text alone."""
    return image.startswith(_LOCAL)


def check_image(image: str, grant: Grant, directories: Sequence[Path]) -> None:
    """Lets an image through that ``grant`` may run.

    Args:
        image: The reference.
        grant: Whose request it is.
        directories: Where images on disk may be, absolute.

    Raises:
        Invalid: It is no reference, or names a path that the client may not.
    """
    if not is_local(image) or grant is OPERATOR:
        parse_reference(image)
        return
    refused = Invalid(
        "config.image: an image on the host's disk is not for clients to name",
        hint="`agent.rootfs_directories` allows directories; the agent's own socket may name any",
    )
    # The text first: parsing looks at the disk, and whoever may not name a path shall not learn that it is there.
    path = image.partition(":")[2]
    allowed = [directory for directory in directories if path.startswith(f"{directory}/") and ".." not in path.split("/")]
    if not allowed:
        raise refused
    reference = parse_reference(image)
    assert isinstance(reference, LayoutReference)
    if not any(reference.path.resolve().is_relative_to(directory.resolve()) for directory in allowed):
        raise refused


def image_reference(image: str, digest: str) -> dict[str, Any]:
    """``image_ref`` of a machine."""
    document: dict[str, Any] = {"registry": "", "repository": image, "tag": "", "digest": digest, "labels": {}}
    if is_local(image):
        return document
    try:
        reference = parse_reference(image)
    except Invalid:
        return document  # kept from a release that read references otherwise
    assert isinstance(reference, RegistryReference)
    return {**document, "registry": reference.registry, "repository": reference.repository, "tag": reference.tag or ""}
