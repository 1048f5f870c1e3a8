"""Orders over the agent's API: an extension of castoff's own, for ``castoff preload --hosts`` and ``castoff fleet orders``."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from aiohttp import web

from castoff.agent.fleet.fleet import Fleet
from castoff.agent.fleet.working import Working
from castoff.api import body
from castoff.api.answer import json_answer
from castoff.api.auth import Forbidden, grant_of
from castoff.api.server import Register
from castoff.errors import Conflict, Invalid
from castoff.fleet.orders import Order, OrderState, Part, PartState, new_order
from castoff.fleet.selector import parse_selector
from castoff.image.platforms import parse_platform

__all__ = ["order_routes", "summary"]


class _Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of an order that is given."""

    images: tuple[str, ...]
    hosts: str = "all"
    keep: bool = False
    limit: int = 0
    window: str = ""
    size: int | None = None
    platform: str = ""
    profile_only: bool = False


def order_routes(fleet: Fleet | None, working: Working | None) -> Register:
    """``/v1/fleet/orders`` and ``/v1/fleet/orders/{id}``: list, give, show, cancel; a token of one app may not ask."""

    def here(request: web.Request) -> tuple[Fleet, Working]:
        if grant_of(request).app is not None:
            raise Forbidden("this token is for one app, and the fleet is everybody's")
        if fleet is None or working is None:
            raise Conflict("this host is of no fleet", hint="set fleet.urls, or start `castoff agent --fleet nats://...`")
        return fleet, working

    async def listed(request: web.Request) -> web.Response:
        found, work = here(request)
        parts: dict[str, list[Part]] = {}
        for part in await work.book.parts():
            parts.setdefault(part.order, []).append(part)
        orders = await work.book.orders()
        return json_answer({"orders": [summary(order, parts.get(order.id, []), found) for order in orders]})

    async def given(request: web.Request) -> web.Response:
        found, work = here(request)
        wanted = await body.read(request, _Wanted)
        if not 0 <= wanted.limit < 1 << 53 or (wanted.size is not None and wanted.size <= 0):
            raise Invalid("limit and size are numbers of bytes")
        order = new_order(
            wanted.images,
            hosts=wanted.hosts,
            keep=wanted.keep,
            limit=wanted.limit,
            window=wanted.window,
            size=wanted.size,
            platform=parse_platform(wanted.platform) if wanted.platform else None,
            profile_only=wanted.profile_only,
            by=work.me().name,
        )
        await work.book.give(order)
        return json_answer(summary(order, [], found), status=201)

    async def shown(request: web.Request) -> web.Response:
        found, work = here(request)
        order = await work.book.order(request.match_info["id"])
        return json_answer(_whole(order, await work.book.parts(order.id), found))

    async def cancelled(request: web.Request) -> web.Response:
        found, work = here(request)
        order = await work.book.cancel(request.match_info["id"])
        return json_answer(_whole(order, await work.book.parts(order.id), found))

    def add(app: web.Application) -> None:
        app.router.add_get("/v1/fleet/orders", listed)
        app.router.add_post("/v1/fleet/orders", given)
        app.router.add_get("/v1/fleet/orders/{id}", shown)
        app.router.add_delete("/v1/fleet/orders/{id}", cancelled)

    return add


def summary(order: Order, parts: list[Part], fleet: Fleet) -> dict[str, Any]:
    """An order in a few words: what it is, how many hosts it is for as far as they are known, how many have done it."""
    selector = parse_selector(order.hosts) if order.state in (OrderState.NEW, OrderState.OPEN) else None
    told = {part.host for part in parts}
    if selector is not None:
        told |= {member.record.id for member in fleet.members.alive() if selector.matches(member.record)}
    matching = len(told)
    hosts = selector.count if selector is not None and selector.count else matching
    states = Counter(part.state.value for part in parts if part.generation == order.generation)
    done = states[PartState.DONE.value]
    return {
        "id": order.id,
        "state": order.state.value,
        "complete": order.state is OrderState.OPEN and 0 < hosts <= done,
        "images": list(order.images),
        "digests": list(order.digests),
        "hosts": order.hosts,
        "keep": order.keep,
        "limit": order.limit,
        "window": order.window,
        "by": order.by,
        "created": order.created,
        "reason": order.reason,
        "chosen": hosts,
        "matching": matching,
        "parts": {state.value: states[state.value] for state in PartState if states[state.value]},
    }


def _whole(order: Order, parts: list[Part], fleet: Fleet) -> dict[str, Any]:
    rows = [
        {
            "host": part.host,
            "name": part.name,
            "state": part.state.value if part.generation == order.generation else PartState.WAITING.value,
            "attempts": part.attempts,
            "images_done": part.images_done,
            "done": part.done,
            "total": part.total,
            "reason": part.reason,
        }
        for part in parts
    ]
    return summary(order, parts, fleet) | {"progress": rows}
