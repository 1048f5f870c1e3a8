"""A registry that misbehaves on demand, on loopback, for tests.

    registry = HostileRegistry(); registry.add("team/app", image, tag="v1")
    registry.faults.append(break_after(1000))
    async with registry.running() as host: ...

Faults are tried in order on each request; the first that takes it answers it. Every request is in ``requests``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from oci_builder import Blob, BuiltImage, BuiltIndex

__all__ = ["Fault", "HostileRegistry", "Seen", "answer", "break_after", "once", "only"]

Fault = Callable[[web.Request, Blob | None], Awaitable[web.StreamResponse | None]]


@dataclass(frozen=True)
class Seen:
    """One request, as it came."""

    method: str
    path: str
    authorization: str | None
    range: str | None
    body: str = ""
    query: dict[str, str] = field(default_factory=dict)
    scopes: list[str] = field(default_factory=list)
    """All values of the query's ``scope``."""


class HostileRegistry:
    """Serves what was added, until a fault says otherwise."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.address = address
        self.faults: list[Fault] = []
        self.requests: list[Seen] = []
        self.host = ""
        self._documents: dict[str, Blob] = {}

    def add(self, repository: str, image: BuiltImage | BuiltIndex, *, tag: str = "latest") -> None:
        """Makes an image available, as a good registry would."""
        manifests = {image.manifest.digest}
        if isinstance(image, BuiltIndex):
            manifests |= {member.manifest.digest for member in image.members}
        for blob in image.blobs():
            kind = "manifests" if blob.digest in manifests else "blobs"
            self._documents[f"/v2/{repository}/{kind}/{blob.digest}"] = blob
        self._documents[f"/v2/{repository}/manifests/{tag}"] = image.manifest

    def put(self, path: str, document: Blob) -> None:
        """Makes a document available at a path of its own: a list of referrers, for example."""
        self._documents[path] = document

    def paths(self, method: str | None = None) -> list[str]:
        """The paths that were asked for."""
        return [seen.path for seen in self.requests if method in (None, seen.method)]

    @contextlib.asynccontextmanager
    async def running(self, *, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[str]:
        """Listens for the block; gives ``host:port``."""
        server = web.Server(self._handle, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, self.address, port, ssl_context=tls)
        await site.start()
        self.host = f"{self.address}:{runner.addresses[0][1]}"
        try:
            yield self.host
        finally:
            for connection in server.connections:
                if connection.transport is not None:
                    connection.transport.abort()  # whatever a fault still has to say
            await runner.cleanup()
            await asyncio.sleep(0)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = (await request.read()).decode()
        headers = request.headers
        self.requests.append(
            Seen(
                request.method,
                request.path,
                headers.get("Authorization"),
                headers.get("Range"),
                body,
                dict(request.query),
                request.query.getall("scope", []),
            )
        )
        document = self._documents.get(request.path)
        for fault in list(self.faults):
            taken = await fault(request, document)  # type: ignore[arg-type]
            if taken is not None:
                return taken
        return _serve(request, document)


def _serve(request: web.BaseRequest, document: Blob | None) -> web.StreamResponse:
    if document is None:
        return answer(404, errors=[{"code": "MANIFEST_UNKNOWN", "message": "nothing of that name"}])
    headers = {"Content-Type": document.media_type, "Docker-Content-Digest": document.digest}
    start = request.http_range.start or 0
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(document.data) - 1}/{len(document.data)}"
    return web.Response(status=206 if start else 200, body=document.data[start:], headers=headers)


def answer(status: int, *, headers: dict[str, str] | None = None, errors: list[dict[str, str]] | None = None) -> web.Response:
    """An answer with an error's body."""
    return web.Response(status=status, headers=headers, text=json.dumps({"errors": errors or []}))


def once(fault: Fault, *, times: int = 1) -> Fault:
    """The fault, for its first ``times`` takings."""
    left = times

    async def limited(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        nonlocal left
        if left <= 0:
            return None
        taken = await fault(request, document)
        left -= taken is not None
        return taken

    return limited


def only(part: str, fault: Fault | web.Response) -> Fault:
    """The fault (or a plain answer) for requests whose path has ``part`` in it."""

    async def limited(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        if part not in request.path:
            return None
        if isinstance(fault, web.Response):
            return web.Response(status=fault.status, headers=fault.headers.copy(), body=fault.body)
        return await fault(request, document)

    return limited


def break_after(size: int, *, ignore_range: bool = False, stall: float = 0.0) -> Fault:
    """Breaks off (or falls silent for ``stall`` seconds) after ``size`` bytes of the body."""

    async def fault(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        if document is None or request.method != "GET":
            return None
        start = 0 if ignore_range else request.http_range.start or 0
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(document.data) - start
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(document.data) - 1}/{len(document.data)}"
        await response.prepare(request)
        await response.write(document.data[start : start + size])
        if start + size >= len(document.data):
            await response.write_eof()
            return response
        await asyncio.sleep(stall or 0.02)  # let what was written leave
        assert request.transport is not None
        request.transport.abort()
        return response

    return fault
