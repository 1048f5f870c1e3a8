"""An HTTP proxy before a registry, with a fault of choice for each request; it runs in a thread of its own.

    with faulty_proxy(registry.host) as proxy:              # proxy.host is "127.0.0.1:PORT"
        proxy.choose = once(Reset(after=1000), of_blobs)    # who decides: a function of a request
        proxy.choose = dice(seed=1, rate=0.2)               # or chance
        proxy.delay = 0.01                                  # seconds before each answer
        proxy.redirects = True                              # blobs come from a second port, by signed URLs ...
        proxy.expire_urls()                                 # ... which all have expired now
        proxy.tokens = True                                 # bearer tokens are asked for ...
        proxy.expire_tokens()                               # ... which all have expired now
        proxy.go_down(); proxy.come_up()                    # nobody listens any more, and then again
        proxy.seen                                          # every request, with its fault and what was sent

Attributes may be changed from any thread at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
from aiohttp import web

__all__ = [
    "ALL",
    "Answer",
    "Choose",
    "Delay",
    "Fault",
    "FaultyProxy",
    "IgnoreRange",
    "OtherRange",
    "Request",
    "Reset",
    "Stall",
    "Truncate",
    "WrongBytes",
    "dice",
    "faulty_proxy",
    "in_turn",
    "of_blobs",
    "once",
]

_T = TypeVar("_T")
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "content-length"}


@dataclass(frozen=True)
class Reset:
    """The connection is reset after so many bytes of the body."""

    after: int = 0


@dataclass(frozen=True)
class Truncate:
    """The connection is closed, politely, after so many bytes of the body."""

    after: int = 0


@dataclass(frozen=True)
class Stall:
    """Nothing comes after so many bytes of the body, for so many seconds; then the connection is reset."""

    after: int = 0
    seconds: float = 60.0


@dataclass(frozen=True)
class WrongBytes:
    """The byte there (and one in each 64 KiB after it) is another."""

    at: int = 0


@dataclass(frozen=True)
class Answer:
    """An answer of the proxy's own: 401, 403, 404, 429 (with Retry-After), 500 ..., or 200 with an empty body."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Delay:
    """The answer comes so many seconds later."""

    seconds: float


@dataclass(frozen=True)
class IgnoreRange:
    """The whole blob, with 200, whatever range was asked for."""


@dataclass(frozen=True)
class OtherRange:
    """206 with bytes that begin so much after those that were asked for, and say so."""

    by: int = 1


Fault = Reset | Truncate | Stall | WrongBytes | Answer | Delay | IgnoreRange | OtherRange

ALL: tuple[Fault, ...] = (
    Reset(0),
    Reset(5000),
    Truncate(0),
    Truncate(7000),
    Stall(3000, 60.0),
    WrongBytes(0),
    WrongBytes(10_000),
    Answer(200),
    Answer(401),
    Answer(403),
    Answer(404),
    Answer(429, (("Retry-After", "1"),)),
    Answer(500),
    Answer(503),
    Delay(0.3),
    IgnoreRange(),
    OtherRange(1),
)
"""One of each kind and some in two places."""


