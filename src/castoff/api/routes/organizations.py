"""All machines and volumes of the organization, the regions, and the token itself."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from aiohttp import web

from castoff.api import body
from castoff.api.answer import json_answer, moment
from castoff.api.auth import grant_of
from castoff.api.parts import PARTS
from castoff.api.ports import Volume
from castoff.api.regions import ALONE, plan, region_document, region_names
from castoff.api.routes.apps import check_organization
from castoff.api.routes.machines import states_of
from castoff.api.routes.paging import paged
from castoff.api.wire.machine import overview_document
from castoff.api.wire.volume import volume_document
from castoff.lifecycle.config import Guest
from castoff.lifecycle.model import Machine

__all__ = ["ROUTES"]


class _PlacementBody(msgspec.Struct, frozen=True, kw_only=True):
    org_slug: str
    count: Annotated[int, msgspec.Meta(ge=0, le=100_000)] | None = None
    region: Annotated[str, msgspec.Meta(max_length=4096)] | None = None
    compute: Guest | None = None


_USUAL: Final = Guest(cpus=1, memory_mb=2048)
"""What is planned where a client names no hardware; flyctl sends this much of its own accord."""


async def list_machines(request: web.Request) -> web.Response:
    """GET /orgs/{org}/machines."""
    parts = request.app[PARTS]
    check_organization(parts, request.match_info["org"])
    found = parts.machines.list(
        grant_of(request).app,
        include_deleted=body.flag(request, "include_deleted"),
        region=request.query.get("region") or None,
        states=states_of(request),
    )
    summary = body.flag(request, "summary")
    page = paged(request, found, _machine_place)
    last = page.rows[-1] if page.rows else None
    return json_answer(
        {
            "machines": [overview_document(machine, summary=summary) for machine in page.rows],
            "next_cursor": page.cursor,
            "last_machine_id": last.id if last else "",
            "last_updated_at": moment(last.updated) if last else "",
            "error_regions": [],
        }
    )


def _machine_place(machine: Machine) -> tuple[int, str]:
    return machine.updated, machine.id


async def list_volumes(request: web.Request) -> web.Response:
    """GET /orgs/{org}/volumes. A volume's time is that of its making."""
    parts = request.app[PARTS]
    check_organization(parts, request.match_info["org"])
    region = request.query.get("region")
    states = body.words(request, "state")
    found = (
        volume
        for volume in parts.volumes.list(grant_of(request).app)
        if (not region or volume.region == region) and (not states or volume.state in states)
    )
    page = paged(request, found, _volume_place)
    last = page.rows[-1] if page.rows else None
    return json_answer(
        {
            "volumes": [{"app_name": volume.app, **volume_document(volume)} for volume in page.rows],
            "next_cursor": page.cursor,
            "last_volume_id": last.id if last else "",
            "last_updated_at": moment(last.created) if last else "",
        }
    )


def _volume_place(volume: Volume) -> tuple[int, str]:
    return volume.created, volume.id


async def regions(request: web.Request) -> web.Response:
    """GET /platform/regions: this host's first, then the others of its fleet."""
    parts = request.app[PARTS]
    own = parts.settings.region
    return json_answer({"nearest": own, "regions": [region_document(code) for code in region_names(own, parts.room)]})


async def placements(request: web.Request) -> web.Response:
    """POST /platform/placements: by what the hosts last said; nothing is kept free for whoever asks."""
    parts = request.app[PARTS]
    wanted = await body.read(request, _PlacementBody)
    check_organization(parts, wanted.org_slug)
    own, count = parts.settings.region, wanted.count or 0
    room = parts.room(wanted.compute or _USUAL) if parts.room is not None else {own: count or ALONE}
    planned = plan(own, room, wanted.region or "", count)
    return json_answer({"regions": [{"region": region, "count": taken, "concurrency": taken} for region, taken in planned]})


async def current_token(request: web.Request) -> web.Response:
    """GET /tokens/current."""
    grant = grant_of(request)
    organization = request.app[PARTS].settings.organization
    token = {
        "token_id": grant.name,
        "org_slug": organization,
        "organization": organization,
        "apps": ["*"] if grant.app is None else [grant.app],
        "user": "",
    }
    return json_answer({"tokens": [token]})


ROUTES: Final = (
    web.get("/v1/orgs/{org}/machines", list_machines),
    web.get("/v1/orgs/{org}/volumes", list_volumes),
    web.get("/v1/platform/regions", regions),
    web.post("/v1/platform/placements", placements),
    web.get("/v1/tokens/current", current_token),
)
