"""Repositories, as settings and people name them: where artifacts lie that are not beside their image."""

from __future__ import annotations

from castoff.errors import Invalid
from castoff.image.reference import RegistryReference, parse_reference

__all__ = ["parse_repository"]


def parse_repository(text: str) -> RegistryReference:
    """Reads ``HOST[:PORT]/PATH``; without a host it is on the Docker Hub, as with images.

    Raises:
        Invalid: It is something else, a whole image reference for example.
    """
    hint = "write HOST[:PORT]/PATH, without a tag"
    # With a digest behind it nothing is taken for granted: a tag shows as one.
    reference = parse_reference(f"{text}@sha256:{'0' * 64}") if text and "@" not in text else None
    if not isinstance(reference, RegistryReference) or reference.tag is not None:
        raise Invalid(f"{text[:100]!r} is not a repository", hint=hint)
    return RegistryReference(reference.registry, reference.repository)
