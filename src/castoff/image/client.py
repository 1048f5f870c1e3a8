"""The requests of OCI's distribution protocol to one endpoint.

Source: OCI distribution spec 1.1 (spec.md, "Pull"). Every answer that is not the thing asked for becomes an error here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from http.client import HTTPMessage
from typing import Literal

from castoff.errors import CastoffError, Invalid, LimitExceeded, NotFound, Unauthorized, Unavailable, Unsupported
from castoff.image.auth import Authorizer
from castoff.image.connect import Broken
from castoff.image.credentials import Keyring
from castoff.image.digest import Digest
from castoff.image.endpoint import Endpoint
from castoff.image.exchange import Request, exchange, explain, follow
from castoff.image.retry import Backoff
from castoff.image.settings import ImageSettings
from castoff.image.transport import Response, Transport
from castoff.image.url import SCHEMES, Origin, Scheme, Url

__all__ = ["RegistryClient"]


_ANY = Digest.of(b"{}")
"""A blob to ask for where any answer will do."""

Actions = Literal["pull", "pull,push"]


class RegistryClient:
    """Asks one endpoint for things of one repository, or gives it some.

    Args:
        endpoint: The registry, or a mirror of it.
        actions: What credentials are asked for.
    """

    def __init__(
        self, endpoint: Endpoint, keyring: Keyring, transport: Transport, settings: ImageSettings, *, actions: Actions = "pull"
    ) -> None:
        self.endpoint = endpoint
        self._transport = transport
        self._settings = settings
        self._scheme = endpoint.scheme
        scope = f"repository:{endpoint.repository}:{actions}"
        self._authorizer = Authorizer(endpoint.host, scope, keyring, transport, settings)

    def backoff(self) -> Backoff:
        """A new count of tries; a mirror has fewer, since the registry itself comes after it."""
        return Backoff(self._settings, retries=min(1, self._settings.retries) if self.endpoint.is_mirror else None)

    async def open(
        self,
        what: str,
        method: str,
        path: str | Url,
        headers: dict[str, str],
        backoff: Backoff,
        *,
        body: bytes | Iterable[bytes] | None = None,
        good: Collection[int] = (200, 206),
    ) -> Response:
        """Asks for ``path`` of the repository; the answer, which is a good one, is the caller's to close.

        Args:
            what: Names it in errors.
            path: Within the repository; or a URL that the registry gave, which sees our credentials only where it is its own.
            body: What is sent; see :meth:`Transport.send`.
            good: The statuses that are answers; any other is an error.

        Raises:
            NotFound, Unauthorized, Unavailable: It is not to be had.
            Invalid, Unsupported: It was sent, and is refused.
        """
        shown = self._authorizer.header()
        renewed = False
        while True:
            response = await self._send(method, path, headers, shown, backoff, body)
            if response.status in good:
                return response
            redirected = response.url.origin != self._origin(response.url.origin.scheme)
            if response.status == 401 and not renewed and not redirected:
                challenges = response.headers.get_all("WWW-Authenticate", [])
                response.close()
                shown = await self._authorizer.renew(response.url.origin, challenges, shown)
                renewed = True
                continue
            error = await self._refusal(what, response, method, with_credentials=shown is not None)
            if not redirected:
                raise error
            await backoff.wait(error)  # a signed URL that expired between its making and its use: the next is fresh

    async def read(self, what: str, path: str, accept: str, limit: int) -> tuple[bytes, HTTPMessage]:
        """A small document, whole, and the answer's headers.

        Raises:
            LimitExceeded: It is over ``limit`` bytes.
            NotFound, Unauthorized, Unavailable: It is not to be had.
        """
        backoff = self.backoff()
        while True:
            try:
                async with await self.open(what, "GET", path, {"Accept": accept}, backoff) as response:
                    data = b"" if (response.length or 0) > limit else await response.read(limit)
                    if len(data) > limit or (response.length or 0) > limit:
                        raise LimitExceeded(f"{what}, in bytes,", limit=limit, setting="image.max_manifest_size")
                    if not data:
                        # http.client takes a connection that closes within the headers for their end.
                        raise Broken(f"{response.url.origin} answers with nothing for {what}", hint="try again later")
                    return data, response.headers
            except Broken as error:
                await backoff.wait(error)

    async def _send(
        self,
        method: str,
        path: str | Url,
        headers: dict[str, str],
        shown: str | None,
        backoff: Backoff,
        body: bytes | Iterable[bytes] | None,
    ) -> Response:
        if isinstance(path, Url):
            own = path.origin == self._origin(path.origin.scheme)
            request = Request(method, path, headers, body, authorization=shown if own else None)
            return await exchange(self._transport, request, backoff, self._settings)
        if self._scheme is None and body is not None:
            (await self._send_unsure("HEAD", f"blobs/{_ANY}", {}, backoff)).close()  # a body goes to who is known
        if self._scheme is not None:
            request = Request(method, self._url(self._scheme, path), headers, body, authorization=shown)
            return await exchange(self._transport, request, backoff, self._settings)
        return await self._send_unsure(method, path, headers, backoff)

    async def _send_unsure(self, method: str, path: str, headers: dict[str, str], backoff: Backoff) -> Response:
        """The first request to a loopback port: plain HTTP, and TLS if the answer is none, or is TLS's to plain HTTP.

        Nothing secret goes along: credentials are shown only after a challenge, and that settles the scheme.
        """
        plain, secure = (Request(method, self._url(scheme, path), headers) for scheme in SCHEMES)
        response = await self._try(plain)
        if response is None or _is_tls(response):
            if response is not None:
                response.close()
            other = await self._try(secure)
            if other is not None:
                self._scheme = "https"
                return await exchange(self._transport, secure, backoff, self._settings, first=other)
            response = None  # no TLS either: asked again, plain HTTP will say what is wrong
        response = await exchange(self._transport, plain, backoff, self._settings, first=response)
        self._scheme = "http"
        return response

    async def _try(self, request: Request) -> Response | None:
        try:
            return await follow(self._transport, request, self._settings)
        except Broken:
            return None  # not spoken there, or nobody there: the tries that follow tell

    def _origin(self, scheme: Scheme) -> Origin:
        return self.endpoint.origin(scheme)

    def _url(self, scheme: Scheme, path: str) -> Url:
        return Url(self.endpoint.origin(scheme), f"/v2/{self.endpoint.repository}/{path}")

    async def _refusal(self, what: str, response: Response, method: str, *, with_credentials: bool) -> CastoffError:
        text = await explain(response)
        host = self.endpoint.host if response.url.origin == self._origin(response.url.origin.scheme) else str(response.url.origin)
        if response.status == 404:
            return NotFound(f"{host} does not have {what}: {text}", hint="check name and tag")
        writes = method not in ("GET", "HEAD")
        if response.status in (401, 403):
            hint = f"check the name, and what that account may {'write' if writes else 'read'}: docker login {host}"
            return Unauthorized(f"{host} refuses {what}: {text}", hint=hint if with_credentials else f"docker login {host}")
        if writes and response.status == 405:  # a mirror, or a registry that is set to read only
            return Unsupported(f"{host} takes no pushes: {text}", hint="name a registry that does with --to")
        if writes and 400 <= response.status < 500:
            return Invalid(f"{host} does not take {what}: {text}")
        return Unavailable(f"{host} does not {'take' if writes else 'give'} {what}: {text}")


def _is_tls(response: Response) -> bool:
    """Whether it is what servers of TLS (Go's, nginx) say to plain HTTP; a registry would say that it is one."""
    return response.status == 400 and "Docker-Distribution-Api-Version" not in response.headers
