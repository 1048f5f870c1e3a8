"""Boot profiles in registries: found by the one request that lists what refers to an image, beside its artifact.

What is found is as hostile as any referrer: it counts only where a trusted key signed it for this very image, and even then
a profile only says what to fetch first; every chunk is checked by its layer's index. Nothing here stops a create.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from castoff.artifact.artifact import Blob
from castoff.artifact.profile_referrer import (
    HOT_PACK_TYPE,
    PROFILE_TYPE,
    ProfileReferrer,
    profile_manifest,
    read_profile_referrer,
)
from castoff.artifact.repository import places_of
from castoff.artifact.trust import Trust
from castoff.errors import CastoffError, Invalid
from castoff.image import media
from castoff.image.client import RegistryClient
from castoff.image.credentials import Keyring
from castoff.image.digest import Digest
from castoff.image.endpoint import endpoints_of
from castoff.image.image import Layer
from castoff.image.outgoing import OutgoingBlob
from castoff.image.push import RegistryWriter
from castoff.image.reference import Reference, RegistryReference
from castoff.image.referrers import Referrer, ReferrerLists, annotated
from castoff.image.retry import Backoff
from castoff.image.settings import ImageSettings
from castoff.image.transfer import check_answer, range_from, transfer
from castoff.image.transport import Response, Transport
from castoff.image.verify import check
from castoff.timeline import step

__all__ = [
    "PublishedProfile",
    "choose_profile",
    "fetch_profile",
    "find_profile",
    "open_hot_pack",
    "push_profile",
    "read_profiles",
    "superseded",
]

_RETRIES = 2
_MAX_FETCHED = 8
_MANIFEST_LIMIT = 64 << 10
"""Bytes of a profile's manifest; it has under 2,000."""
MAX_NOTES = 8


@dataclass(frozen=True, slots=True)
class PublishedProfile:
    """A profile that a trusted key signed for the image."""

    repository: str
    """``HOST[:PORT]/PATH`` where its blobs are."""
    digest: Digest
    """Of its manifest."""
    referrer: ProfileReferrer

    @property
    def rank(self) -> tuple[int, int, Digest]:
        """The more boots it rests on the better, then the newer; the digest decides the rest alike on every host."""
        return self.referrer.boots, self.referrer.recorded, self.digest


def choose_profile(
    rows: Sequence[Referrer], image: Digest, trust: Trust, repository: str
) -> tuple[PublishedProfile | None, list[str]]:
    """The best profile among what refers to an image; computes, so it belongs in a thread.

    Args:
        rows: As a registry lists them.
        image: Of the image's manifest.
        trust: Whose profiles count.
        repository: Where they are.

    Returns:
        The profile; and a line about each that is broken or claims what is not so. Those of strangers are passed over without
        one: their artifacts have been told of.
    """
    found: list[PublishedProfile] = []
    notes: list[str] = []
    for row in rows:
        if row.artifact_type != PROFILE_TYPE:
            continue
        try:
            referrer = read_profile_referrer(row.annotations)
        except Invalid as error:
            notes.append(f"the boot profile {row.digest} in {repository} cannot be read: {error.what}: passed over")
            continue
        if trust.find(referrer.key) is not None:
            found.append(PublishedProfile(repository, row.digest, referrer))
    for one in sorted(found, key=lambda one: one.rank, reverse=True):
        if one.referrer.image == image and one.referrer.holds():
            return one, notes[:MAX_NOTES]
        notes.append(f"the boot profile {one.digest} in {repository} is not what its signature says: refused")
    return None, notes[:MAX_NOTES]


async def find_profile(
    image: Digest,
    reference: Reference,
    settings: ImageSettings,
    trust: Trust,
    *,
    repositories: Sequence[str] = (),
    timeout: float = 10.0,
    lists: ReferrerLists | None = None,
) -> tuple[PublishedProfile | None, list[str]]:
    """The best profile of an image, in its own repository and the central ones, all asked at once.

    Args:
        image: Of the image's manifest.
        reference: How the image was named; one on disk has no repository of its own.
        settings: How to reach registries.
        trust: Whose profiles count.
        repositories: Central repositories, ``HOST[:PORT]/PATH``.
        timeout: Seconds that any one may take.
        lists: What refers to the image, for who looks for more than its profile.

    Returns:
        The profile, its signature checked, or None; and lines for people about what was found and does not count.

    Raises:
        Invalid: ``repositories`` has something else in it.
    """
    settings = msgspec.structs.replace(settings, retries=min(_RETRIES, settings.retries))
    places = places_of(reference, repositories)
    transport = Transport(settings)
    keyring = Keyring(settings)
    shared = lists or ReferrerLists(image)

    async def look(place: RegistryReference) -> tuple[PublishedProfile | None, list[str]]:
        try:
            async with asyncio.timeout(timeout):
                client = RegistryClient(endpoints_of(place, settings)[-1], keyring, transport, settings)
                rows = await read_profiles(client, shared, limit=settings.max_manifest_size)
            return await asyncio.to_thread(choose_profile, rows, image, trust, place.name)
        except TimeoutError:
            return None, [f"{place.name} was not asked for a boot profile: no answer within {timeout:g} s"]
        except CastoffError as error:
            return None, [f"{place.name} was not asked for a boot profile: {error}"]

    try:
        with step("artifact.profiles", image=str(image), repositories=len(places)):
            answers = await asyncio.gather(*(look(place) for place in places))
    finally:
        await transport.close()
    found = [profile for profile, _ in answers if profile is not None]
    return max(found, key=lambda one: one.rank, default=None), [note for _, notes in answers for note in notes]


