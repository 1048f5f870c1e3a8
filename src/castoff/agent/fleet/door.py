"""What other hosts of the fleet may ask of this one's agent, through the peers' door: all that they let their clients ask for.

A request is handed to this agent's own API with what its client may. A host of the fleet could say anything of its clients:
hosts with a certificate of the fleet's authority trust one another with their machines (docs/fleet.md says so).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Final

import aiohttp
import msgspec
from aiohttp import web

from castoff.agent.fleet.outward import HERE, PASSED_ON
from castoff.agent.records import Records
from castoff.api.auth import GRANT_HEADER, Grant
from castoff.errors import Conflict, Invalid, NotFound, Unauthorized

__all__ = ["MACHINE_HEADER", "PROMISE_HEADER", "HostDoor", "MakeOrder"]

MACHINE_HEADER: Final = "castoff-machine-id"
PROMISE_HEADER: Final = "castoff-promise"
_KEPT: Final = ("Content-Type", "Accept", "fly-machine-lease-nonce", GRANT_HEADER)
_ORDER_BYTES: Final = 32 << 20


class MakeOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A machine to make here, which another host was asked for."""

    grant: Grant
    app: Annotated[str, msgspec.Meta(max_length=63, pattern=r"^[a-z0-9-]+\Z")]
    network: str = "default"
    secrets: dict[str, str] = {}
    """The app's, as the host that was asked has them."""
    machine: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{14}\Z")]
    """Its id, chosen by the host that was asked: an order that is repeated makes no second machine."""
    promise: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
    body: msgspec.Raw
    """As the client sent it."""


class HostDoor:
    """The routes. Made by :meth:`open`."""

    def __init__(self, session: aiohttp.ClientSession, records: Records, organization: str) -> None:
        self._session = session
        self._records = records
        self._organization = organization

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, socket: Path, records: Records, organization: str) -> AsyncIterator[HostDoor]:
        """Hands requests to the agent for the block.

        Args:
            socket: The agent's own.
            records: Where apps and secrets are made that a machine needs.
            organization: That apps are of.
        """
        descriptor = os.open(socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # a socket's path is short
        try:
            connector = aiohttp.UnixConnector(path=f"/proc/self/fd/{descriptor}/{socket.name}", limit=256)
            timeout = aiohttp.ClientTimeout(total=None)
            async with aiohttp.ClientSession(
                "http://agent", connector=connector, timeout=timeout, auto_decompress=False
            ) as session:
                yield cls(session, records, organization)
        finally:
            os.close(descriptor)

    def add(self, app: web.Application) -> None:
        """Adds them to the peers' door."""
        app.router.add_route("*", "/v1/hosts/api/{tail:.*}", self._pass)
        app.router.add_post("/v1/hosts/machines", self._make)

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        if GRANT_HEADER not in request.headers:
            raise Invalid(f"a host says for whom it asks: the header {GRANT_HEADER} is missing")
        path = request.path_qs.removeprefix("/v1/hosts/api")
        headers = {name: request.headers[name] for name in _KEPT if name in request.headers}
        body = request.content if request.can_read_body else None
        return await self._answered(request, request.method, path, headers, body)

    async def _make(self, request: web.Request) -> web.StreamResponse:
        order = await _order(request)
        await self._prepare(order)
        headers = {
            "Content-Type": "application/json",
            GRANT_HEADER: msgspec.json.encode(order.grant).decode(),
            MACHINE_HEADER: order.machine,
            PROMISE_HEADER: order.promise,
        }
        return await self._answered(request, "POST", f"/v1/apps/{order.app}/machines", headers, bytes(order.body))

    async def _prepare(self, order: MakeOrder) -> None:
        """The app is here, with the secrets that it has where the machine was asked for."""
        if order.grant.read_only or order.grant.app not in (None, order.app):
            raise Unauthorized("the token may not make a machine of this app")
        apps, secrets = self._records.apps, self._records.secrets
        try:
            apps.get(order.app)
        except NotFound:
            with contextlib.suppress(Conflict):  # another machine of it came at the same time
                await apps.create(order.app, organization=self._organization, network=order.network)
        known = await secrets.values(order.app)
        news: dict[str, str | None] = {name: value for name, value in order.secrets.items() if known.get(name) != value}
        if news:
            await secrets.set(order.app, news)

    async def _answered(
        self, request: web.Request, method: str, path: str, headers: dict[str, str], body: Any
    ) -> web.StreamResponse:
        async with self._session.request(
            method, path, headers={**headers, HERE: "1"}, data=body, allow_redirects=False
        ) as answer:
            response = web.StreamResponse(status=answer.status)
            for name in PASSED_ON:
                if name in answer.headers:
                    response.headers[name] = answer.headers[name]
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response


async def _order(request: web.Request) -> MakeOrder:
    data = bytearray()
    async for piece in request.content.iter_any():
        data += piece
        if len(data) > _ORDER_BYTES:
            raise Invalid(f"an order for a machine has more than {_ORDER_BYTES >> 20} MiB")
    try:
        return msgspec.json.decode(data, type=MakeOrder)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"no order for a machine: {error}") from error
