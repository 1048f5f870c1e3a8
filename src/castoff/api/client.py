"""A client of the Machines API: of this host's agent by its unix socket, or of any by URL and token.

What the server refuses is raised as the class of castoff.errors whose code it names.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import aiohttp
import msgspec

from castoff.errors import (
    CastoffError,
    Code,
    Conflict,
    Internal,
    Invalid,
    NotFound,
    Unauthorized,
    Unavailable,
    Unsupported,
)

__all__ = ["ApiClient"]

_SECONDS: Final = 90.0
"""For an answer: a wait may take 60."""
_LONGEST: Final = 64 * 1024 * 1024
"""Bytes of an answer that are believed."""
_CLASSES: Final[Mapping[str, type[CastoffError]]] = MappingProxyType(
    {
        Code.INVALID: Invalid,
        Code.NOT_FOUND: NotFound,
        Code.CONFLICT: Conflict,
        Code.UNAUTHORIZED: Unauthorized,
        Code.UNAVAILABLE: Unavailable,
        Code.UNSUPPORTED: Unsupported,
    }
)
_STATUSES: Final[Mapping[int, type[CastoffError]]] = MappingProxyType(
    {400: Invalid, 401: Unauthorized, 403: Unauthorized, 404: NotFound, 408: Unavailable, 409: Conflict, 412: Conflict}
    | {422: Invalid, 429: Unavailable, 501: Unsupported, 502: Unavailable, 503: Unavailable, 504: Unavailable}
)


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
        """
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connector = None if url or socket is None else aiohttp.UnixConnector(path=str(socket))
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=_SECONDS)
        async with aiohttp.ClientSession(
            url or "http://agent", connector=connector, headers=headers, timeout=timeout, trust_env=bool(url)
        ) as session:
            yield cls(session, url or str(socket))

    async def ask(self, method: str, path: str, *, body: Any = None, query: Mapping[str, str] | None = None) -> Any:
        """One request; the answer's JSON, None where it is empty.

        Raises:
            CastoffError: The server refused, or nobody answers.
        """
        with self._failures():
            data = None if body is None else msgspec.json.encode(body)
            headers = {} if data is None else {"Content-Type": "application/json"}
            async with self._session.request(method, path, data=data, params=query, headers=headers) as answer:
                text = await answer.content.read(_LONGEST + 1) if answer.content_length != 0 else b""
                while len(text) <= _LONGEST and (more := await answer.content.read(_LONGEST)):
                    text += more
                if len(text) > _LONGEST:
                    raise Invalid(f"the answer of {self._where} has over {_LONGEST >> 20} MiB")
                if answer.status >= 300:
                    raise _refusal(answer.status, text)
                return msgspec.json.decode(text) if text else None

    async def lines(self, path: str, *, query: Mapping[str, str]) -> AsyncIterator[Any]:
        """An answer of JSON lines, as they come.

        Raises:
            CastoffError: As :meth:`ask`.
        """
        with self._failures():
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=None)
            async with self._session.get(path, params=query, timeout=timeout) as answer:
                if answer.status >= 300:
                    raise _refusal(answer.status, await answer.content.read(1 << 20))
                async for line in answer.content:
                    yield msgspec.json.decode(line)

    @contextlib.contextmanager
    def _failures(self) -> Any:
        try:
            yield
        except aiohttp.ClientConnectorError as error:
            raise Unavailable(
                f"no agent answers at {self._where}: {error.strerror or error}",
                hint="start one with `castoff agent`, or name another by CASTOFF_URL",
            ) from error
        except aiohttp.InvalidURL as error:
            raise Invalid(f"{self._where!r} is no URL", hint="http://127.0.0.1:4280, for instance") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(
                f"{self._where} broke off: {error or type(error).__name__}", hint="does the agent still run?"
            ) from error
        except msgspec.MsgspecError as error:
            raise Invalid(f"the answer of {self._where} is not the Machines API's: {error}") from error


def _refusal(status: int, text: bytes) -> CastoffError:
    try:
        document = msgspec.json.decode(text)
    except msgspec.MsgspecError:
        document = None
    told = document if isinstance(document, dict) else {}
    what = str(told.get("error") or text[:200].decode(errors="replace") or f"status {status}")
    hint = str(told.get("message") or "").removeprefix(what).removeprefix("; ")
    kind = _CLASSES.get(str(told.get("code"))) or _STATUSES.get(status, Internal)
    return kind(what, hint=hint)
