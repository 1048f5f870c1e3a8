"""Apps: /v1/apps."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from castoff.api import body
from castoff.api.answer import json_answer
from castoff.api.auth import grant_of, require
from castoff.api.errors import Refusal
from castoff.api.parts import PARTS, Parts
from castoff.api.wire.app import app_document
from castoff.api.wire.requests import AppBody
from castoff.errors import Conflict, Invalid, NotFound

__all__ = ["ROUTES", "check_organization"]


def check_organization(parts: Parts, slug: str) -> None:
    """Lets the one organization through.

    Raises:
        NotFound: It is another.
    """
    if slug != parts.settings.organization:
        raise NotFound(f"there is no organization {slug[:64]!r}", hint=f"this host has {parts.settings.organization}")


async def list_apps(request: web.Request) -> web.Response:
    """GET /apps: of an organization; without one, all."""
    parts = request.app[PARTS]
    slug = request.query.get("org_slug")
    if slug:
        check_organization(parts, slug)
    only = grant_of(request).app
    apps = [app_document(parts, app) for app in parts.apps.list() if only is None or app.name == only]
    return json_answer({"total_apps": len(apps), "apps": apps})


async def create_app(request: web.Request) -> web.Response:
    """POST /apps."""
    require(request, None)
    parts = request.app[PARTS]
    wanted = await body.read(request, AppBody)
    if wanted.org_slug:
        check_organization(parts, wanted.org_slug)
    name = wanted.name or wanted.app_name
    if not name:
        raise Invalid("name: an app needs one")
    try:
        app = await parts.apps.create(name, organization=parts.settings.organization, network=wanted.network or "default")
    except Conflict as error:
        raise Refusal(str(error), http=422, word="conflict", status="name_taken") from error
    return json_answer(app_document(parts, app), status=201)


async def show_app(request: web.Request) -> web.Response:
    """GET /apps/{app}."""
    parts = request.app[PARTS]
    return json_answer(app_document(parts, parts.apps.get(request.match_info["app"])))


async def delete_app(request: web.Request) -> web.Response:
    """DELETE /apps/{app}: refused while it has machines or volumes."""
    parts = request.app[PARTS]
    name = request.match_info["app"]

    def used() -> str:
        counts = {"machines": len(parts.machines.list(name)), "volumes": len(parts.volumes.list(name))}
        return " and ".join(f"{count} {what}" for what, count in counts.items() if count)

    await parts.apps.delete(name, used=used)
    parts.secrets.forget(name)
    return json_answer({"ok": True}, status=202)


async def list_addresses(request: web.Request) -> web.Response:
    """GET /apps/{app}/ip_assignments: there is no proxy that had any."""
    request.app[PARTS].apps.get(request.match_info["app"])
    return json_answer({"ips": []})


ROUTES: Final = (
    web.get("/v1/apps", list_apps),
    web.post("/v1/apps", create_app),
    web.get("/v1/apps/{app}", show_app),
    web.delete("/v1/apps/{app}", delete_app),
    web.get("/v1/apps/{app}/ip_assignments", list_addresses),
)
