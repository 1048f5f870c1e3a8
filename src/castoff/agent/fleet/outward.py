"""This host as a client of the others' agents: by their peers' door, where both show certificates of the fleet's own authority.

Who asks was let in here, and what he may is told with each request (castoff.api.auth); the other host believes that of a host
of its fleet, and of nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp import web

from castoff.api.auth import GRANT_HEADER, Grant, grant_of
from castoff.api.client import refusal
from castoff.errors import Unavailable, Unsupported
from castoff.fleet.record import HostRecord
from castoff.peers.settings import PeerSettings
from castoff.peers.tls import client_context

__all__ = ["HERE", "PASSED_ON", "Outward", "Unreached"]

HERE: Final = "castoff-here"
"""Header of a request that another host passed on: it is answered here, and goes no further."""
PASSED_ON: Final = ("Content-Type", "Retry-After", "Cache-Control", "Allow")
"""Headers of an answer that its client sees."""
_KEPT: Final = ("Content-Type", "Accept", "fly-machine-lease-nonce")
_CONNECT: Final = 2.0
_PATIENCE: Final = 90.0
_LONGEST: Final = 64 << 20
_NOT_THERE: Final = (aiohttp.ClientConnectorError, getattr(aiohttp, "ConnectionTimeoutError", aiohttp.ClientConnectorError))
"""Nothing was sent. (aiohttp before 3.10 has no name for a connection that takes too long.)"""


class Unreached(Unavailable):
    """The other host was not told of the request at all."""


class Outward:
    """Requests to other hosts. Made by :meth:`open`."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: PeerSettings) -> AsyncIterator[Outward]:
        """Connections for the block.

        Raises:
            Invalid: The certificates cannot be used.
        """
        tls = await asyncio.to_thread(client_context, settings)
        connector = aiohttp.TCPConnector(ssl=tls if tls is not None else True, limit_per_host=64)
        timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
            yield cls(session)

    async def forward(self, request: web.Request, host: HostRecord, *, patience: float = _PATIENCE) -> web.StreamResponse:
        """Has a request answered by another host; body and answer pass through as they come.

        Args:
            request: It was let in here.
            host: Who answers.
            patience: Seconds for which the other host may say nothing.

        Raises:
            Unreached: It is not there.
            Unavailable: It broke off before it answered.
            Unsupported: The request wants a connection that is more than one answer.
        """
        if request.headers.get("Upgrade"):
            raise Unsupported(f"this machine is on host {host.name}", hint="ask that host's own agent for a connection to it")
        headers = {name: request.headers[name] for name in _KEPT if name in request.headers}
        body = request.content if request.can_read_body else None
        async with self._asked(host, request.method, request.path_qs, grant_of(request), headers, body, patience) as answer:
            response = web.StreamResponse(status=answer.status)
            for name in PASSED_ON:
                if name in answer.headers:
                    response.headers[name] = answer.headers[name]
            await response.prepare(request)
            try:
                async for piece in answer.content.iter_any():
                    await response.write(piece)
            except aiohttp.ClientError as error:
                raise ConnectionAbortedError(f"host {host.name} broke off") from error
            await response.write_eof()
            return response

    async def ask(
        self, host: HostRecord, grant: Grant, method: str, path: str, *, body: Any = None, patience: float = 2.0
    ) -> Any:
        """One request; the answer's JSON.

        Raises:
            Unreached, Unavailable: As :meth:`forward`.
            CastoffError: The other host refuses.
        """
        data = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        async with self._asked(host, method, path, grant, headers, data, patience) as answer:
            status, text = answer.status, await _whole(answer, host)
        if status >= 400:
            raise refusal(status, text)
        return msgspec.json.decode(text) if text else None

    async def make(self, host: HostRecord, order: bytes, *, patience: float = _PATIENCE) -> tuple[int, bytes]:
        """Has a machine made by another host (castoff.agent.fleet.door); the answer's status and body.

        Raises:
            Unreached, Unavailable: As :meth:`forward`.
        """
        async with self._request(host, "POST", f"{host.peers}/v1/hosts/machines", {}, order, patience) as answer:
            return answer.status, await _whole(answer, host)

    def _asked(
        self, host: HostRecord, method: str, path: str, grant: Grant, headers: dict[str, str], body: Any, patience: float
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        told = {**headers, GRANT_HEADER: msgspec.json.encode(grant).decode()}
        return self._request(host, method, f"{host.peers}/v1/hosts/api{path}", told, body, patience)

    @contextlib.asynccontextmanager
    async def _request(
        self, host: HostRecord, method: str, url: str, headers: dict[str, str], body: Any, patience: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if not host.peers:
            raise Unreached(f"host {host.name} serves no other hosts", hint="set peers.listen and peers.url there")
        timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT, sock_read=patience)
        try:
            answer = await self._session.request(method, url, headers=headers, data=body, timeout=timeout, allow_redirects=False)
        except _NOT_THERE as error:
            raise Unreached(
                f"host {host.name} is not reached: {error}", hint="`castoff fleet hosts` shows who is there"
            ) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(
                f"host {host.name} broke off before it answered: {error or type(error).__name__}", hint="ask again"
            ) from error
        try:
            yield answer
        finally:
            answer.release()


async def _whole(answer: aiohttp.ClientResponse, host: HostRecord) -> bytes:
    try:
        text = await answer.content.read(_LONGEST + 1) if answer.content_length is None else await answer.read()
        while answer.content_length is None and not answer.content.at_eof() and len(text) <= _LONGEST:
            text += await answer.content.read(_LONGEST + 1 - len(text))
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Unavailable(f"host {host.name} broke off its answer: {error or type(error).__name__}", hint="ask again") from error
    if len(text) > _LONGEST:
        raise Unavailable(f"host {host.name} answers with more than {_LONGEST >> 20} MiB")
    return text
