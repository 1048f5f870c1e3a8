"""A machine's TCP ports, castoff's own: /v1/apps/{app}/machines/{id}/ports/{port}, a WebSocket (castoff.api.wire.tunnel)."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import WSMsgType, web

from castoff.api.auth import Forbidden, grant_of
from castoff.api.errors import Refusal, status_of
from castoff.api.parts import PARTS
from castoff.api.wire.tunnel import CONNECTED, END, LONGEST, NORMAL, REFUSED
from castoff.errors import CastoffError, Invalid, Unavailable, Unsupported
from castoff.lifecycle.launcher import Connection, Reachable

__all__ = ["ROUTES"]

_PORT: Final = "/v1/apps/{app}/machines/{id}/ports/{port}"
_CONNECTS: Final = 10.0
"""Seconds in which the machine's port is connected; whoever waits behind too many others waits no longer."""
_REASON: Final = 120
"""Bytes of a reason; a close frame holds 123 (RFC 6455)."""


async def connect(request: web.Request) -> web.StreamResponse:
    """GET: a connection to the port, by the machine's init: whatever network it has, published or not."""
    if grant_of(request).read_only:
        raise Forbidden("this token is for reading only: what a machine's port is told may change it")
    port = request.match_info["port"]
    if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise Invalid(f"there is no TCP port {port[:20]!r}", hint="1 to 65535")
    run = await request.app[PARTS].machines.running(request.match_info["app"], request.match_info["id"])
    if not isinstance(run, Reachable):
        raise Unsupported("this machine's ports cannot be reached")
    socket = web.WebSocketResponse(compress=False, max_msg_size=LONGEST)
    if not socket.can_prepare(request).ok:
        raise Refusal("this is a WebSocket: ask for an upgrade", http=426, word="invalid")
    await socket.prepare(request)
    try:
        await _dial(run, int(port), socket)
    except CastoffError as error:
        reason = str(error).encode()[:_REASON].decode(errors="ignore")
        await socket.close(code=REFUSED + status_of(error), message=reason.encode())
    else:
        await socket.close(code=NORMAL)
    return socket


async def _dial(run: Reachable, port: int, socket: web.WebSocketResponse) -> None:
    async def use(connection: Connection) -> None:
        limit.reschedule(None)
        await socket.send_str(CONNECTED)
        await _relay(connection, socket)

    try:
        async with asyncio.timeout(_CONNECTS) as limit:
            await run.dial(port, use)
    except TimeoutError as error:
        raise Unavailable(
            f"port {port} was not connected within {_CONNECTS:g} s", hint="are there too many connections?"
        ) from error


async def _relay(connection: Connection, socket: web.WebSocketResponse) -> None:
    """Until the machine has said its last, or the client has gone."""
    directions = [asyncio.create_task(_inward(connection, socket)), asyncio.create_task(_outward(connection, socket))]
    try:
        done, _ = await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        for direction in done:
            direction.result()
    except ConnectionError:
        pass  # the client has gone
    finally:
        for direction in directions:
            direction.cancel()
        await asyncio.gather(*directions, return_exceptions=True)


async def _inward(connection: Connection, socket: web.WebSocketResponse) -> None:
    ended = False
    async for message in socket:
        if message.type == WSMsgType.BINARY and not ended:
            await connection.write(message.data)
        elif message.type == WSMsgType.TEXT and message.data == END and not ended:
            ended = True
            await connection.end()
        else:
            raise Invalid("a WebSocket to a port carries bytes, and one end")


async def _outward(connection: Connection, socket: web.WebSocketResponse) -> None:
    while data := await connection.read():
        await socket.send_bytes(data)


ROUTES: Final = (web.get(_PORT, connect),)
