"""What a check makes of servers' answers, good and bad ones, over a connection as a guest's channel gives it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from castoff.agent.launch.probe import ask
from castoff.errors import Invalid, Unavailable
from castoff.lifecycle.launcher import Probe


class Loopback:
    """A connection to a server of this test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self) -> bytes:
        return await self._reader.read(1000)

    async def write(self, data: bytes | memoryview) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def end(self) -> None:
        self._writer.write_eof()


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def connection(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[Loopback]:
    """A connection to a server that does ``serve``."""

    over = asyncio.Event()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await serve(reader, writer)
        writer.close()
        over.set()

    async with await asyncio.start_server(served, "127.0.0.1", 0, ssl=tls) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield Loopback(reader, writer)
        finally:
            writer.transport.abort()
            if tls is None:  # of those that fail in a handshake, no handler is told
                await over.wait()


def answers(data: bytes, asked: list[bytes] | None = None) -> Serve:
    """A server that answers every request so."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if asked is not None:
            asked.append(request)
        writer.write(data)
        await writer.drain()

    return serve


WEB = Probe(port=8080, http=True)


async def test_a_tcp_check_passes_when_it_is_connected() -> None:
    """Nothing is said, nothing is waited for."""
    async with asyncio.timeout(20), connection(lambda reader, writer: asyncio.sleep(0)) as connected:
        assert await ask(connected, Probe(port=1)) == "Success"


async def test_a_request_is_what_the_check_says() -> None:
    """Method, path, headers in order; Host and User-Agent where they are not given; a 2xx passes, whatever comes behind it."""
    asked: list[bytes] = []
    headers = (("host", "shop.example"), ("X-A", "1"), ("X-A", "2"))
    probe = Probe(port=8080, http=True, method="HEAD", path="/up?full=1", headers=headers)
    async with asyncio.timeout(20):
        async with connection(answers(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 Whatever\r\n\r\n", asked)) as connected:
            assert await ask(connected, probe) == "HTTP HEAD http://shop.example/up?full=1: 204 No Content"
        endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        async with connection(answers(endless, asked)) as connected:
            assert await ask(connected, WEB) == "HTTP GET http://localhost:8080/: 200 OK"
    head, plain = (request.decode().lower() for request in asked)
    assert head.startswith("head /up?full=1 http/1.1\r\n") and head.count("host:") == 1
    assert head.index("x-a: 1\r\n") < head.index("x-a: 2\r\n")
    assert "host: localhost:8080\r\n" in plain and "user-agent: castoff-check\r\n" in plain


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n", "301 Moved Permanently$"),
        (b"HTTP/1.1 500 \x07\x1b[2J\r\nContent-Length: 9\r\n\r\nno \x1b[2J db", '500 Internal Server Error Output: "no  '),
        (b"HTTP/1.1 599 Odd\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 70000, r'599 \(unknown\) Output: "x{200}"$'),
        (b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "404 Not Found$"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
        (b"\x00" * 1000, "not HTTP"),
        (b"", "not HTTP|without an answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, "not HTTP"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000, "longer than"),
    ],
    ids=["redirect", "error", "long", "broken body", "ssh", "zeros", "nothing", "endless head", "endless provisional"],
)
async def test_other_answers_do_not(answer: bytes, why: str) -> None:
    """The reason in printable words; nothing is followed, nothing without end is read."""
    async with asyncio.timeout(20), connection(answers(answer)) as connected:
        with pytest.raises(Unavailable, match=why) as caught:
            await ask(connected, WEB)
    assert caught.value.what.isprintable()


async def test_a_server_that_says_nothing_is_the_callers_to_give_up_on() -> None:
    """Cancelled, it leaves neither task nor socket: warnings are errors here."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with connection(silent) as connected:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await ask(connected, WEB)


async def test_a_request_that_none_can_make_is_refused() -> None:
    """As a last resort: configurations that hold one are not taken."""
    async with asyncio.timeout(20), connection(answers(b"")) as connected:
        with pytest.raises(Invalid, match="no such request"):
            await ask(connected, Probe(port=8080, http=True, headers=(("A", "x\r\nB: y"),)))


async def test_tls(tmp_path: Path) -> None:
    """A certificate that nobody signed passes only where the check says so; the server's name is asked for."""
    named: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_certificate(tmp_path))
    context.sni_callback = lambda _, name, __: named.append(name)
    served = answers(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    async with asyncio.timeout(20):
        async with connection(served, context) as connected:
            loose = Probe(port=443, http=True, tls=True, verify=False, server_name="shop.example")
            assert await ask(connected, loose) == "HTTP GET https://localhost:443/: 200 OK"
        async with connection(served, context) as connected:
            with pytest.raises(Unavailable, match=r"TLS: .*VERIFY_FAILED"):
                await ask(connected, Probe(port=443, http=True, tls=True))
        async with connection(_plain) as connected:
            with pytest.raises(Unavailable, match=r"TLS|broke"):
                await ask(connected, loose)
    assert named[:2] == ["shop.example", "localhost"]


async def _plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad\r\n\r\n")
    await writer.drain()


def _certificate(directory: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = directory / "server.pem"
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path