async def read_profiles(client: RegistryClient, lists: ReferrerLists, *, limit: int) -> list[Referrer]:
    """The profiles among what refers to an image in the client's repository, unchecked; none is a result, not an error.

    Annotations that the list does not show, as of registries from before that was asked of them, are read from the manifests.

    Args:
        client: The registry, and the repository.
        lists: What refers to the image.
        limit: Bytes of a page of a list.

    Raises:
        Unavailable, Unauthorized, Invalid: As castoff.image.referrers.read_referrers.
    """
    rows = [row for row in (await lists.read(client, limit=limit)).rows if row.artifact_type == PROFILE_TYPE]
    bare = [row for row in rows if not row.annotations][-_MAX_FETCHED:]  # lists grow at their end
    reading = (annotated(client, row, f"the boot profile {row.digest}", limit=_MANIFEST_LIMIT) for row in bare)
    read = {row.digest: row for row in await asyncio.gather(*reading)}
    return [read.get(row.digest, row) for row in rows]


def superseded(rows: Sequence[Referrer], by: PublishedProfile) -> list[Digest]:
    """The manifests of profiles that the same key signed for the same image, of no more boots; computes, as choose_profile.

    Args:
        rows: Profiles, as a registry lists them.
        by: The profile that was published after them.
    """
    found = []
    for row in rows:
        if row.artifact_type != PROFILE_TYPE or row.digest == by.digest:
            continue
        try:
            referrer = read_profile_referrer(row.annotations)
        except Invalid:
            continue
        same = referrer.key == by.referrer.key and referrer.image == by.referrer.image
        if same and referrer.boots <= by.referrer.boots and referrer.holds():
            found.append(row.digest)
    return found


async def fetch_profile(client: RegistryClient, published: PublishedProfile) -> bytes:
    """The profile's bytes, as they were signed (castoff.hydrate.profile_file.decode_profile reads them).

    Raises:
        DigestMismatch, Invalid: The registry gives others.
        CastoffError: They are not to be had.
    """
    blob, what = published.referrer.blob, f"the boot profile of {published.referrer.image}"
    data, _ = await client.read(what, f"blobs/{blob.digest}", "*/*", blob.size)
    return check(what, data, blob.digest, blob.size)


async def push_profile(
    writer: RegistryWriter, referrer: ProfileReferrer, data: bytes, hot_pack: Path, *, media_type: str, size: int
) -> PublishedProfile:
    """Publishes a profile beside the image, or in a central repository.

    Args:
        writer: Of the repository.
        referrer: What it is, signed.
        data: The profile.
        hot_pack: The hot pack's file.
        media_type: Of the image's manifest.
        size: Bytes of it.

    Raises:
        CastoffError: The registry did not take it.
    """
    image = referrer.image
    for blob in (
        OutgoingBlob.of("an empty configuration", media.EMPTY_JSON),
        OutgoingBlob.of(f"the boot profile of {image}", data),
        OutgoingBlob(f"the hot pack of {image}", referrer.hot_pack.digest, referrer.hot_pack.size, hot_pack),
    ):
        await writer.push_blob(blob)
    digest = await writer.put_referrer(
        f"the boot profile of {image}",
        profile_manifest(referrer, media_type=media_type, size=size),
        subject=image,
        artifact_type=PROFILE_TYPE,
        annotations=referrer.annotations(),
    )
    return PublishedProfile(writer.repository, digest, referrer)


async def open_hot_pack(
    client: RegistryClient, image: Digest, blob: Blob, settings: ImageSettings
) -> AsyncGenerator[bytes, None]:
    """The hot pack's bytes as they come, for castoff.hydrate.hot_stream: one GET, and where it breaks another for the rest.

    The blob's own digest is not checked: its chunks are, one by one, before the whole is here.

    Args:
        client: Of the repository that has it.
        image: Of the image's manifest.
        blob: The hot pack.
        settings: How patiently to fetch.

    Raises:
        CastoffError: It is not to be had, or broke too often.
    """
    what = f"the hot pack of {image}"

    async def open_at(offset: int, backoff: Backoff) -> Response:
        response = await client.open(what, "GET", f"blobs/{blob.digest}", range_from(offset), backoff)
        try:
            check_answer(what, response, offset, blob.size)
        except CastoffError:
            response.close()
            raise
        return response

    layer = Layer(blob.digest, blob.size, HOT_PACK_TYPE, blob.digest)  # what a transfer is told of a blob
    patience = 4 * settings.read_timeout
    async with aclosing(transfer(what, layer, open_at, Backoff(settings), patience=patience)) as pieces:
        async for piece in pieces:
            yield piece
