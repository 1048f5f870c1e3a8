"""A client of the Machines API: of this host's agent by its unix socket, or of any by URL and token.

What the server refuses is raised as the class of castoff.errors whose code it names.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError

from castoff.api.tunnel import Tunnel
from castoff.api.wire.tunnel import LONGEST
from castoff.errors import (
    CastoffError,
    Code,
    Conflict,
    Internal,
    Invalid,
    NoSpace,
    NotFound,
    Unauthorized,
    Unavailable,
    Unsupported,
)
from castoff.lifecycle.model import PreconditionFailed, WaitTimeout

__all__ = ["ApiClient", "refusal"]

_CONNECT: Final = 10.0
_SECONDS: Final = 90.0
"""For an answer: a wait may take 60."""
_LINE: Final = 1 << 20
"""Bytes of a line of a streamed answer; half of what one may have (aiohttp's StreamReader)."""
_LONGEST: Final = 64 * 1024 * 1024
"""Bytes of an answer that are believed."""


class _NoSpaceThere(NoSpace):
    """The server's disk is full; how much it wants it tells in words."""

    def __init__(self, what: str, *, hint: str = "") -> None:
        CastoffError.__init__(self, what, hint=hint)
        self.where, self.needed, self.available = "", 0, 0


_CLASSES: Final[Mapping[str, type[CastoffError]]] = MappingProxyType(
    {
        Code.INVALID: Invalid,
        Code.NOT_FOUND: NotFound,
        Code.CONFLICT: Conflict,
        Code.UNAUTHORIZED: Unauthorized,
        Code.UNAVAILABLE: Unavailable,
        Code.UNSUPPORTED: Unsupported,
        Code.NO_SPACE: _NoSpaceThere,
        Code.INTERNAL: Internal,
    }
)
_STATUSES: Final[Mapping[int, type[CastoffError]]] = MappingProxyType(
    {400: Invalid, 401: Unauthorized, 403: Unauthorized, 404: NotFound, 408: WaitTimeout, 409: Conflict}
    | {412: PreconditionFailed, 413: Invalid, 422: Invalid, 429: Unavailable, 501: Unsupported, 502: Unavailable}
    | {503: Unavailable, 504: Unavailable, 507: _NoSpaceThere}
)
"""Other servers' answers have no ``code``, and some statuses say more than it."""
_PRECISE: Final = frozenset({408, 412})
"""Statuses that say more than the code beside them."""


class ApiClient:
    """A connection. Made by :meth:`open`."""

    def __init__(self, session: aiohttp.ClientSession, where: str) -> None:
        self._session = session
        self._where = where

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, *, url: str = "", token: str = "", socket: Path | None = None) -> AsyncIterator[ApiClient]:
        """A client.

        Args:
            url: ``http(s)://HOST:PORT`` of a server; empty: the socket.
            token: What it asks for.
            socket: The agent's unix socket.

        Raises:
            Invalid: The URL is none of a server's.
        """
        parts = urlsplit(url or "http://agent")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise Invalid(f"{url[:200]!r} is not where an API is", hint="http://127.0.0.1:4280, for instance")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connector = None if url or socket is None else aiohttp.UnixConnector(path=str(socket))
        async with aiohttp.ClientSession(
            f"{parts.scheme}://{parts.netloc}", connector=connector, headers=headers, trust_env=bool(url)
        ) as session:
            yield cls(session, url or str(socket))

    async def ask(
        self, method: str, path: str, *, body: Any = None, query: Mapping[str, str] | None = None, patience: float = _SECONDS
    ) -> Any:
        """One request; the answer's JSON, None where it is empty.

        Args:
            method: ``GET``, ...
            path: From ``/v1`` on.
            body: What is sent as JSON; None: nothing is.
            query: Behind the path.
            patience: Seconds for which the server may say nothing.

        Raises:
            CastoffError: The server refused, or nobody answers.
        """
        with self._failures():
            data = None if body is None else msgspec.json.encode(body)
            headers = {} if data is None else {"Content-Type": "application/json"}
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=patience)
            async with self._session.request(
                method, path, data=data, params=query, headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                text = bytearray()
                async for piece in answer.content.iter_any():
                    text += piece
                    if len(text) > _LONGEST:
                        raise Invalid(f"the answer of {self._where} has over {_LONGEST >> 20} MiB")
                if answer.status >= 300:
                    raise refusal(answer.status, bytes(text))
                return msgspec.json.decode(text) if text else None

    async def lines(self, path: str, *, query: Mapping[str, str]) -> AsyncIterator[Any]:
        """An answer of JSON lines, as they come.

        Raises:
            CastoffError: As :meth:`ask`.
        """
        with self._failures():
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=None)
            async with self._session.get(
                path, params=query, timeout=timeout, read_bufsize=_LINE, allow_redirects=False
            ) as answer:
                if answer.status >= 300:
                    raise refusal(answer.status, await answer.content.read(1 << 20))
                async for line in answer.content:
                    yield msgspec.json.decode(line)

    async def pieces(self, path: str, *, query: Mapping[str, str]) -> AsyncIterator[bytes]:
        """An answer's bytes, as they come; of any length.

        Raises:
            CastoffError: As :meth:`ask`; also where it broke off.
        """
        with self._failures():
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SECONDS)
            async with self._session.get(path, params=query, timeout=timeout, allow_redirects=False) as answer:
                if answer.status >= 300:
                    raise refusal(answer.status, await answer.content.read(1 << 20))
                async for piece in answer.content.iter_any():
                    yield piece

    async def send(self, path: str, pieces: AsyncIterator[bytes], *, query: Mapping[str, str]) -> None:
        """PUT of bytes as they come, of any length. Whoever makes them may fail: then the server does not take them for all.

        Raises:
            CastoffError: As :meth:`ask`; and what ``pieces`` raises.
        """
        failed: list[CastoffError] = []

        async def watched() -> AsyncIterator[bytes]:
            try:
                async for piece in pieces:
                    yield piece
            except CastoffError as error:
                failed.append(error)
                raise

        with self._failures():
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT)
            try:
                async with self._session.put(
                    path, data=watched(), params=query, timeout=timeout, allow_redirects=False
                ) as answer:
                    if answer.status >= 300:
                        raise refusal(answer.status, await answer.content.read(1 << 20))
            except aiohttp.ClientError:
                if failed:
                    raise failed[0] from None
                raise

    @contextlib.asynccontextmanager
    async def tunnel(self, path: str) -> AsyncIterator[Tunnel]:
        """A connection to a machine's port, for the block.

        Args:
            path: Of the port: ``/v1/apps/{app}/machines/{id}/ports/{port}``.

        Raises:
            CastoffError: As :meth:`ask`; also where it breaks off.
        """
        with self._failures():
            try:
                async with asyncio.timeout(_CONNECT):
                    socket = await self._session.ws_connect(path, compress=0, max_msg_size=LONGEST)
            except aiohttp.WSServerHandshakeError as error:
                raise refusal(error.status, b"") from error
            async with socket:
                yield await Tunnel.open(socket, refusal)

    @contextlib.contextmanager
    def _failures(self) -> Any:
        try:
            yield
        except aiohttp.ClientConnectorError as error:
            raise Unavailable(
                f"no agent answers at {self._where}: {error.strerror or error}",
                hint="start one with `castoff agent`, or name another by CASTOFF_URL",
            ) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(
                f"{self._where} broke off: {error or type(error).__name__}", hint="does the agent still run?"
            ) from error
        # A line longer than any of ours is the one or the other, as aiohttp's version has it.
        except (msgspec.MsgspecError, HttpProcessingError, ValueError) as error:
            raise Invalid(f"the answer of {self._where} is not the Machines API's: {str(error)[:200]}") from error


def refusal(status: int, text: bytes) -> CastoffError:
    """What a server refused with: the other direction of castoff.api.errors.

    Args:
        status: The answer's status.
        text: Its body, whatever that is.
    """
    try:
        document = msgspec.json.decode(text)
    except msgspec.MsgspecError:
        document = None
    told = document if isinstance(document, dict) else {}
    what = str(told.get("error") or text[:200].decode(errors="replace") or f"status {status}")
    hint = str(told.get("message") or "").removeprefix(what).removeprefix("; ")
    kind = None if status in _PRECISE else _CLASSES.get(str(told.get("code")))
    kind = kind or _STATUSES.get(status, Internal)
    return kind(what, hint=hint)
