"""One blob's upload to a registry: begun, sent in parts, gone on with where it broke, committed.

Source: OCI distribution spec 1.1, spec.md, "Pushing blobs": POST opens a session and gives its URL, PATCH appends, PUT with
the digest commits; each answer gives the URL to use next. After a break, GET on the session tells how far it came. What
registries make of that differs: docker-registry 2.8 lets go of a session that a broken PATCH left longer than its last
answer said (its URL carries a signed offset), so a session that is gone is begun anew, and a blob that is there after all
was committed by a PUT whose answer was lost.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable

from castoff.errors import CastoffError, Invalid, NotFound, Unavailable
from castoff.image.client import RegistryClient
from castoff.image.outgoing import Body, OutgoingBlob
from castoff.image.retry import Backoff
from castoff.image.settings import ImageSettings
from castoff.image.transport import Response
from castoff.image.url import Origin, Url

__all__ = ["Upload", "has_blob"]

_PART = 32 << 20
"""Bytes of a request's body; what most proxies before registries let through. A smaller blob goes in one."""
_LARGEST_PART = 1 << 30
_PROGRESS = 1 << 20
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,15})\Z")
_OCTETS = {"Content-Type": "application/octet-stream"}


async def has_blob(client: RegistryClient, blob: OutgoingBlob, backoff: Backoff) -> bool:
    """Whether the repository has the blob.

    Raises:
        Unauthorized, Unavailable: It does not answer, or refuses.
        Invalid: It has one of another size under the digest.
    """
    try:
        async with await client.open(blob.what, "HEAD", f"blobs/{blob.digest}", {}, backoff) as response:
            told = response.headers.get("Content-Length", "")
            if told.isdecimal() and int(told) != blob.size:
                raise Invalid(f"{client.endpoint.host} has {told} bytes under the digest of {blob.what}, which has {blob.size}")
            return True
    except NotFound:
        return False


