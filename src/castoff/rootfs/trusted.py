"""The artifact of an image that counts on this host."""

from __future__ import annotations

import asyncio

from castoff.artifact.artifact import Artifact
from castoff.artifact.find import find_artifact
from castoff.artifact.trust import load_trust
from castoff.errors import NotFound
from castoff.image.image import Image
from castoff.image.reference import parse_reference
from castoff.image.referrers import ReferrerLists
from castoff.rootfs.context import ProviderContext

__all__ = ["NoArtifact", "trusted_artifact"]


class NoArtifact(NotFound):
    """An image has no artifact that counts on this host."""


async def trusted_artifact(image: Image, context: ProviderContext, lists: ReferrerLists | None = None) -> Artifact:
    """The image's artifact, whose signature is of a key that this host trusts; ``lists`` as of :func:`find_artifact`.

    Raises:
        NoArtifact: There is none; why others do not count was told as notices.
        Invalid: A repository of the settings is none.
    """
    trust = await asyncio.to_thread(load_trust, context.store.state)
    settings = context.artifact
    artifact, notes = await find_artifact(
        image,
        parse_reference(image.reference),
        context.image,
        trust,
        repositories=settings.repositories,
        timeout=settings.find_timeout,
        lists=lists,
    )
    for note in notes:
        context.notice(note)
    if artifact is None:
        raise NoArtifact(
            f"{image.reference} has no rootfs artifact that counts here", hint="`castoff publish` makes one; see `castoff trust`"
        )
    return artifact
