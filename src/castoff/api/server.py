"""The HTTP server: one function builds the application of its parts, one listens.

connection (connections.py) -> answering: request id, errors as JSON -> rates -> authentication -> a route of routes/
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from castoff.api.auth import PUBLIC, authentication
from castoff.api.body import CLIENT_TIMEOUT
from castoff.api.connections import Connections
from castoff.api.errors import Refusal, error_answer
from castoff.api.limits import Rates, rate_limits
from castoff.api.parts import MACHINE_ID, PARTS, Parts
from castoff.api.routes.machines import VIEWS
from castoff.api.routes.table import ROUTES
from castoff.api.wire.machine import MachineViews
from castoff.errors import CastoffError, Internal
from castoff.lifecycle.ids import Ulids

__all__ = ["CONNECTIONS", "Register", "build_app", "received", "serving"]

_LOG: Final = logging.getLogger(__name__)
_BACKLOG: Final = 1024
_KEPT_SOCKET: Final[dict[str, Any]] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
"""From Python 3.13 on asyncio would look at the path under which the socket was bound, which may have been of that moment only
(castoff.vmm.sockets), and unlink it at the end, which the next agent does."""

CONNECTIONS: Final = web.AppKey("castoff.connections", Connections)
"""The application's open connections."""
_ULIDS: Final = web.AppKey("castoff.request_ids", Ulids)

Register = Callable[[web.Application], None]
"""Adds routes to the application before it is served; those that need no token are named in ``app[PUBLIC]``."""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(parts: Parts, register: Sequence[Register] = ()) -> web.Application:
    """The Machines API, and what ``register`` adds to it."""
    settings = parts.settings
    rates = Rates(settings.requests_per_second, settings.request_burst)
    app = web.Application(
        middlewares=[_answering, rate_limits(rates), authentication(parts.authenticator)],
        client_max_size=settings.request_bytes,
    )
    app[PARTS] = parts
    app[PUBLIC] = set()
    app[_ULIDS] = Ulids()
    app[VIEWS] = MachineViews()
    app[CLIENT_TIMEOUT] = settings.client_timeout
    app[CONNECTIONS] = Connections(most=settings.connections, timeout=settings.client_timeout)
    app.on_response_prepare.append(_stamp)
    app.add_routes(ROUTES)
    for add in register:
        add(app)
    return app


@contextlib.asynccontextmanager
async def serving(
    app: web.Application, sockets: Sequence[socket.socket], *, tls: ssl.SSLContext | None = None, grace: float = 5.0
) -> AsyncIterator[None]:
    """Serves an application while the context lasts.

    Args:
        app: Of :func:`build_app`.
        sockets: Bound ones, TCP and unix; they are listened at here, and closed at the end.
        tls: For the TCP ones.
        grace: Seconds that requests under way have at the end.
    """
    loop = asyncio.get_running_loop()
    connections = app[CONNECTIONS]
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=grace, keepalive_timeout=75.0)
    await runner.setup()
    server = runner.server
    assert server is not None
    listeners: list[asyncio.Server] = []
    try:
        for bound in sockets:
            local = bound.family == socket.AF_UNIX
            factory = connections.factory(server, "unix" if local else "tcp")
            if local:
                listeners.append(await loop.create_unix_server(factory, sock=bound, backlog=_BACKLOG, **_KEPT_SOCKET))
            else:
                limit = connections.timeout if tls is not None else None
                listeners.append(
                    await loop.create_server(factory, sock=bound, backlog=_BACKLOG, ssl=tls, ssl_handshake_timeout=limit)
                )
        yield
    finally:
        for listener in listeners:
            listener.close()
        await runner.cleanup()
        for listener in listeners:
            await listener.wait_closed()


@dataclass(slots=True)
class _Exchange:
    """A request and what became of it: its id, when its first bytes came, and whether an answer's head has been sent."""

    identity: str
    received: float
    answered: bool = False


_EXCHANGE: Final[Any] = getattr(web, "RequestKey", web.AppKey)("castoff.exchange", _Exchange)


def received(request: web.Request) -> float:
    """When a request's first bytes were read, of time.monotonic()."""
    exchange = request.get(_EXCHANGE)
    return time.monotonic() if exchange is None else float(exchange.received)


async def _stamp(request: web.Request, answer: web.StreamResponse) -> None:
    exchange = request.get(_EXCHANGE)
    if exchange is not None:
        exchange.answered = True
        answer.headers["fly-request-id"] = exchange.identity


@web.middleware
async def _answering(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Whatever happens becomes an answer that clients can read, with an id that the log has as well."""
    connections, transport = request.app[CONNECTIONS], request.transport
    identity = f"{request.app[_ULIDS].next()}-{request.app[PARTS].settings.region}"
    exchange = request[_EXCHANGE] = _Exchange(identity, connections.begins(transport))
    try:
        answer = await _answer(request, handler, exchange)
    finally:
        connections.ends(transport)
    _LOG.info(
        "%s %s %d",
        request.method,
        request.raw_path.partition("?")[0],  # as it was sent: escaped, and without what a query may tell
        answer.status,
        extra={
            "request_id": exchange.identity,
            "milliseconds": round((time.monotonic() - exchange.received) * 1000, 1),
            **_subject(request),
        },
    )
    return answer


def _subject(request: web.Request) -> dict[str, str]:
    """The app and the machine that a request is about, as far as it is."""
    found = request.match_info
    resource = found.route.resource
    subject = {"app": found["app"]} if "app" in found else {}
    if machine := request.get(MACHINE_ID) or (found["id"] if resource and "/machines/{id}" in resource.canonical else ""):
        subject["machine"] = str(machine)
    return subject


async def _answer(request: web.Request, handler: _Handler, exchange: _Exchange) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            return error
        answer = error_answer(Refusal(_reason(request, error), http=error.status, word=_WORDS.get(error.status, "invalid")))
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception as error:
        if not isinstance(error, CastoffError) or isinstance(error, Internal):
            _LOG.exception("request %s failed", exchange.identity, extra={"request_id": exchange.identity, **_subject(request)})
        if exchange.answered:  # a stream: a second head would be taken for a part of it, so the client sees it break off
            raise ConnectionAbortedError("the answer broke off") from error
        if isinstance(error, CastoffError):
            return error_answer(error)
        hint = f"its log has more under {exchange.identity}"
        return error_answer(Internal("castoff failed to answer this request", hint=hint))


_WORDS: Final = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def _reason(request: web.Request, error: web.HTTPException) -> str:
    if error.status == 404:
        return f"there is no such route: {request.path}"
    if error.status == 405:
        return f"{request.method} is not served here"
    return error.reason
