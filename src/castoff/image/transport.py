"""HTTP/1.1 requests: the standard library's client over sockets in threads, awaited.

Why not an asyncio client: importing one costs 0.18 s, more than a warm create may take in all, and the bytes of a blob
would pass through the event loop in small pieces (docs/decisions/0002). Here a thread reads what the
kernel has into one buffer and the loop sees one hop for each MiB.

All failures of sockets, TLS and HTTP become :class:`castoff.image.connect.Broken` or ``Unavailable`` here.
"""

from __future__ import annotations

import asyncio
import http.client
import select
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from castoff.image.ahead import PIECE, read_ahead, settle
from castoff.image.connect import Broken, connect_tcp, make_tls_context, open_tunnel, shut, wrap_tls
from castoff.image.proxy import Proxy, proxy_for
from castoff.image.settings import ImageSettings
from castoff.image.url import Origin, Url

__all__ = ["Response", "Transport"]

_T = TypeVar("_T")

_THREADS = 32
_RECEIVE = 256 << 10  # bytes a system call may take; more gains nothing on loopback
_SLOWEST = 8 << 10  # bytes a second under which sending a long body is given up
_PATIENCE = 0.02  # seconds for which a batch is filled before what there is goes on
_FAILURES = (OSError, http.client.HTTPException, ValueError)  # ValueError: a chunk's size that is no number


class _Wire:
    """One connection; used by one thread at a time, shut by any."""

    def __init__(self, origin: Origin, sock: socket.socket, proxy: Proxy | None, *, quick_ack: bool) -> None:
        self.origin = origin
        self.sock = sock
        self._proxy = proxy
        self._answer: http.client.HTTPResponse | None = None
        self._client = http.client.HTTPConnection(origin.host, origin.port)
        self._client.auto_open = 0  # a closed connection is an error here, never silently another one
        self._client.sock = sock
        self._quick_ack = quick_ack

    def hurry(self) -> None:
        """Before a receive: have what comes acknowledged at once, where that was asked for.

        A server whose last segments are held back by Nagle's algorithm, or whose window is small yet, waits for an ACK that
        the kernel delays by 40 ms. The option does not stick (tcp(7)), so it is set before each receive.
        """
        if self._quick_ack:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def secure(self, context: ssl.SSLContext) -> None:
        if self._proxy is not None:
            open_tunnel(self.sock, self.origin, self._proxy)
        self.sock = wrap_tls(self.sock, self.origin, context)
        self._client.sock = self.sock

    def exchange(
        self, method: str, url: Url, headers: Mapping[str, str], body: bytes | Iterable[bytes] | None
    ) -> http.client.HTTPResponse:
        plain_proxy = self._proxy if url.origin.scheme == "http" else None
        fields = {"Host": url.origin.authority, **headers}
        if plain_proxy is not None and plain_proxy.authorization:
            fields["Proxy-Authorization"] = plain_proxy.authorization
        try:
            self._client.request(method, str(url) if plain_proxy else url.target, body=body, headers=fields)
        except (BrokenPipeError, ConnectionResetError) as error:
            # A server that refuses a body may answer and close before it has taken it all; its words tell more.
            try:
                self._answer = self._client.getresponse()
            except _FAILURES:
                raise error from None
            return self._answer
        self.hurry()
        self._answer = self._client.getresponse()
        return self._answer

    def read_now(self, limit: int) -> tuple[bytes, BaseException | None] | None:
        """The body, and what broke it off; None where it has more than ``limit`` bytes, or does not tell."""
        answer = self._answer
        if answer is None or answer.length is None or answer.length > limit:
            return None
        parts, failure = [], None
        try:
            self.hurry()
            while part := answer.read1(_RECEIVE):
                parts.append(part)
                self.hurry()
        except _FAILURES as error:
            failure = error
        return b"".join(parts), failure

    def is_reusable(self) -> bool:
        if self._client.sock is None:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)  # an idle connection that can be read was closed, or says what nobody asked for

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()  # it may hold the socket when the client has let go of both
        self._client.close()
        self.sock.close()