class Upload:
    """An upload that was not begun yet.

    Args:
        client: The repository, with the right to push.
        blob: What goes there.
        settings: Time limits and tries.
        sent: Told the bytes of each part that the registry took.
    """

    def __init__(
        self, client: RegistryClient, blob: OutgoingBlob, settings: ImageSettings, sent: Callable[[int], object] = lambda n: None
    ) -> None:
        self._client = client
        self._blob = blob
        self._backoff = Backoff(settings)
        self._settings = settings
        self._sent = sent
        self._part = _PART
        self._location: Url | None = None
        self._offset = 0
        self._furthest = 0
        self._settled = 0

    async def mount(self, source: str) -> bool:
        """Has the registry take the blob from another of its repositories; False: it did not, and ``run`` sends it.

        Raises:
            Unavailable: It does not answer.
        """
        path = f"blobs/uploads/?mount={self._blob.digest}&from={source}"
        async with await self._open("POST", path, good=(201, 202, 401, 403, 404)) as response:
            if response.status == 202:  # the spec's other answer: an upload like any
                self._begun(response)
            return response.status == 201

    async def abandon(self) -> None:
        """Ends a session that a mount that failed began, so that the registry keeps nothing of it."""
        if self._location is not None:
            with contextlib.suppress(CastoffError):  # the registry forgets it in time
                async with await self._open("DELETE", self._location, good=(200, 202, 204, 404)):
                    self._location = None

    async def run(self) -> None:
        """Sends the blob, in as many tries as the settings allow without progress.

        Raises:
            Invalid, Unauthorized, Unsupported: The registry refuses it.
            Unavailable: It broke too often.
        """
        while True:
            if self._location is None:
                await self._begin()
            try:
                while self._blob.size > self._offset and (self._offset or self._blob.size > self._part):
                    await self._append()
                await self._commit()
                return
            except (Unavailable, NotFound) as error:
                await self._backoff.wait(error)
            if await has_blob(self._client, self._blob, self._backoff):
                return
            await self._resume()

    async def _open(self, method: str, path: str | Url, *, good: tuple[int, ...], body: Body | None = None) -> Response:
        headers = {**_OCTETS, "Content-Length": str(len(body))} if body is not None else {"Content-Length": "0"}
        if method == "PATCH":
            headers["Content-Range"] = f"{self._offset}-{self._offset + len(body or ()) - 1}"
        # A body that broke off is never just sent again: how much of it was taken is asked first.
        backoff = Backoff(self._settings, retries=0) if body is not None else self._backoff
        return await self._client.open(self._blob.what, method, path, headers, backoff, body=body, good=good)

    async def _begin(self) -> None:
        async with await self._open("POST", "blobs/uploads/", good=(202,)) as response:
            self._begun(response)

    def _begun(self, response: Response) -> None:
        self._location, self._offset = self._next(response), 0
        least = response.headers.get("OCI-Chunk-Min-Length", "")
        if least.isdecimal() and len(least) < 12:
            self._part = min(max(_PART, int(least)), _LARGEST_PART)

    async def _append(self) -> None:
        assert self._location is not None
        end = min(self._offset + self._part, self._blob.size)
        body = Body(self._blob, self._offset, end)
        async with await self._open("PATCH", self._location, good=(202, 204, 416), body=body) as response:
            offset = self._told(response, end) if response.status != 416 else 0
            if offset <= self._offset:
                raise Unavailable(f"{response.url.origin} takes no more of {self._blob.what} at byte {self._offset}")
            self._location = self._next(response)
            self._reached(offset)

    async def _commit(self) -> None:
        assert self._location is not None
        target = self._location.target
        url = Url(self._location.origin, f"{target}{'&' if '?' in target else '?'}digest={self._blob.digest}")
        body = Body(self._blob, self._offset, self._blob.size)
        async with await self._open("PUT", url, good=(201, 204), body=body):
            self._reached(self._blob.size)

    async def _resume(self) -> None:
        """Asks how far the session came; a session that is gone is forgotten."""
        if self._location is None:
            return
        try:
            async with await self._open("GET", self._location, good=(200, 204)) as response:
                self._location = self._next(response)
                self._offset = self._told(response, 0)
        except (NotFound, Invalid, Unavailable):
            self._location = None

    def _reached(self, offset: int) -> None:
        if offset > self._furthest:
            self._sent(offset - self._furthest)
            self._furthest = offset
        if offset - self._settled >= _PROGRESS:  # not for less: a registry that takes a byte at a time is broken
            self._settled = offset
            self._backoff.progressed()
        self._offset = offset

    def _told(self, response: Response, default: int) -> int:
        """Where the session stands, by the answer's Range: the last byte that it has, 0-0 also where it has none."""
        match = _RANGE.match(response.headers.get("Range", ""))
        if match is None:
            return default
        offset = int(match[1]) + 1 if int(match[1]) else 0
        if offset > self._blob.size:
            raise Invalid(f"{response.url.origin} says that it has {offset} of the {self._blob.size} bytes of {self._blob.what}")
        return offset

    def _next(self, response: Response) -> Url:
        """The session's next URL: often relative, and where TLS ends before the registry, often with the wrong scheme."""
        location = response.headers.get("Location")
        if location is None:
            if self._location is not None:
                return self._location
            raise Invalid(f"{response.url.origin} begins an upload and does not say where")
        url = Url.parse(location, base=response.url)
        own = response.url.origin
        if url.origin.host == own.host and url.origin.scheme == "http" and own.scheme == "https":
            return Url(own, url.target)
        _check_elsewhere(own, url.origin)
        return url


def _check_elsewhere(own: Origin, other: Origin) -> None:
    """Refuses to send a blob where a redirect of a read would not be followed to."""
    if other.is_loopback and not own.is_loopback:
        raise Unavailable(f"{own} wants an upload to go to {other}, which is this host itself", hint="refused")
    if own.scheme == "https" and other.scheme == "http":
        raise Unavailable(f"{own} wants an upload to go on over plain HTTP, to {other}", hint="the registry is misconfigured")
