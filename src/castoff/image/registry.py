"""Images in a registry.

What a resolve costs: a digest whose documents are in the cache, nothing, not even an import of the network's modules; a
tag, one HEAD where it still points to what is in the cache; else one request for each document that is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from castoff.errors import CastoffError, DigestMismatch, NotFound, Unavailable, Unsupported
from castoff.image import media
from castoff.image.cache import DocumentCache
from castoff.image.digest import Digest
from castoff.image.endpoint import endpoints_of
from castoff.image.image import Image, Layer, Platform
from castoff.image.known import KnownImages
from castoff.image.reference import RegistryReference
from castoff.image.resolve import read_image
from castoff.image.settings import ImageSettings
from castoff.image.verify import check
from castoff.timeline import step

if TYPE_CHECKING:  # 25 ms of imports that a resolve from the cache does without
    from castoff.image.client import RegistryClient
    from castoff.image.retry import Backoff
    from castoff.image.transport import Response, Transport

__all__ = ["RegistrySource"]

_T = TypeVar("_T")

_FEW = 2  # breaks of a transfer after which mirrors are left out


class RegistrySource:
    """An ImageSource over a registry and its mirrors.

    Args:
        reference: The image.
        settings: How to fetch.
        cache: The directory of manifests and configs.
        known: What this process has resolved already.

    Raises:
        Invalid: A mirror in the settings cannot be read.
    """

    def __init__(
        self, reference: RegistryReference, settings: ImageSettings, cache: Path, known: KnownImages | None = None
    ) -> None:
        self._reference = reference
        self._settings = settings
        self._known = known
        self._endpoints = endpoints_of(reference, settings)
        self._cache = DocumentCache(cache, settings.cache_size)
        self._transport: Transport | None = None
        self._clients: list[RegistryClient] = []
        self._down: set[str] = set()

    async def resolve(self, platform: Platform) -> Image:
        with step("image.registry", reference=str(self._reference)):
            digest = self._reference.digest or await self._resolve_tag()
            return await read_image(str(self._reference), digest, self._fetch, platform, self._known)

    @asynccontextmanager
    async def open_blob(self, layer: Layer) -> AsyncIterator[AsyncIterator[bytes]]:
        from castoff.image.retry import Backoff
        from castoff.image.transfer import transfer

        what = f"layer {layer.digest} of {self._reference}"

        async def open_at(offset: int, backoff: Backoff) -> Response:
            return await self._open_blob(what, layer, offset, backoff)

        patience = 4 * self._settings.read_timeout
        async with aclosing(transfer(what, layer, open_at, Backoff(self._settings), patience=patience)) as pieces:
            yield pieces

    async def close(self) -> None:
        if self._transport is not None:
            await self._transport.close()

    async def _resolve_tag(self) -> Digest:
        known = self._cache.last_seen(str(self._reference))
        try:
            digest = await self._head() if known is not None and self._cache.get(known) is not None else None
            if digest is None:
                digest = await self._get_tag()
        except Unavailable as error:
            if known is None:
                raise
            hint = f"{self._reference.name}@{known} is what it was when last seen; that name asks nobody"
            raise type(error)(error.what, hint=hint) from error
        await asyncio.to_thread(self._cache.saw, str(self._reference), digest)
        return digest

    async def _head(self) -> Digest | None:
        """The digest that the tag has now; None where the registry does not tell (the header is optional)."""

        async def ask(client: RegistryClient) -> Digest | None:
            path, headers = f"manifests/{self._reference.tag}", {"Accept": media.ACCEPT}
            async with await client.open(str(self._reference), "HEAD", path, headers, client.backoff()) as response:
                return _read_header(response.headers.get("Docker-Content-Digest"))

        return await self._ask(ask)

    async def _get_tag(self) -> Digest:
        async def ask(client: RegistryClient) -> bytes:
            data, headers = await client.read(
                str(self._reference), f"manifests/{self._reference.tag}", media.ACCEPT, self._settings.max_manifest_size
            )
            told, actual = _read_header(headers.get("Docker-Content-Digest")), Digest.of(data)
            if told not in (None, actual):
                raise DigestMismatch(f"manifest of {self._reference}", expected=str(told), actual=str(actual))
            return data

        data = await self._ask(ask)
        digest = Digest.of(data)
        await asyncio.to_thread(self._cache.put, digest, data)
        return digest

    async def _fetch(self, kind: Literal["manifest", "config"], digest: Digest, size: int | None) -> bytes:
        what = f"{kind} {digest} of {self._reference}"
        cached = self._cache.get(digest)
        if cached is not None:
            return check(what, cached, digest, size)
        path, accept = (f"manifests/{digest}", media.ACCEPT) if kind == "manifest" else (f"blobs/{digest}", "*/*")

        async def ask(client: RegistryClient) -> bytes:
            data, _ = await client.read(what, path, accept, self._settings.max_manifest_size)
            return check(what, data, digest, size)

        data = await self._ask(ask)
        await asyncio.to_thread(self._cache.put, digest, data)
        return data

    async def _open_blob(self, what: str, layer: Layer, offset: int, backoff: Backoff) -> Response:
        from castoff.image.transfer import check_answer, range_from

        async def ask(client: RegistryClient) -> Response:
            tries = client.backoff() if client.endpoint.is_mirror else backoff
            response = await client.open(what, "GET", f"blobs/{layer.digest}", range_from(offset), tries)
            try:
                check_answer(what, response, offset, layer.size)
            except CastoffError:
                response.close()
                raise
            return response

        try:
            return await self._ask(ask, without_mirrors=backoff.failures >= _FEW)
        except NotFound as error:
            if not media.is_foreign(layer.media_type):
                raise
            raise Unsupported(
                f"{what} is foreign: it lies outside of the registry",
                hint="castoff fetches from no URL in a manifest; push the image with its non-distributable layers",
            ) from error

    async def _ask(self, ask: Callable[[RegistryClient], Awaitable[_T]], *, without_mirrors: bool = False) -> _T:
        """Asks the mirrors, then the registry; a mirror's failure of any kind means the next one, and shows in the timeline."""
        *mirrors, origin = self._connected()
        for client in [] if without_mirrors else mirrors:
            host = client.endpoint.host
            if host in self._down:
                continue
            try:
                return await ask(client)
            except CastoffError as error:
                if isinstance(error, Unavailable):
                    self._down.add(host)
                with step("image.registry", mirror=host, failure=error.what):
                    pass
        return await ask(origin)

    def _connected(self) -> list[RegistryClient]:
        if self._transport is None:
            from castoff.image.client import RegistryClient
            from castoff.image.credentials import Keyring
            from castoff.image.transport import Transport

            self._transport = Transport(self._settings)
            keyring = Keyring(self._settings)
            self._clients = [RegistryClient(row, keyring, self._transport, self._settings) for row in self._endpoints]
        return self._clients


def _read_header(text: str | None) -> Digest | None:
    try:
        return Digest.parse(text) if text else None
    except CastoffError:
        return None  # another algorithm than sha256: as good as untold
