"""Repositories: as settings and people name them, and as artifacts have them, to be read from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from castoff.errors import Invalid
from castoff.image.client import RegistryClient
from castoff.image.credentials import Keyring
from castoff.image.endpoint import endpoints_of
from castoff.image.reference import Reference, RegistryReference, parse_reference
from castoff.image.settings import ImageSettings
from castoff.image.transport import Transport

__all__ = ["open_repository", "parse_repository", "places_of", "whole_name"]


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


def places_of(reference: Reference, repositories: Sequence[str]) -> list[RegistryReference]:
    """Where to look for what belongs to an image: in its own repository, which one on disk has not, then in ``repositories``.

    Raises:
        Invalid: ``repositories`` has something else in it.
    """
    places = {place.name: place for place in map(parse_repository, repositories)}
    if isinstance(reference, RegistryReference):
        places = {reference.name: reference} | places
    return list(places.values())


def whole_name(name: str) -> RegistryReference:
    """The repository of a name that is whole, ``HOST[:PORT]/PATH``, as artifacts have it: its host may be any, a mirror's too."""
    registry, _, path = name.partition("/")
    return RegistryReference(registry, path)


@asynccontextmanager
async def open_repository(name: str, settings: ImageSettings) -> AsyncIterator[RegistryClient]:
    """Requests to one repository, for the block.

    Args:
        name: Its whole name.
        settings: How to reach it; mirrors are left out, they have no artifacts.
    """
    transport = Transport(settings)
    try:
        yield RegistryClient(endpoints_of(whole_name(name), settings)[-1], Keyring(settings), transport, settings)
    finally:
        await transport.close()
