"""Releases, by flyctl's second REST API: what ``flyctl deploy`` writes down, and reads before the next deployment."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from aiohttp import web

from castoff.api import body
from castoff.api.answer import json_answer, moment
from castoff.api.auth import grant_of, require
from castoff.api.parts import PARTS
from castoff.api.ports import Release
from castoff.api.wire.requests import Name
from castoff.errors import NotFound

__all__ = ["ROUTES"]

_OF_APP: Final = "/api/v1/apps/{app}/releases"
_MOST: Final = 100


class _New(msgspec.Struct, frozen=True, kw_only=True):
    """flyctl sends the build's number as well, of which nothing is kept."""

    app_name: Name
    image: Name = ""
    strategy: Annotated[str, msgspec.Meta(max_length=32)] = ""
    definition: dict[str, Any] | None = None


class _Change(msgspec.Struct, frozen=True, kw_only=True):
    status: Annotated[str, msgspec.Meta(max_length=32)]


def _document(release: Release) -> dict[str, Any]:
    return {
        "id": release.id,
        "version": release.version,
        "stable": release.status == "complete",
        "in_progress": release.in_progress,
        "status": release.status,
        "strategy": release.strategy,
        "user": release.owner,
        "created_at": moment(release.created),
        "image_ref": release.image,
    }


async def create_release(request: web.Request) -> web.Response:
    """POST /api/v1/releases."""
    wanted = await body.read(request, _New)
    require(request, wanted.app_name)
    parts = request.app[PARTS]
    parts.apps.get(wanted.app_name)
    release = await parts.releases.create(
        wanted.app_name,
        image=wanted.image,
        strategy=wanted.strategy,
        definition=wanted.definition or {},
        owner=grant_of(request).name,
    )
    return json_answer({"release": _document(release)}, status=201)


async def change_release(request: web.Request) -> web.Response:
    """PATCH /api/v1/releases/{release}: how the deployment fares. A token for another app learns of no release."""
    wanted = await body.read(request, _Change)
    releases = request.app[PARTS].releases
    id = request.match_info["release"]
    app = (await releases.get(id)).app
    if grant_of(request).app not in (None, app):
        raise NotFound(f"release not found: {id[:80]!r}")
    return json_answer(_document(await releases.set_status(id, wanted.status)))


async def list_releases(request: web.Request) -> web.Response:
    """GET /api/v1/apps/{app}/releases, newest first."""
    parts = request.app[PARTS]
    app = parts.apps.get(request.match_info["app"])
    limit = body.number(request, "limit", default=_MOST, least=1, most=1_000_000)
    found = await parts.releases.list(app.name, limit=min(limit, _MOST))
    return json_answer({"releases": [_document(release) for release in found]})


async def current_release(request: web.Request) -> web.Response:
    """GET /api/v1/apps/{app}/releases/current: flyctl takes 404 for an app that was never deployed."""
    parts = request.app[PARTS]
    app = parts.apps.get(request.match_info["app"])
    release = await parts.releases.current(app.name)
    if release is None:
        raise NotFound(f"app {app.name} has no release", hint="`flyctl deploy` makes one")
    return json_answer(_document(release))


async def current_releases(request: web.Request) -> web.Response:
    """GET /api/v1/releases/all_current: when each app was deployed last."""
    only = grant_of(request).app
    found = await request.app[PARTS].releases.newest()
    return json_answer({release.app: moment(release.created) for release in found if only in (None, release.app)})


ROUTES: Final = (
    web.get("/api/v1/releases/all_current", current_releases),
    web.post("/api/v1/releases", create_release),
    web.patch("/api/v1/releases/{release}", change_release),
    web.get(_OF_APP, list_releases),
    web.get(f"{_OF_APP}/current", current_release),
)
