"""Files of a machine, castoff's own: /v1/apps/{app}/machines/{id}/files?path=PATH, as a tar archive that streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

from castoff.api.answer import ok
from castoff.api.auth import Forbidden, grant_of
from castoff.api.body import CLIENT_TIMEOUT
from castoff.api.errors import Refusal
from castoff.api.parts import PARTS
from castoff.errors import Invalid
from castoff.lifecycle.launcher import Run

__all__ = ["ROUTES"]

_FILES: Final = "/v1/apps/{app}/machines/{id}/files"
_LONGEST: Final = 4095
"""Bytes of a path (PATH_MAX of Linux, without its NUL)."""


def _path(request: web.Request) -> str:
    path = request.query.get("path", "")
    if not path.startswith("/") or "\0" in path or len(path.encode(errors="surrogatepass")) > _LONGEST:
        raise Invalid("query: path is no absolute path", hint="name the file as the machine sees it")
    return path


async def read_files(request: web.Request) -> web.StreamResponse:
    """GET: the file or directory at ``path``, by its own name. An answer that breaks off is not whole."""
    if grant_of(request).read_only:
        raise Forbidden("this token is for reading only: a machine's files may hold secrets")
    response = web.StreamResponse(headers={"Content-Type": "application/x-tar", "Cache-Control": "no-store"})

    async def give(piece: bytes) -> None:
        if not response.prepared:  # what goes wrong before has a status of its own
            await response.prepare(request)
        await response.write(piece)

    path = _path(request)
    await (await _running(request)).read_files(path, give)
    await response.write_eof()
    return response


async def write_files(request: web.Request) -> web.Response:
    """PUT: an archive's files, into the directory at ``path``; or as ``path``, where nothing is there."""
    path = _path(request)
    await (await _running(request)).write_files(path, _pieces(request))
    return ok()


async def _running(request: web.Request) -> Run:
    return await request.app[PARTS].machines.running(request.match_info["app"], request.match_info["id"])


async def _pieces(request: web.Request) -> AsyncIterator[bytes]:
    """The body as it comes, of any length; a client that sends nothing for too long is let go."""
    while True:
        try:
            async with asyncio.timeout(request.app[CLIENT_TIMEOUT]):
                piece = await request.content.readany()
        except TimeoutError:
            raise Refusal("the archive did not go on in time", http=408, word="deadline_exceeded") from None
        if not piece:
            return
        yield piece


ROUTES: Final = (web.get(_FILES, read_files), web.put(_FILES, write_files))
