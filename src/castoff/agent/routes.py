"""What the agent adds to the API: machines' logs, castoff's own extension, and the counting of requests and creates."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from castoff.agent.launch.logs import Logs
from castoff.api import body
from castoff.api.creates import Creates
from castoff.api.metrics import Metrics
from castoff.api.parts import PARTS
from castoff.api.server import Register, received
from castoff.errors import Invalid, NotFound
from castoff.lifecycle.states import State

__all__ = ["counted", "log_routes"]

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_MACHINES: Final = "/v1/apps/{app}/machines"
_TAIL: Final = 100
_MOST: Final = 10_000
_AT_REST: Final = {State.STOPPED, State.SUSPENDED, State.FAILED, State.DESTROYED}


def log_routes(logs: Logs) -> Register:
    """``GET /v1/apps/{app}/machines/{id}/logs?tail=N&follow=true``: JSON lines with ``t`` (Unix milliseconds), ``s`` (1 stdout, 2
    stderr) and ``m``. With ``until=rest`` following ends when nothing of the machine runs, after all that it had written."""

    async def read(request: web.Request) -> web.StreamResponse:
        machines, app = request.app[PARTS].machines, request.match_info["app"]
        machine = machines.get(app, request.match_info["id"])

        def goes_on() -> bool:
            """Nothing else tells of a client that is gone, as long as there is nothing to write to it."""
            there = request.transport is not None and not request.transport.is_closing()
            with contextlib.suppress(NotFound):
                return there and machines.get(app, machine.id).state not in over
            return False

        until = request.query.get("until", "destroyed")
        if until not in ("destroyed", "rest"):
            raise Invalid("query: until is neither rest nor destroyed")
        over = _AT_REST if until == "rest" else {State.DESTROYED}
        tail = body.number(request, "tail", default=_TAIL, least=0, most=_MOST)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
        await response.prepare(request)
        async for line in logs.read(machine.id, tail=tail, follow=body.flag(request, "follow"), goes_on=goes_on):
            await response.write(msgspec.json.encode(line) + b"\n")
        await response.write_eof()
        return response

    def add(app: web.Application) -> None:
        app.router.add_get(f"{_MACHINES}/{{id}}/logs", read)

    return add


def counted(metrics: Metrics, creates: Creates) -> Register:
    """Requests are counted, and what a request for a machine begins is its create."""

    @web.middleware
    async def asked(request: web.Request, handler: _Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        if request.method != "POST" or resource is None or resource.canonical != _MACHINES:
            return await handler(request)
        with creates.asked(request.match_info["app"], since=received(request)):
            return await handler(request)

    def add(app: web.Application) -> None:
        app.middlewares.insert(0, metrics.count_requests)
        app.middlewares.append(asked)

    return add
