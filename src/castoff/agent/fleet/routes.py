"""What the agent's API says of its fleet: an extension of castoff's own, for ``castoff fleet`` and the page."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from castoff.agent.fleet.fleet import Fleet
from castoff.api import body
from castoff.api.answer import json_answer
from castoff.api.auth import Forbidden, grant_of
from castoff.api.server import Register
from castoff.errors import Conflict
from castoff.fleet.members import Member

__all__ = ["fleet_of", "fleet_routes", "host_row"]

_MOST = 10_000


def fleet_of(fleet: Fleet | None, request: web.Request) -> Fleet:
    """The fleet, for who may look at it.

    Raises:
        Forbidden: The token is for one app.
        Conflict: There is none.
    """
    if grant_of(request).app is not None:
        raise Forbidden("this token is for one app, and the fleet is everybody's")
    if fleet is None:
        raise Conflict("this host is of no fleet", hint="set fleet.urls, or start `castoff agent --fleet nats://...`")
    return fleet


def fleet_routes(fleet: Fleet | None) -> Register:
    """``GET /v1/fleet``, ``/v1/fleet/hosts`` and ``/v1/fleet/layers?limit=N``; a token of one app may not ask."""

    async def status(request: web.Request) -> web.Response:
        found = fleet_of(fleet, request)
        own = found.members.find(found.members.own)
        return json_answer(
            {
                "fleet": found.name,
                "host": found.members.own,
                "connected": found.connection.is_connected,
                "seen": own is not None,
                "hosts": len(found.members.alive()),
                "layers": len(_layers(found)),
            }
        )

    async def hosts(request: web.Request) -> web.Response:
        found = fleet_of(fleet, request)
        lists = found.holders.lists()
        return json_answer(
            {
                "hosts": [
                    host_row(member, found.members.own, len(lists.get(member.record.id, ()))) for member in found.members.alive()
                ]
            }
        )

    async def layers(request: web.Request) -> web.Response:
        found = fleet_of(fleet, request)
        most = body.number(request, "limit", default=1000, least=1, most=_MOST)
        rows = sorted(_layers(found).items(), key=lambda row: (-len(row[1][0]), -len(row[1][1]), row[0]))
        return json_answer(
            {
                "layers": [{"layer": f"{short:016x}", "whole": whole, "part": part} for short, (whole, part) in rows[:most]],
                "total": len(rows),
            }
        )

    def add(app: web.Application) -> None:
        app.router.add_get("/v1/fleet", status)
        app.router.add_get("/v1/fleet/hosts", hosts)
        app.router.add_get("/v1/fleet/layers", layers)

    return add


def host_row(member: Member, own: str, layers: int) -> dict[str, Any]:
    """A host as the API tells it."""
    record = member.record
    return {
        "id": record.id,
        "name": record.name,
        "this": record.id == own,
        "region": record.region,
        "zone": record.zone,
        "labels": record.labels,
        "version": record.version,
        "peers": record.peers,
        "cpus": record.cpus,
        "cpus_free": record.cpus_free,
        "memory_mb": record.memory_mb,
        "memory_free_mb": record.memory_free_mb,
        "gpus": {kind: {"total": gpus.total, "free": gpus.free} for kind, gpus in record.gpus.items()},
        "machines": record.machines,
        "layers": layers,
        "seen_seconds_ago": round(time.monotonic() - member.seen, 1),
    }


def _layers(fleet: Fleet) -> dict[int, tuple[list[str], list[str]]]:
    """By the beginning of a layer's diffID: the names of the hosts that are alive and have it whole, and in part."""
    found: dict[int, tuple[list[str], list[str]]] = {}
    lists = fleet.holders.lists()
    for member in fleet.members.alive():
        inventory = lists.get(member.record.id)
        if inventory is None:
            continue
        for place, column in enumerate((inventory.whole, inventory.part)):
            for short in column.tolist():
                found.setdefault(short, ([], []))[place].append(member.record.name)
    return found
