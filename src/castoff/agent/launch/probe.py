"""Asks a server in a guest over a connection through its channel: that it answers, or what it answers to an HTTP request.

The server is hostile: its answer's head is bounded, of its body a few bytes are read where it tells of no success, no redirect is
followed, and no text of its is shown as it came. h11 reads HTTP, asyncio TLS, from a pair of sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Final

import h11

from castoff.errors import CastoffError, Invalid, Unavailable
from castoff.lifecycle.launcher import Connection, Probe

__all__ = ["ask"]

_HEAD: Final = 64 * 1024
"""Bytes of an answer's head."""
_ANSWER: Final = 256 * 1024
"""Bytes of an answer in all, provisional ones too."""
_EXCERPT: Final = 200
_BODY_SECONDS: Final = 1.0
_PIECE: Final = 16 * 1024
_AGENT: Final = "castoff-check"


async def ask(connection: Connection, probe: Probe) -> str:
    """Asks; what was answered, as a line. The caller sets a time limit.

    Raises:
        Unavailable: The answer is none, or none of success; the message tells.
        Invalid: The request is none.
    """
    if not probe.http:
        return "Success"
    what = f"HTTP {probe.method} {_url(probe)}"
    try:
        async with _streams(connection, probe) as (reader, writer):
            return await _exchange(reader, writer, probe, what)
    except h11.LocalProtocolError as error:
        raise Invalid(
            f"{what}: no such request can be made: {error}", hint="look at the check's method, path and headers"
        ) from error
    except h11.RemoteProtocolError as error:
        raise Unavailable(f"{what}: the answer is not HTTP: {error}") from error
    except ssl.SSLError as error:
        raise Unavailable(f"{what}: TLS: {_printable(error.reason or str(error))}") from error
    except (OSError, EOFError) as error:
        raise Unavailable(f"{what}: the connection broke: {error}") from error


def _url(probe: Probe) -> str:
    return f"{'https' if probe.tls else 'http'}://{_host(probe)}{probe.path}"


def _host(probe: Probe) -> str:
    named = next((value for name, value in probe.headers if name.lower() == "host"), "")
    return named or f"localhost:{probe.port}"


def _request(probe: Probe) -> h11.Request:
    given = {name.lower() for name, _ in probe.headers}
    ours = {"Host": _host(probe), "User-Agent": _AGENT, "Accept": "*/*", "Connection": "close"}
    headers = [(name, value) for name, value in ours.items() if name.lower() not in given]
    return h11.Request(method=probe.method, target=probe.path, headers=[*headers, *probe.headers])


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, probe: Probe, what: str) -> str:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD)
    sent = http.send(_request(probe)), http.send(h11.EndOfMessage())
    writer.write(b"".join(part for part in sent if part))
    await writer.drain()
    events = _answer(http, reader)
    async for event in events:
        if isinstance(event, h11.Response):
            said = f"{what}: {event.status_code} {_phrase(event.status_code)}"
            if 200 <= event.status_code < 300:
                return said
            excerpt = await _excerpt(events)
            raise Unavailable(f'{said} Output: "{excerpt}"' if excerpt else said)
    raise Unavailable(f"{what}: the connection was closed without an answer")


async def _answer(http: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[h11.Event]:
    """An answer's parts, as they come."""
    taken = 0
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(_PIECE)
            taken += len(data)
            if taken > _ANSWER:
                raise h11.RemoteProtocolError(f"it is longer than {_ANSWER} bytes")
            http.receive_data(data)
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed) or event is h11.PAUSED:
            return
        elif isinstance(event, h11.Event):
            yield event


async def _excerpt(events: AsyncIterator[h11.Event]) -> str:
    """The beginning of an answer's body, as far as it comes soon."""
    kept = bytearray()
    with contextlib.suppress(TimeoutError, OSError, EOFError, h11.RemoteProtocolError):  # the status was told
        async with asyncio.timeout(_BODY_SECONDS):
            async for event in events:
                if isinstance(event, h11.Data):
                    kept += event.data
                if len(kept) >= _EXCERPT:
                    break
    return _printable(bytes(kept[:_EXCERPT]).decode("utf-8", "replace")).strip()


def _phrase(status: int) -> str:
    """The status's name, as it is registered: the server's own text may be anything."""
    with contextlib.suppress(ValueError):
        return HTTPStatus(status).phrase
    return "(unknown)"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


@contextlib.asynccontextmanager
async def _streams(connection: Connection, probe: Probe) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """The connection as asyncio's streams, which bring TLS with them: a pair of sockets, whose other end is relayed."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        relays = [asyncio.create_task(_up(connection, ours)), asyncio.create_task(_down(connection, ours))]
        try:
            tls = await asyncio.to_thread(_context, probe.verify) if probe.tls else None
            name = probe.server_name or _host(probe).rpartition(":")[0] or _host(probe)
            reader, writer = await asyncio.open_connection(sock=theirs, ssl=tls, server_hostname=name if tls else None)
            try:
                yield reader, writer
            finally:
                writer.transport.abort()
        finally:
            for relay in relays:
                relay.cancel()
            await asyncio.gather(*relays, return_exceptions=True)


async def _up(connection: Connection, ours: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(CastoffError, OSError):  # the other way tells how it ended
        while data := await loop.sock_recv(ours, _PIECE):
            await connection.write(data)


async def _down(connection: Connection, ours: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(CastoffError, OSError):  # the machine's end is the end of what it says
        while data := await connection.read():
            await loop.sock_sendall(ours, data)
    with contextlib.suppress(OSError):
        ours.shutdown(socket.SHUT_WR)


@functools.cache
def _context(verify: bool) -> ssl.SSLContext:
    """Reading the host's certificates takes tens of milliseconds: once."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
