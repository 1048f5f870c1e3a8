"""A registry that has the referrers API and resumes uploads where they broke, on loopback, for tests.

Source: OCI distribution spec 1.1. It checks what it is sent: digests, ranges, and that a manifest's blobs are there.

    registry = ReferrersRegistry()
    registry.break_patches.append(1 << 20)    # the next PATCH breaks after a MiB, which it keeps
    async with registry.running() as host: ...
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from oci_builder import OCI_INDEX, BuiltImage, BuiltIndex

__all__ = ["ReferrersRegistry", "Request"]


@dataclass(frozen=True)
class Request:
    """One request that came in, and what was answered."""

    method: str
    path: str
    query: dict[str, str]
    status: int
    received: int
    """Bytes of its body."""


@dataclass
class _Upload:
    data: bytearray = field(default_factory=bytearray)


class ReferrersRegistry:
    """Everything in memory.

    Attributes:
        requests: What came in, in order.
        blobs: Repository -> digest -> bytes.
        manifests: Repository -> digest or tag -> media type and bytes.
        break_patches: For each of the next PATCH requests, the bytes after which the connection breaks; they are kept.
        lose_uploads: Whether a session is forgotten when its PATCH breaks.
        page: Referrers on one page of the list.
        api: Whether it has the referrers API.
        token_life: Requests for which a bearer token is good; 0: none is asked for.
        scopes: The scopes that tokens were asked for, as they came.
    """

    def __init__(self, *, page: int = 100, api: bool = True) -> None:
        self.requests: list[Request] = []
        self.blobs: dict[str, dict[str, bytes]] = defaultdict(dict)
        self.manifests: dict[str, dict[str, tuple[str, bytes]]] = defaultdict(dict)
        self.break_patches: list[int] = []
        self.lose_uploads = False
        self.page = page
        self.api = api
        self.token_life = 0
        self.scopes: list[str] = []
        self._token = ""
        self._left = 0
        self._uploads: dict[str, _Upload] = {}
        self._numbers = itertools.count(1)

    def add(self, repository: str, image: BuiltImage | BuiltIndex, *, tag: str = "latest") -> None:
        """Makes an image available."""
        manifests = {image.manifest.digest}
        if isinstance(image, BuiltIndex):
            manifests |= {member.manifest.digest for member in image.members}
        for blob in image.blobs():
            if blob.digest in manifests:
                self.manifests[repository][blob.digest] = (blob.media_type, blob.data)
            else:
                self.blobs[repository][blob.digest] = blob.data
        self.manifests[repository][tag] = (image.manifest.media_type, image.manifest.data)

    def count(self, method: str, part: str = "") -> int:
        """Requests of that method with ``part`` in their paths."""
        return sum(seen.method == method and part in seen.path for seen in self.requests)

    @property
    def received(self) -> int:
        """Bytes of blobs that were sent here."""
        return sum(seen.received for seen in self.requests if "/blobs/" in seen.path)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Listens for the block; gives ``host:port``."""
        runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = bytearray()
        limit = self.break_patches.pop(0) if request.method == "PATCH" and self.break_patches else None
        async for piece in request.content.iter_any():
            body += piece
            if limit is not None and len(body) >= limit:
                break
        broken = limit is not None
        response = self._answer(request, bytes(body[:limit]), broken=broken)
        self.requests.append(Request(request.method, request.path, dict(request.query), response.status, len(body[:limit])))
        if broken:
            assert request.transport is not None
            request.transport.abort()
        return response

    def _answer(self, request: web.BaseRequest, body: bytes, *, broken: bool) -> web.Response:
        if request.path == "/token":
            self.scopes += request.query.getall("scope", [])
            self._token, self._left = f"token{next(self._numbers)}", self.token_life
            return web.json_response({"token": self._token})
        if self.token_life and not self._admits(request):
            challenge = f'Bearer realm="http://{request.host}/token",service="tests"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if request.path == "/v2/":
            return web.Response()
        match = re.fullmatch(r"/v2/(.+)/(blobs/uploads|blobs|manifests|referrers)/([^/]*)", request.path)
        if match is None:
            return _error(404, "NAME_UNKNOWN")
        repository, kind, name = match.groups()
        if kind == "blobs/uploads":
            return self._upload(request, repository, name, body, broken=broken)
        if kind == "blobs":
            data = self.blobs[repository].get(name)
            return _error(404, "BLOB_UNKNOWN") if data is None else _document(request, "application/octet-stream", name, data)
        if kind == "referrers":
            return self._referrers(request, repository, name)
        return self._manifest(request, repository, name, body)

    def _admits(self, request: web.BaseRequest) -> bool:
        self._left -= 1
        return self._left >= 0 and request.headers.get("Authorization") == f"Bearer {self._token}"

    def _upload(self, request: web.BaseRequest, repository: str, session: str, body: bytes, *, broken: bool) -> web.Response:
        if request.method == "POST":
            return self._begin(request, repository)
        upload = self._uploads.get(session)
        if upload is None:
            return _error(404, "BLOB_UPLOAD_UNKNOWN")
        if request.method == "DELETE":
            del self._uploads[session]
            return web.Response(status=204)
        asked = request.headers.get("Content-Range")
        if request.method == "PATCH" and asked is not None and int(asked.split("-")[0]) != len(upload.data):
            return _error(416, "BLOB_UPLOAD_INVALID")
        if request.method in ("PATCH", "PUT"):
            upload.data += body
        if broken and self.lose_uploads:
            del self._uploads[session]
        if request.method == "PUT":
            return self._commit(request, repository, session, bytes(upload.data))
        headers = {"Location": f"/v2/{repository}/blobs/uploads/{session}", "Range": f"0-{max(len(upload.data) - 1, 0)}"}
        return web.Response(status=202 if request.method == "PATCH" else 204, headers=headers)

    def _begin(self, request: web.BaseRequest, repository: str) -> web.Response:
        digest, source = request.query.get("mount", ""), request.query.get("from", "")
        if source and digest in self.blobs.get(source, {}):
            self.blobs[repository][digest] = self.blobs[source][digest]
            return web.Response(status=201, headers={"Location": f"/v2/{repository}/blobs/{digest}"})
        session = str(next(self._numbers))
        self._uploads[session] = _Upload()
        return web.Response(status=202, headers={"Location": f"/v2/{repository}/blobs/uploads/{session}", "Range": "0-0"})

    def _commit(self, request: web.BaseRequest, repository: str, session: str, data: bytes) -> web.Response:
        del self._uploads[session]
        digest = request.query.get("digest", "")
        if digest != _digest(data):
            return _error(400, "DIGEST_INVALID")
        self.blobs[repository][digest] = data
        return web.Response(status=201, headers={"Location": f"/v2/{repository}/blobs/{digest}"})

    def _manifest(self, request: web.BaseRequest, repository: str, name: str, body: bytes) -> web.Response:
        if request.method != "PUT":
            found = self.manifests[repository].get(name)
            return _error(404, "MANIFEST_UNKNOWN") if found is None else _document(request, found[0], _digest(found[1]), found[1])
        document = json.loads(body)
        needed = [row["digest"] for row in [document.get("config", {}), *document.get("layers", ())] if row]
        needed_manifests = [row["digest"] for row in document.get("manifests", ())]
        missing = [one for one in needed if one not in self.blobs[repository]]
        missing += [one for one in needed_manifests if one not in self.manifests[repository]]
        if missing:
            return _error(400, "MANIFEST_BLOB_UNKNOWN")
        digest = _digest(body)
        self.manifests[repository][digest] = self.manifests[repository][name] = (request.content_type, body)
        headers = {"Docker-Content-Digest": digest, "Location": f"/v2/{repository}/manifests/{digest}"}
        if "subject" in document and self.api:
            headers["OCI-Subject"] = document["subject"]["digest"]
        return web.Response(status=201, headers=headers)

    def _referrers(self, request: web.BaseRequest, repository: str, subject: str) -> web.Response:
        if not self.api:
            return _error(404, "NOT_FOUND")
        rows = []
        for digest, (kind, data) in sorted(self.manifests[repository].items()):
            document: dict[str, Any] = json.loads(data)
            if digest == _digest(data) and document.get("subject", {}).get("digest") == subject:
                row = {"mediaType": kind, "digest": digest, "size": len(data), "artifactType": document["artifactType"]}
                rows.append(row | {"annotations": document.get("annotations", {})})
        start = int(request.query.get("last", "0"))
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows[start : start + self.page]}
        more = start + self.page < len(rows)
        links = {"Link": f'<{request.path}?last={start + self.page}>; rel="next"'} if more else {}
        return web.Response(body=json.dumps(index).encode(), headers={"Content-Type": OCI_INDEX, **links})


def _document(request: web.BaseRequest, kind: str, digest: str, data: bytes) -> web.Response:
    start, stop = request.http_range.start or 0, request.http_range.stop
    part = data[start:stop]
    headers = {"Content-Type": kind, "Docker-Content-Digest": digest}
    if "Range" in request.headers:
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
    return web.Response(status=206 if "Range" in request.headers else 200, body=part, headers=headers)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _error(status: int, code: str) -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": code.lower()}]}, status=status)
