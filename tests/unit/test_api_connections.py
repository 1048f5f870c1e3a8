"""Connections that are too many or too slow, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from castoff.api.connections import Connections


@contextlib.asynccontextmanager
async def server(connections: Connections) -> AsyncIterator[int]:
    """aiohttp's server behind ``connections``; gives its port."""

    async def handle(request: web.Request) -> web.Response:
        connections.begins(request.transport)
        try:
            return web.Response(body=b"x" * int(request.query.get("size", "2")))
        finally:
            connections.ends(request.transport)

    inner = web.Server(handle)
    listener = await asyncio.get_running_loop().create_server(connections.factory(inner), "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await inner.shutdown(1.0)


async def test_a_client_that_sends_nothing_is_let_go() -> None:
    """Neither silence nor half a request's head keeps a connection."""
    connections = Connections(most=10, timeout=0.1)
    async with server(connections) as port:
        for sent in (b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        assert len(connections) == 0


async def test_a_client_that_does_not_read_is_let_go() -> None:
    """An answer that nobody takes does not stay in memory."""
    connections = Connections(most=10, timeout=0.1)
    async with server(connections) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(b"GET /?size=50000000 HTTP/1.1\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(20):
            while not len(connections):
                await asyncio.sleep(0.01)
            while len(connections):
                await asyncio.sleep(0.01)
        writer.transport.abort()


async def test_connections_beyond_the_limit_are_told_so() -> None:
    """They get an answer that a client can read, and those that are open go on."""
    connections = Connections(most=1, timeout=30.0)
    async with server(connections) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"200 OK" in await reader.readline()
        refused, second = await asyncio.open_connection("127.0.0.1", port)
        answer = await refused.read()
        assert answer.startswith(b"HTTP/1.1 503") and answer.endswith(b'"code":"unavailable"}')
        assert len(answer.partition(b"\r\n\r\n")[2]) == int(answer.partition(b"content-length: ")[2].split(b"\r\n")[0])
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(20):
            while b"200 OK" not in await reader.readline():
                pass
        second.close()
        writer.close()