@dataclass(frozen=True, slots=True)
class _Whole:
    """A body that was read with the headers, as far as it came."""

    data: bytes
    length: int
    failure: BaseException | None


class Response:
    """An answer whose body is not read yet; an async context manager that gives its connection back."""

    def __init__(
        self, url: Url, answer: http.client.HTTPResponse, wire: _Wire, transport: Transport, whole: _Whole | None = None
    ) -> None:
        self.url = url
        self.status = answer.status
        self.headers = answer.headers
        self.length = answer.length if whole is None else whole.length
        """Bytes of the body, None where it is not told."""
        self._whole = whole
        self._answer = answer
        self._wire = wire
        self._transport = transport
        self._seen = 0 if whole is None else len(whole.data)
        self._failure: BaseException | None = None
        self._closed = False

    async def read(self, limit: int) -> bytes:
        """The whole body, or its first ``limit + 1`` bytes where it is longer.

        Raises:
            Broken: It ended early.
        """
        parts = []
        size = 0  # not _seen, which is the reading thread's, a batch ahead
        try:
            async with asyncio.timeout(self._transport.patience), aclosing(self.pieces()) as pieces:
                async for piece in pieces:
                    parts.append(piece)
                    size += len(piece)
                    if size > limit:
                        break
        except TimeoutError as error:
            raise Broken(f"{self.url.origin} is too slow", hint="try again later") from error
        return b"".join(parts)[: limit + 1]

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body in pieces of at most a MiB, as they come; raises Broken where it ends early or falls silent."""
        if self._whole is not None:
            return self._given(self._whole)
        return read_ahead(self._read_batch, stop=lambda: shut(self._wire.sock), executor=self._transport.threads)

    async def _given(self, whole: _Whole) -> AsyncGenerator[bytes, None]:
        """A body that was read with the answer's headers."""
        if whole.data:
            yield whole.data
        if whole.failure is not None:
            raise _broken(self.url.origin, whole.failure) from whole.failure
        if len(whole.data) < whole.length:
            raise _ended(self.url.origin, len(whole.data), whole.length)

    def _read_batch(self) -> list[bytes]:
        if self._failure is not None:
            raise _broken(self.url.origin, self._failure) from self._failure
        parts: list[bytes] = []
        size = 0
        end = time.monotonic() + _PATIENCE
        try:
            while size <= PIECE - _RECEIVE and (not parts or time.monotonic() < end):
                self._wire.hurry()
                part = self._answer.read1(_RECEIVE)
                if not part:
                    break
                parts.append(part)
                size += len(part)
        except _FAILURES as error:
            if not parts:
                raise _broken(self.url.origin, error) from error
            self._failure = error  # what came before it is good and goes on first
        self._seen += size
        if not parts and self.length is not None and self._seen < self.length:
            raise _ended(self.url.origin, self._seen, self.length)
        return [b"".join(parts)] if len(parts) > 8 else parts  # TLS gives 16 KiB at a time

    async def __aenter__(self) -> Response:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Gives the connection back for the next request, if the body was read to its end; else closes it."""
        if self._closed:
            return
        self._closed = True
        whole = self._answer.isclosed() or self._seen == self.length
        self._answer.close()
        self._transport.give_back(self._wire, reusable=whole)


class Transport:
    """Connections to any number of origins, kept open between requests.

    Args:
        settings: Time limits and authorities.
        quick_ack: Have the kernel acknowledge what comes at once: for many small answers, each of which somebody waits for.
        small: Bytes of an answer's body up to which it is read by the thread that reads its headers: each change of threads
            costs a turn of a busy processor.
        tls: Makes the TLS context instead of the settings' authorities; None of it: the settings'. Called in a thread, once.
        direct: Pass over the environment's proxies.
    """

    def __init__(
        self,
        settings: ImageSettings,
        *,
        quick_ack: bool = False,
        small: int = 0,
        tls: Callable[[], ssl.SSLContext | None] = lambda: None,
        direct: bool = False,
    ) -> None:
        self._settings = settings
        self._quick_ack = quick_ack
        self._small = small
        self._make_tls = tls
        self._direct = direct
        self.patience = 4 * settings.read_timeout
        """Seconds that the whole of a small answer may take."""
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="castoff-http")
        self._idle: dict[Origin, list[_Wire]] = {}
        self._tls: ssl.SSLContext | None = None

    async def send(
        self, method: str, url: Url, headers: Mapping[str, str], body: bytes | Iterable[bytes] | None = None
    ) -> Response:
        """Sends one request and returns its answer, whatever its status; no redirect is followed, nothing tried again.

        Each piece of a body must be taken within the settings' ``read_timeout``. An iterable's pieces are made in the thread
        that sends them; its Content-Length stands in ``headers``.

        Raises:
            Broken, Unavailable: There was no answer.
        """
        wire = await self._wire(url.origin)
        try:
            # Headers may drip for ever; a long body has time in proportion, and each of its pieces a limit of its own.
            long = int(headers.get("Content-Length", 0)) + self._small
            async with asyncio.timeout(2 * self._settings.read_timeout + long / _SLOWEST):
                answer, whole = await self._in_thread(wire, lambda: self._exchange(wire, method, url, headers, body))
        except _FAILURES as error:  # TimeoutError, the socket's or asyncio's, is an OSError
            wire.close()
            raise _broken(url.origin, error) from error
        except BaseException:  # a body that cannot be read
            wire.close()
            raise
        return Response(url, answer, wire, self, whole)

    def _exchange(
        self, wire: _Wire, method: str, url: Url, headers: Mapping[str, str], body: bytes | Iterable[bytes] | None
    ) -> tuple[http.client.HTTPResponse, _Whole | None]:
        answer = wire.exchange(method, url, headers, body)
        length = answer.length
        if not self._small or not length or (found := wire.read_now(self._small)) is None:
            return answer, None
        return answer, _Whole(found[0], length, found[1])

    async def _wire(self, origin: Origin) -> _Wire:
        idle = self._idle.get(origin, [])
        while idle:
            wire = idle.pop()
            if wire.is_reusable():
                return wire
            wire.close()
        proxy = None if self._direct else proxy_for(origin)
        host, port = (proxy.host, proxy.port) if proxy else (origin.host, origin.port)
        sock = await connect_tcp(host, port, self._settings.connect_timeout)
        wire = _Wire(origin, sock, proxy, quick_ack=self._quick_ack)
        if origin.scheme == "https":
            sock.settimeout(self._settings.connect_timeout)
            try:
                await self._in_thread(wire, lambda: wire.secure(self._tls_context()))
            except BaseException:
                wire.close()
                raise
        wire.sock.settimeout(self._settings.read_timeout)
        return wire

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = self._make_tls() or make_tls_context(self._settings.ca_file)
        return self._tls

    async def _in_thread(self, wire: _Wire, call: Callable[[], _T]) -> _T:
        running = asyncio.get_running_loop().run_in_executor(self.threads, call)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            shut(wire.sock)
            try:
                await settle(running)  # type: ignore[arg-type]
            finally:
                if not running.cancelled():
                    running.exception()
                wire.close()
            raise

    def give_back(self, wire: _Wire, *, reusable: bool) -> None:
        """Keeps the connection for the next request, or closes it."""
        if reusable and wire.is_reusable():
            self._idle.setdefault(wire.origin, []).append(wire)
        else:
            wire.close()

    async def close(self) -> None:
        """Closes the idle connections; those with an open Response close with it."""
        for wire in [wire for wires in self._idle.values() for wire in wires]:
            wire.close()
        self._idle.clear()
        self.threads.shutdown(wait=False)


def _ended(origin: Origin, seen: int, length: int) -> Broken:
    return Broken(f"{origin} closed the connection after {seen} of {length} bytes")


def _broken(origin: Origin, error: BaseException) -> Broken:
    if isinstance(error, TimeoutError):
        return Broken(f"{origin} fell silent", hint="try again later")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return Broken(f"the connection to {origin} broke: {reason[:200]!r}"[:400], hint="try again later")
