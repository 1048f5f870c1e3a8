"""The peers' door: chunks for other hosts of the fleet, over a listener of its own (castoff.peers.wire has what is said there).

Everybody who comes through it has a certificate of the fleet's authority; what they ask for is bounded all the same: the size
of a request, how many are answered at a time, and for how long one of them may take what it asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry

from castoff.agent.listen import bind_tcp
from castoff.agent.peers.collector import PeersCollector
from castoff.agent.peers.growth import Growth
from castoff.agent.peers.indexes import Indexes
from castoff.agent.peers.shelf import Shelf
from castoff.agent.peers.traffic import Traffic
from castoff.agent.peers.uplink import Uplink
from castoff.api.connections import Connections
from castoff.errors import CastoffError, Conflict, Invalid, NotFound
from castoff.image.digest import Digest
from castoff.peers.settings import PeerSettings
from castoff.peers.tls import server_context
from castoff.peers.wire import HAVE_WAIT, HOST_HEADER, KEY_HEADER, SIGNATURE_HEADER, URGENCY_HEADER, parse_chunks
from castoff.sources.urgency import Urgency
from castoff.store.store import Store

__all__ = ["PeerDoor", "serving_peers"]

_CONNECTIONS: Final = 512
_TIMEOUT: Final = 15.0
_BULK: Final = 16
"""Answers of bulk at a time."""
_URGENT: Final = 64
_WAITING: Final = 256
"""Requests that wait for one of those; more are turned away: the asker has others to ask."""
_GATHER: Final = 0.05
"""Seconds for which changes are gathered before they are told."""
_TIDY: Final = 30.0
"""Seconds between two looks at whether frames are still asked for."""
_NUMBER: Final = re.compile(r"-?\d{1,12}(\.\d{1,9})?\Z", re.ASCII)
_URL: Final = re.compile(r"https?://[\x21-\x7e]{1,240}\Z", re.ASCII)
_PART: Final = 128 << 10
_STATUS: Final = {NotFound: 404, Conflict: 409, Invalid: 400}


class PeerDoor:
    """The routes.

    Args:
        shelf: What there is.
        growth: When that changes.
        indexes: What that is.
        uplink: How it may be sent.
    """

    def __init__(self, shelf: Shelf, growth: Growth, indexes: Indexes, uplink: Uplink) -> None:
        self._shelf = shelf
        self._growth = growth
        self._indexes = indexes
        self._uplink = uplink
        self._turns = {False: asyncio.Semaphore(_BULK), True: asyncio.Semaphore(_URGENT)}
        self._waiting = 0

    def app(self, connections: Connections) -> web.Application:
        """An application of them."""

        @web.middleware
        async def answering(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            connections.begins(request.transport)
            try:
                return await handler(request)
            except CastoffError as error:
                return web.Response(status=_STATUS.get(type(error), 503), text=error.what)
            finally:
                connections.ends(request.transport)

        app = web.Application(middlewares=[answering], client_max_size=1024)
        app.router.add_get("/v1/layers/{layer:[0-9a-f]{64}}/have", self._have)
        app.router.add_get("/v1/layers/{layer:[0-9a-f]{64}}/chunks", self._chunks)
        app.router.add_get("/v1/layers/{layer:[0-9a-f]{64}}/index", self._index)
        return app

    async def _have(self, request: web.Request) -> web.StreamResponse:
        layer = Digest(request.match_info["layer"])
        known, wait = _number(request, "known", -1), _number(request, "wait", 0.0)
        end = time.monotonic() + min(max(wait, 0.0), HAVE_WAIT)
        async with self._growth.watching(self._shelf.have_file(layer)) as changed:
            while True:
                changed.clear()
                bits = await self._shelf.have(layer)
                left = end - time.monotonic()
                if int.from_bytes(bits, "little").bit_count() != known or left <= 0:
                    return web.Response(body=bits)
                await self._growth.wait(changed, left)
                await asyncio.sleep(min(_GATHER, left))

    async def _chunks(self, request: web.Request) -> web.StreamResponse:
        layer = Digest(request.match_info["layer"])
        wanted = parse_chunks(request.query.get("of", ""))
        urgent = request.headers.get(URGENCY_HEADER) == str(int(Urgency.WAITED_FOR))
        if self._waiting >= _WAITING:
            self._uplink.refused += 1
            return web.Response(status=503, text="this host has enough to do")
        self._waiting += 1
        try:
            await self._turns[urgent].acquire()
        finally:
            self._waiting -= 1
        try:
            async with self._uplink.urgent() if urgent else contextlib.nullcontext():
                return await self._send(request, await self._shelf.frames(layer, wanted), urgent=urgent)
        finally:
            self._turns[urgent].release()

    async def _index(self, request: web.Request) -> web.StreamResponse:
        found = await self._indexes.get(Digest(request.match_info["layer"]), HAVE_WAIT)
        if found is None:
            return web.Response(status=202)
        await self._uplink.turn(len(found.data))
        self._uplink.count(_asker(request), len(found.data), urgent=False)
        return web.Response(body=found.data, headers={KEY_HEADER: found.key, SIGNATURE_HEADER: found.signature})

    async def _send(self, request: web.Request, frames: list[bytes], *, urgent: bool) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        answer.content_length = sum(map(len, frames))
        body = memoryview(b"".join(frames))
        who = _asker(request)
        with contextlib.suppress(ConnectionError):  # whoever asked has it from another by now
            await answer.prepare(request)
            for start in range(0, len(body), _PART):
                part = body[start : start + _PART]
                if not urgent:
                    await self._uplink.turn(len(part))
                await answer.write(part)  # one who does not read is ended by castoff.api.connections
                self._uplink.count(who, len(part), urgent=urgent)
            await answer.write_eof()
        return answer


@contextlib.asynccontextmanager
async def serving_peers(
    settings: PeerSettings,
    store: Store,
    busy: Callable[[], bool],
    more: Sequence[Callable[[web.Application], None]] = (),
    *,
    metrics: CollectorRegistry | None = None,
    traffic: Traffic | None = None,
) -> AsyncIterator[str]:
    """Serves other hosts for the block, where ``peers.listen`` is set.

    Args:
        settings: Where, and with which certificates.
        store: What this host has.
        busy: Whether this host boots a machine now.
        more: Add what else other hosts may ask.
        metrics: Where what is given and taken is counted.
        traffic: Counts by who asked what is sent.

    Yields:
        ``ADDRESS:PORT`` where it listens; empty: nowhere.

    Raises:
        Invalid: The settings are broken, or would let strangers in.
        Unavailable: The address is taken, or not this host's.
    """
    uplink = Uplink(settings.upload_limit, busy, traffic)
    if metrics is not None:
        metrics.register(PeersCollector(uplink, store.state))
    if not settings.listen:
        yield ""
        return
    tls: ssl.SSLContext | None = await asyncio.to_thread(server_context, settings)
    sock = bind_tcp("peers.listen", settings.listen, secured=tls is not None)
    shelf, growth, indexes = Shelf(store), Growth(), Indexes(store)
    door = PeerDoor(shelf, growth, indexes, uplink)
    tidying = asyncio.create_task(_tidying(shelf))
    connections = Connections(most=_CONNECTIONS, timeout=_TIMEOUT)
    app = door.app(connections)
    for add in more:
        add(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    assert runner.server is not None
    listener = await asyncio.get_running_loop().create_server(
        connections.factory(runner.server), sock=sock, ssl=tls, ssl_handshake_timeout=_TIMEOUT if tls is not None else None
    )
    try:
        yield ":".join(map(str, sock.getsockname()[:2]))
    finally:
        listener.close()
        await runner.cleanup()
        await listener.wait_closed()
        tidying.cancel()
        await asyncio.gather(tidying, return_exceptions=True)
        growth.close()
        await indexes.close()
        shelf.close()


async def _tidying(shelf: Shelf) -> None:
    while True:
        await asyncio.to_thread(shelf.tidy)
        await asyncio.sleep(_TIDY)


def _asker(request: web.Request) -> str:
    """Who asks, as it says itself: for people who look, and nothing else."""
    said = request.headers.get(HOST_HEADER, "")
    return said if _URL.match(said) else str(request.remote)


def _number(request: web.Request, name: str, default: float) -> float:
    text = request.query.get(name)
    if text is None:
        return default
    if not _NUMBER.match(text):
        raise Invalid(f"{name} is a number")
    return float(text)
