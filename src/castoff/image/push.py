"""Pushes to one repository: blobs, manifests, and manifests that refer to another.

Blobs that are there are not sent: each is asked for first, then the registry is asked to take it from another of its
repositories (a cross-repository mount), and only then does it travel. Source: OCI distribution spec 1.1, spec.md, "Push".
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from castoff.errors import DigestMismatch, Unauthorized
from castoff.image import media
from castoff.image.client import RegistryClient
from castoff.image.credentials import Keyring
from castoff.image.digest import Digest
from castoff.image.endpoint import endpoints_of
from castoff.image.outgoing import OutgoingBlob
from castoff.image.reference import RegistryReference
from castoff.image.settings import ImageSettings
from castoff.image.tag_schema import add_referrer, drop_referrer
from castoff.image.transport import Transport
from castoff.image.upload import Upload, has_blob

__all__ = ["Pushed", "RegistryWriter"]


_MOUNTS = 3
"""Repositories that a blob is asked for before it is sent: a refusal costs a round trip, and leaves an upload behind."""


class Pushed(enum.StrEnum):
    """How a blob came to be where it should be."""

    PRESENT = "present"
    MOUNTED = "mounted"
    SENT = "sent"


class RegistryWriter:
    """Pushes to one repository of a registry, never of a mirror. Asks nothing before it is used.

    Args:
        reference: The repository; tag and digest do not matter.
        settings: Time limits, tries, credentials.
    """

    def __init__(self, reference: RegistryReference, settings: ImageSettings) -> None:
        self.reference = reference
        self._settings = settings
        self._transport = Transport(settings)
        endpoint = endpoints_of(reference, settings)[-1]
        self.client = RegistryClient(endpoint, Keyring(settings), self._transport, settings, actions="pull,push")
        """Reads from the repository too, with the same credentials."""

    @property
    def repository(self) -> str:
        """``HOST[:PORT]/PATH``."""
        return self.reference.name

    async def has_blob(self, blob: OutgoingBlob) -> bool:
        """Whether the repository has it."""
        return await has_blob(self.client, blob, self.client.backoff())

    async def push_blob(
        self, blob: OutgoingBlob, *, mount_from: Sequence[str] = (), sent: Callable[[int], object] = lambda count: None
    ) -> Pushed:
        """Sees to it that the repository has the blob.

        Args:
            blob: The blob; its source is read only where it has to travel.
            mount_from: Paths of repositories of the same registry that may have it.
            sent: Told bytes as the registry takes them.

        Raises:
            Unauthorized, Unavailable, Unsupported, Invalid: As of :class:`castoff.image.upload.Upload`.
        """
        if await self.has_blob(blob):
            return Pushed.PRESENT
        upload = Upload(self.client, blob, self._settings, sent)
        if await self._mount(upload, mount_from):
            return Pushed.MOUNTED
        await upload.run()
        return Pushed.SENT

    async def adopt_blob(self, blob: OutgoingBlob, *, mount_from: Sequence[str] = ()) -> Pushed | None:
        """The same without sending anything: None where the repository has it not, and the registry takes it from no other."""
        if await self.has_blob(blob):
            return Pushed.PRESENT
        upload = Upload(self.client, blob, self._settings)
        try:
            return Pushed.MOUNTED if await self._mount(upload, mount_from) else None
        finally:
            await upload.abandon()

    async def _mount(self, upload: Upload, mount_from: Sequence[str]) -> bool:
        others = (source for source in mount_from if source != self.reference.repository)
        for source in islice(others, _MOUNTS):
            if await upload.mount(source):
                return True
        return False

    async def put_manifest(self, what: str, data: bytes, media_type: str, *, tag: str | None = None) -> bool:
        """Puts a manifest under its digest, or a tag.

        Returns:
            Whether the registry listed it as a referrer of its subject.

        Raises:
            DigestMismatch: The registry took it for something else.
            CastoffError: It was refused, or there was no answer.
        """
        digest = Digest.of(data)
        headers = {"Content-Type": media_type}
        path = f"manifests/{tag or digest}"
        async with await self.client.open(what, "PUT", path, headers, self.client.backoff(), body=data, good=(201,)) as response:
            told = response.headers.get("Docker-Content-Digest")
            if told is not None and told != str(digest):
                raise DigestMismatch(what, expected=str(digest), actual=told[:100])
            return "OCI-Subject" in response.headers

    async def put_referrer(
        self, what: str, data: bytes, *, subject: Digest, artifact_type: str, annotations: Mapping[str, str] | None = None
    ) -> Digest:
        """Puts a manifest whose ``subject`` is another one, and sees to it that it is found from there.

        Args:
            what: Names it in errors.
            data: The manifest; its blobs are there already.
            subject: Its subject, which need not be in the repository.
            artifact_type: As it stands in the manifest.
            annotations: As they stand in the manifest; lists of referrers repeat them.
        """
        digest = Digest.of(data)
        if not await self.put_manifest(what, data, media.OCI_MANIFEST):
            entry: dict[str, Any] = {"mediaType": media.OCI_MANIFEST, "digest": str(digest), "size": len(data)}
            entry["artifactType"] = artifact_type
            if annotations:
                entry["annotations"] = dict(annotations)
            await add_referrer(self.client, subject, entry, limit=self._settings.max_manifest_size)
        return digest

    async def delete_referrer(self, what: str, digest: Digest, *, subject: Digest) -> bool:
        """Deletes a manifest that refers to another, where the registry lets us; many let nobody.

        Args:
            what: Names it in errors.
            digest: The manifest's.
            subject: The other's.

        Returns:
            Whether it is gone: False where the registry has no deletion, or not for us.

        Raises:
            Unavailable, Invalid: The registry does not answer, or what it keeps is no list.
        """
        refused = (400, 401, 403, 405, 501)
        try:
            async with await self.client.open(
                what, "DELETE", f"manifests/{digest}", {}, self.client.backoff(), good=(200, 202, 204, 404, *refused)
            ) as response:
                if response.status in refused:
                    return False
        except Unauthorized:
            return False
        await drop_referrer(self.client, subject, digest, limit=self._settings.max_manifest_size)
        return True

    async def close(self) -> None:
        """Closes the connections."""
        await self._transport.close()