@dataclass
class Request:
    """One request, as it came, and what became of it."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    fault: Fault | None = None
    status: int | None = None
    """None where none was sent."""
    sent: int = 0
    """Bytes of the body."""


Choose = Callable[[Request], Fault | None]


def of_blobs(request: Request) -> bool:
    """Whether it reads a blob."""
    return request.method == "GET" and "/blobs/sha256:" in request.path


def once(fault: Fault, which: Callable[[Request], bool] = of_blobs, *, times: int = 1) -> Choose:
    """The fault, for the first ``times`` requests of that kind."""
    left = times
    lock = threading.Lock()

    def choose(request: Request) -> Fault | None:
        nonlocal left
        with lock:
            if left <= 0 or not which(request):
                return None
            left -= 1
            return fault

    return choose


def in_turn(*faults: Fault | None, which: Callable[[Request], bool] = of_blobs) -> Choose:
    """The faults one after another, for the first requests of that kind."""
    left = list(faults)
    return lambda request: left.pop(0) if left and which(request) else None


def dice(
    seed: int, rate: float, faults: Sequence[Fault] = ALL, which: Callable[[Request], bool] = of_blobs, *, most: int = 1 << 30
) -> Choose:
    """One of the faults for a part ``rate`` of the requests of that kind, by chance, ``most`` times at most."""
    chance = random.Random(seed)
    left = most

    def choose(request: Request) -> Fault | None:
        nonlocal left
        if left <= 0 or not which(request) or chance.random() >= rate:
            return None
        left -= 1
        return chance.choice(faults)

    return choose


@dataclass
class FaultyProxy:
    """The proxy; see the module's text."""

    upstream: str
    host: str = ""
    choose: Choose = lambda request: None
    delay: float = 0.0
    redirects: bool = False
    tokens: bool = False
    seen: list[Request] = field(default_factory=list)
    storage: str = ""
    """The second port, where redirects lead: it wants no token, and a signature that has not expired."""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _urls: str = field(default_factory=lambda: secrets.token_hex(8))
    _token: str = field(default_factory=lambda: secrets.token_hex(8))
    _session: aiohttp.ClientSession | None = None
    _servers: dict[str, web.ServerRunner] = field(default_factory=dict)
    _down: bool = False

    def expire_urls(self) -> None:
        """All URLs of redirects that were given out are good no more."""
        self._urls = secrets.token_hex(8)

    def expire_tokens(self) -> None:
        """All tokens that were given out are good no more."""
        self._token = secrets.token_hex(8)

    def go_down(self) -> None:
        """Nobody listens at ``host`` and ``storage``, and what was under way is reset."""
        self._run(self._stop())

    def come_up(self) -> None:
        """Listens again, at the same ports."""
        self._run(self._start())

    def blobs(self) -> list[Request]:
        """The requests that read blobs."""
        return [request for request in list(self.seen) if of_blobs(request)]

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None))
        self._down = False
        self.host = await self._listen("host", self.host, self._handle)
        self.storage = await self._listen("storage", self.storage, self._handle_storage)

    async def _listen(self, name: str, address: str, handler: Callable[[web.BaseRequest], Any]) -> str:
        runner = web.ServerRunner(web.Server(handler, access_log=None), shutdown_timeout=0.1)
        await runner.setup()
        host, _, port = (address or "127.0.0.1:0").partition(":")
        await web.TCPSite(runner, host, int(port), reuse_address=True).start()
        self._servers[name] = runner
        return f"{host}:{runner.addresses[0][1]}"

    async def _stop(self) -> None:
        self._down = True
        for runner in self._servers.values():
            assert runner.server is not None
            for site in list(runner.sites):
                await site.stop()
            for connection in runner.server.connections:  # type: ignore[attr-defined]
                _reset(connection.transport)
            await runner.cleanup()
        self._servers.clear()

    async def _close(self) -> None:
        await self._stop()
        if self._session is not None:
            await self._session.close()
        await asyncio.sleep(0)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = request.headers
        seen = Request(request.method, request.path, headers.get("Range"), headers.get("Authorization"))
        self.seen.append(seen)
        if request.path == "/token":
            return web.json_response({"token": self._token, "expires_in": 300})
        if self.tokens and headers.get("Authorization") != f"Bearer {self._token}":
            seen.status = 401
            return web.Response(status=401, headers={"WWW-Authenticate": self._challenge()})
        if self.redirects and of_blobs(seen):
            await asyncio.sleep(self.delay)
            seen.status = 307
            return web.Response(status=307, headers={"Location": f"http://{self.storage}{request.path}?signature={self._urls}"})
        return await self._faulty(request, seen)

    async def _handle_storage(self, request: web.BaseRequest) -> web.StreamResponse:
        seen = Request(request.method, request.path, request.headers.get("Range"), request.headers.get("Authorization"))
        self.seen.append(seen)
        if request.query.get("signature") != self._urls:
            seen.status = 403
            return web.Response(status=403, text="<Error><Code>ExpiredToken</Code></Error>")
        return await self._faulty(request, seen)

    def _challenge(self) -> str:
        return f'Bearer realm="http://{self.host}/token",service="test"'

    async def _faulty(self, request: web.BaseRequest, seen: Request) -> web.StreamResponse:
        fault = seen.fault = self.choose(seen)
        await asyncio.sleep(self.delay + (fault.seconds if isinstance(fault, Delay) else 0.0))
        if isinstance(fault, Answer):
            seen.status = fault.status
            headers = dict(fault.headers)
            if fault.status == 401:
                headers["WWW-Authenticate"] = self._challenge()
            return web.Response(status=fault.status, headers=headers)
        return await self._forward(request, seen, fault)

    async def _forward(self, request: web.BaseRequest, seen: Request, fault: Fault | None) -> web.StreamResponse:
        assert self._session is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        if "Content-Length" in request.headers:
            headers["Content-Length"] = request.headers["Content-Length"]
        if self.tokens:
            headers.pop("Authorization", None)  # it is ours
        if isinstance(fault, IgnoreRange):
            headers.pop("Range", None)
        if isinstance(fault, OtherRange) and "Range" in headers:
            start, _, end = headers["Range"].removeprefix("bytes=").partition("-")
            headers["Range"] = f"bytes={int(start) + fault.by}-{end}"
        path = request.path_qs if "signature=" not in request.query_string else request.path
        body = request.content if request.can_read_body else None
        try:
            async with self._session.request(
                request.method, f"http://{self.upstream}{path}", headers=headers, data=body, allow_redirects=False
            ) as upstream:
                return await self._answer(request, seen, fault, upstream)
        except (OSError, aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
            _reset(request.transport)  # the registry itself is gone, or whoever asked
            return web.Response(status=502)

    async def _answer(
        self, request: web.BaseRequest, seen: Request, fault: Fault | None, upstream: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=upstream.status)
        for name, value in upstream.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                response.headers.add(name, value)
        if "Content-Length" in upstream.headers:
            response.content_length = int(upstream.headers["Content-Length"])
        seen.status = upstream.status
        if isinstance(fault, Reset | Truncate | Stall) and request.method != "HEAD":
            return await self._break_off(request, seen, fault, upstream, response)
        await response.prepare(request)
        async for data in upstream.content.iter_any():
            await response.write(_wrong(data, seen.sent, fault.at) if isinstance(fault, WrongBytes) else data)
            seen.sent += len(data)
        await response.write_eof()
        return response

    async def _break_off(
        self,
        request: web.BaseRequest,
        seen: Request,
        fault: Reset | Truncate | Stall,
        upstream: aiohttp.ClientResponse,
        response: web.StreamResponse,
    ) -> web.StreamResponse:
        whole = await upstream.read()
        data = whole[: min(fault.after, max(len(whole) - 1, 0))]  # never all of it: that would be no fault
        response.content_length = len(whole)
        await response.prepare(request)
        if data:
            await response.write(data)
            seen.sent = len(data)
        await asyncio.sleep(0.01)  # let what was written leave
        transport = request.transport
        if isinstance(fault, Stall):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._until_gone(request), fault.seconds)
        if transport is not None:
            if isinstance(fault, Truncate):
                transport.close()
            else:
                _reset(transport)
        return response

    async def _until_gone(self, request: web.BaseRequest) -> None:
        while not self._down and request.transport is not None and not request.transport.is_closing():
            await asyncio.sleep(0.02)


def _wrong(data: bytes, offset: int, at: int) -> bytes:
    """The bytes at offset ``at`` of the body, and each 64 KiB after it, changed."""
    changed = bytearray(data)
    for place in range((at - offset) % 65536 if offset > at else at - offset, len(data), 65536):
        changed[place] ^= 0x55
    return bytes(changed)


def _reset(transport: asyncio.BaseTransport | None) -> None:
    """Ends a connection with RST rather than FIN."""
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if isinstance(transport, asyncio.Transport):
        transport.abort()


@contextlib.contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """The proxy before ``HOST:PORT``, for the block."""
    proxy = FaultyProxy(upstream)
    thread = threading.Thread(target=proxy._loop.run_forever, name="faulty-proxy", daemon=True)
    thread.start()
    try:
        proxy._run(proxy._start())
        yield proxy
    finally:
        proxy._run(proxy._close())
        proxy._loop.call_soon_threadsafe(proxy._loop.stop)
        thread.join(10)
        proxy._loop.close()
