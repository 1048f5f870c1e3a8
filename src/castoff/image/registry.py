"""Images in a registry (OCI distribution spec 1.1), over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from castoff.errors import Invalid, NotFound, Unavailable
from castoff.image import media
from castoff.image.cache import DocumentCache
from castoff.image.digest import Digest
from castoff.image.image import Image, Layer, Platform
from castoff.image.reference import RegistryReference
from castoff.image.resolve import read_image
from castoff.image.settings import ImageSettings
from castoff.image.verify import check
from castoff.timeline import step

if TYPE_CHECKING:
    import aiohttp

__all__ = ["RegistrySource"]


class RegistrySource:
    """An ImageSource over a registry."""

    def __init__(self, reference: RegistryReference, settings: ImageSettings, cache: Path) -> None:
        self._reference = reference
        self._settings = settings
        self._cache = DocumentCache(cache, settings.cache_size)
        self._session: aiohttp.ClientSession | None = None

    async def resolve(self, platform: Platform) -> Image:
        with step("image.registry", reference=str(self._reference)):
            digest = self._reference.digest or await self._head()
            return await read_image(str(self._reference), digest, self._fetch, platform)

    @asynccontextmanager
    async def open_blob(self, layer: Layer) -> AsyncIterator[AsyncIterator[bytes]]:
        async with self._open().get(self._url(f"blobs/{layer.digest}")) as response:
            if response.status != 200:
                raise NotFound(f"layer {layer.digest}: HTTP {response.status}")
            yield response.content.iter_any()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _head(self) -> Digest:
        accept = ", ".join(sorted(media.INDEXES | media.MANIFESTS))
        async with self._open().head(self._url(f"manifests/{self._reference.tag}"), headers={"Accept": accept}) as response:
            if response.status == 404:
                raise NotFound(f"{self._reference} does not exist")
            if response.status != 200:
                raise Unavailable(f"{self._reference}: HTTP {response.status}")
            return Digest.parse(response.headers.get("Docker-Content-Digest", ""))

    async def _fetch(self, kind: Literal["manifest", "config"], digest: Digest, size: int | None) -> bytes:
        what = f"{kind} {digest} of {self._reference}"
        data = self._cache.get(digest)
        if data is not None:
            return check(what, data, digest, size)
        path = f"manifests/{digest}" if kind == "manifest" else f"blobs/{digest}"
        accept = ", ".join(sorted(media.INDEXES | media.MANIFESTS)) if kind == "manifest" else "*/*"
        async with self._open().get(self._url(path), headers={"Accept": accept}) as response:
            if response.status != 200:
                raise NotFound(f"{what}: HTTP {response.status}")
            if (response.content_length or 0) > self._settings.max_manifest_size:
                raise Invalid(f"{what} is too large")
            data = check(what, await response.read(), digest, size)
        self._cache.put(digest, data)
        return data

    def _url(self, path: str) -> str:
        host = self._reference.registry
        plain = host.partition(":")[0] in ("localhost", "127.0.0.1")
        host = "registry-1.docker.io" if host == "docker.io" else host
        return f"{'http' if plain else 'https'}://{host}/v2/{self._reference.repository}/{path}"

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            import aiohttp

            self._session = aiohttp.ClientSession(auto_decompress=False, read_bufsize=1 << 20)
        return self._session
