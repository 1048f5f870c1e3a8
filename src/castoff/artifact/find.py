"""Finds the artifact of an image: in the image's own repository, then in the central ones, all asked at once.

One request to each repository lists artifacts and signatures (castoff.image.referrers), a second gets the manifest of the
one that counts. Where a repository has no trusted one among its referrers, the index that the image's name leads to is
looked at: ``castoff publish --index`` puts artifact and signature there, for copies that lose referrers.

Nothing that goes wrong here stops a create: an artifact that is not to be had, or not to be believed, is as if it were not
there, and a line says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import msgspec

from castoff.artifact.artifact import Artifact
from castoff.artifact.candidates import read_artifact, sort_signatures
from castoff.artifact.repository import places_of
from castoff.artifact.signature import SIGNATURE_TYPE, is_for
from castoff.artifact.trust import Trust
from castoff.errors import CastoffError, Invalid, NotFound, Unavailable, Unsupported
from castoff.image import media
from castoff.image.client import RegistryClient
from castoff.image.credentials import Keyring
from castoff.image.endpoint import endpoints_of
from castoff.image.image import Image
from castoff.image.manifest import Index, decode
from castoff.image.reference import Reference, RegistryReference
from castoff.image.referrers import Referrer, ReferrerLists, annotated, referrers_of
from castoff.image.settings import ImageSettings
from castoff.image.transport import Transport
from castoff.image.verify import check
from castoff.timeline import step

__all__ = ["find_artifact"]

SIGNATURE_LIMIT = 64 << 10
"""Bytes of a signature's manifest; it has under 1,000."""
MAX_FETCHED = 16
"""Manifests of signatures that are fetched, from registries that leave annotations out of their lists."""
MAX_CANDIDATES = 8
"""Manifests of artifacts that are fetched, until one is whole."""
MAX_NOTES = 8
_RETRIES = 2

_Finding: TypeAlias = "tuple[Artifact | None, list[str]]"


async def find_artifact(
    image: Image,
    reference: Reference,
    settings: ImageSettings,
    trust: Trust,
    *,
    repositories: Sequence[str] = (),
    timeout: float = 10.0,
    lists: ReferrerLists | None = None,
) -> tuple[Artifact | None, list[str]]:
    """Looks for an artifact of ``image`` that a trusted key signed.

    Args:
        image: The image, resolved.
        reference: How it was named; an image on disk has no repository of its own.
        settings: How to reach registries.
        trust: Whose artifacts count (:func:`castoff.artifact.trust.load_trust`).
        repositories: Central repositories, ``HOST[:PORT]/PATH``.
        timeout: Seconds that any one repository may take.
        lists: What refers to the image, for who looks for more than its artifact.

    Returns:
        The artifact, its signature and manifest checked, or None; and lines for people, each about something that was
        found and does not count, or about a repository that did not answer.

    Raises:
        Invalid: ``repositories`` has something else in it.
    """
    settings = msgspec.structs.replace(settings, retries=min(_RETRIES, settings.retries))
    places = places_of(reference, repositories)
    transport = Transport(settings)
    try:
        search = _Search(image, trust, settings, transport, Keyring(settings), lists or ReferrerLists(image.digest))
        with step("artifact.find", image=str(image.digest), repositories=len(places)):
            artifact, notes = await _first([search.look(place, timeout) for place in places])
    finally:
        await transport.close()
    return artifact, [*trust.problems, *notes]


async def _first(looks: Sequence[Coroutine[None, None, _Finding]]) -> _Finding:
    """The first finding, in their order, that has an artifact; all of them run at once, and none longer than it is needed."""
    tasks = [asyncio.create_task(look) for look in looks]
    notes: list[str] = []
    try:
        for task in tasks:
            artifact, said = await task
            notes += said
            if artifact is not None:
                return artifact, notes
        return None, notes
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _Search:
    """What is looked for, and by whom."""

    image: Image
    trust: Trust
    settings: ImageSettings
    transport: Transport
    keyring: Keyring
    lists: ReferrerLists

    async def look(self, place: RegistryReference, timeout: float) -> _Finding:
        """Looks in one repository. Its mirrors stand for it, as with images: the first that answers decides."""
        failure: CastoffError | None = None
        try:
            async with asyncio.timeout(timeout):
                for endpoint in endpoints_of(place, self.settings):
                    client = RegistryClient(endpoint, self.keyring, self.transport, self.settings)
                    try:
                        return await self._ask(client, place)
                    except CastoffError as error:
                        failure = error
        except TimeoutError:
            failure = Unavailable(f"{place.registry} did not answer within {timeout:g} s")
        return None, [f"{place.name} was not asked for an artifact: {failure}"]

    async def _ask(self, client: RegistryClient, place: RegistryReference) -> _Finding:
        where = f"{client.endpoint.host}/{client.endpoint.repository}"
        found = await self.lists.read(client, limit=self.settings.max_manifest_size)
        notes = [f"{where} has more that refers to {self.image.digest} than is looked at"] if found.left_out else []
        artifact, said = await self._choose(client, await self._annotated(client, found.rows), where)
        notes += said
        if artifact is None and (place.tag or place.digest) and place.digest != self.image.digest:
            artifact, said = await self._choose(client, await self._pinned(client, place), where)
            notes += said
        return artifact, notes[:MAX_NOTES]

    async def _choose(self, client: RegistryClient, rows: Sequence[Referrer], where: str) -> _Finding:
        """The best artifact among ``rows`` that is what its signature says."""
        # In a thread: it imports the library, and there may be thousands of rows.
        found = await asyncio.to_thread(sort_signatures, rows, self.image, self.trust, where)
        wrong = list(found.wrong)
        for candidate in found.candidates[:MAX_CANDIDATES]:
            path = f"manifests/{candidate.digest}"
            what = f"the artifact {candidate.digest}"
            try:
                data, _ = await client.read(what, path, media.OCI_MANIFEST, self.settings.max_manifest_size)
                return read_artifact(data, candidate, self.image, where), wrong
            except (Invalid, NotFound) as error:
                wrong.append(f"{error.what}: refused")
        return None, [*wrong, *found.unsigned, *found.strange]

    async def _annotated(self, client: RegistryClient, rows: Sequence[Referrer]) -> list[Referrer]:
        """The rows; signatures that the list does not show whole, as of registries from before that was asked of them, read."""
        bare = [row for row in rows if row.artifact_type == SIGNATURE_TYPE and not row.annotations][:MAX_FETCHED]
        read = {row.digest: await annotated(client, row, f"the signature {row.digest}", limit=SIGNATURE_LIMIT) for row in bare}
        return [read.get(row.digest, row) for row in rows]

    async def _pinned(self, client: RegistryClient, place: RegistryReference) -> list[Referrer]:
        """This image's signatures in the index that ``place`` leads to; none where it leads to no index."""
        path = f"manifests/{place.digest or place.tag}"
        try:
            data, _ = await client.read(str(place), path, media.ACCEPT, self.settings.max_manifest_size)
            if place.digest is not None:
                check(str(place), data, place.digest)
            document = decode(str(place), data)
        except (Invalid, NotFound, Unsupported):
            return []  # moved or removed since the image was resolved
        if not isinstance(document, Index):
            return []
        # By their annotations: skopeo 1.9 writes an index anew when it copies one, and leaves every artifactType out.
        rows = [row for row in referrers_of(str(place), data) if is_for(row.annotations, self.image.digest)]
        return [replace(row, artifact_type=SIGNATURE_TYPE) for row in rows]
