"""What flyctl asks besides the Machines API: a little GraphQL, and a second REST API of organizations and builds."""

from __future__ import annotations

import itertools
import time
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web

from castoff.api import body
from castoff.api.answer import json_answer
from castoff.api.auth import grant_of
from castoff.api.graphql.document import parse
from castoff.api.graphql.execute import select
from castoff.api.graphql.mutations import mutation_root, refused_mutation
from castoff.api.graphql.schema import query_root
from castoff.api.parts import PARTS, Parts
from castoff.api.routes.apps import check_organization
from castoff.api.wire.app import organization_document
from castoff.errors import CastoffError, Invalid, Unsupported

__all__ = ["ROUTES"]

_NUMBERS: Final = itertools.count(time.time_ns() // 1_000_000)
"""Of builds: no build is kept, and no number comes twice."""


class _Query(msgspec.Struct, frozen=True, kw_only=True):
    query: str
    variables: dict[str, Any] | None = None


class _Build(msgspec.Struct, frozen=True, kw_only=True):
    build_id: Annotated[int, msgspec.Meta(ge=0)] | None = None
    status: str | None = None


async def graphql(request: web.Request) -> web.Response:
    """POST /graphql: 200 in any case, with ``errors`` for a failure; clients take any other status for the server's."""
    wanted = await body.read(request, _Query)
    try:
        operation = parse(wanted.query, wanted.variables or {})
        changes = operation.kind == "mutation"
        parts, grant = request.app[PARTS], grant_of(request)
        root = mutation_root(parts, grant) if changes else query_root(parts, grant)
        unknown = [field.name for field in operation.selection if field.name not in root]
        if unknown and changes:
            raise refused_mutation(unknown[0])
        if unknown:
            raise Unsupported(f"castoff's GraphQL has no {unknown[0][:64]!r}", hint="docs/compatibility.md has what is served")
        return json_answer({"data": await select(root, operation.selection)})
    except CastoffError as error:
        return json_answer({"data": None, "errors": [{"message": str(error)}]})


def _organization(parts: Parts) -> dict[str, Any]:
    found = organization_document(parts)
    return {
        **found,
        "raw_slug": found["slug"],
        "paid_plan": True,
        "personal": True,
        "billable": True,
        "billing_status": "CURRENT",
        "remote_builder_image": "",
    }


async def organization(request: web.Request) -> web.Response:
    """GET /api/v1/organizations/{slug}: flyctl runs no machine without it."""
    parts = request.app[PARTS]
    check_organization(parts, request.match_info["slug"])
    return json_answer({"organization": _organization(parts)})


async def organizations(request: web.Request) -> web.Response:
    """GET /api/v1/organizations."""
    return json_answer({"organizations": [_organization(request.app[PARTS])]})


async def begin_build(request: web.Request) -> web.Response:
    """POST /api/v1/builds: flyctl reports that it looks for an image."""
    return json_answer({"id": next(_NUMBERS), "status": "started"})


async def finish_build(request: web.Request) -> web.Response:
    """POST /api/v1/builds/finish."""
    wanted = await body.read(request, _Build)
    if wanted.build_id is None:
        raise Invalid("build_id: none is named")
    return json_answer({"id": wanted.build_id, "status": wanted.status or "completed", "wallclock_time_ms": 0})


ROUTES: Final = (
    web.post("/graphql", graphql),
    web.get("/api/v1/organizations", organizations),
    web.get("/api/v1/organizations/{slug}", organization),
    web.post("/api/v1/builds", begin_build),
    web.post("/api/v1/builds/finish", finish_build),
)
