"""Leases and metadata of a machine."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from castoff.api import body
from castoff.api.answer import json_answer, nothing
from castoff.api.auth import grant_of
from castoff.api.parts import PARTS
from castoff.api.routes.machines import NONCE
from castoff.api.wire.machine import lease_envelope
from castoff.api.wire.requests import LeaseBody, MetadataBody, MetadataValueBody
from castoff.errors import Invalid, NotFound

__all__ = ["ROUTES"]

_LEASE: Final = "/v1/apps/{app}/machines/{id}/lease"
_METADATA: Final = "/v1/apps/{app}/machines/{id}/metadata"
_TTL: Final = 120
_LONGEST: Final = 24 * 3600


def _names(request: web.Request) -> tuple[str, str]:
    return request.match_info["app"], request.match_info["id"]


async def show_lease(request: web.Request) -> web.Response:
    """GET /lease."""
    return json_answer(lease_envelope(request.app[PARTS].machines.leases.get(*_names(request))))


async def take_lease(request: web.Request) -> web.Response:
    """POST /lease: takes one, or with its nonce makes it last longer. The time is in the query or in the body."""
    wanted = await body.read(request, LeaseBody)
    asked = body.number(request, "ttl", default=0, least=0, most=2**31) or wanted.ttl or _TTL
    ttl = min(asked, _LONGEST)
    machines = request.app[PARTS].machines
    nonce = request.headers.get(NONCE)
    if nonce:
        lease = await machines.leases.refresh(*_names(request), nonce=nonce, ttl=ttl)
    else:
        owner = grant_of(request).name
        lease = await machines.leases.acquire(*_names(request), ttl=ttl, owner=owner, description=wanted.description or "")
    return json_answer(lease_envelope(lease), status=201)


async def release_lease(request: web.Request) -> web.Response:
    """DELETE /lease."""
    nonce = request.headers.get(NONCE)
    if not nonce:
        raise Invalid(f"the header {NONCE} is missing", hint="only who holds a lease can give it back")
    await request.app[PARTS].machines.leases.release(*_names(request), nonce=nonce)
    return json_answer({"status": "success", "data": {"ok": True}})


async def show_metadata(request: web.Request) -> web.Response:
    """GET /metadata."""
    return json_answer(dict(request.app[PARTS].machines.get(*_names(request)).metadata))


async def change_metadata(request: web.Request) -> web.Response:
    """PUT and PATCH /metadata: both change the keys that are named, and leave the others."""
    wanted = await body.read(request, MetadataBody)
    await request.app[PARTS].machines.set_metadata(*_names(request), wanted.metadata, version=wanted.machine_version or None)
    return nothing()


async def show_key(request: web.Request) -> web.Response:
    """GET /metadata/{key}."""
    metadata = request.app[PARTS].machines.get(*_names(request)).metadata
    key = request.match_info["key"]
    if key not in metadata:
        raise NotFound(f"the machine has no metadata under {key[:64]!r}")
    return json_answer({"value": metadata[key]})


async def set_key(request: web.Request) -> web.Response:
    """POST /metadata/{key}."""
    wanted = await body.read(request, MetadataValueBody)
    await request.app[PARTS].machines.set_metadata(*_names(request), {request.match_info["key"]: wanted.value})
    return nothing()


async def delete_key(request: web.Request) -> web.Response:
    """DELETE /metadata/{key}."""
    await request.app[PARTS].machines.set_metadata(*_names(request), {request.match_info["key"]: None})
    return nothing()


ROUTES: Final = (
    web.get(_LEASE, show_lease),
    web.post(_LEASE, take_lease),
    web.delete(_LEASE, release_lease),
    web.get(_METADATA, show_metadata),
    web.put(_METADATA, change_metadata),
    web.patch(_METADATA, change_metadata),
    web.get(f"{_METADATA}/{{key}}", show_key),
    web.post(f"{_METADATA}/{{key}}", set_key),
    web.delete(f"{_METADATA}/{{key}}", delete_key),
)
