"""Firecracker's HTTP API on its unix socket, as far as castoff speaks it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Final

import aiohttp

from castoff.errors import Unavailable
from castoff.vmm.sockets import connect_unix

__all__ = ["FirecrackerApi", "FirecrackerSession"]

_RETRY_SECONDS: Final = 0.003
_MAX_ANSWER: Final = 64 * 1024


class FirecrackerSession:
    """A connection with one. Its methods raise Unavailable where Firecracker refuses (the message says what and why)."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def put(self, path: str, body: dict[str, Any]) -> None:
        """Sends a request of that kind."""
        await self._send("PUT", path, body)

    async def patch(self, path: str, body: dict[str, Any]) -> None:
        """Sends a request of that kind."""
        await self._send("PATCH", path, body)

    async def get(self, path: str) -> dict[str, Any]:
        """What it answers."""
        async with self._session.get(path) as answer:
            text = await _whole(answer)
            try:
                found = json.loads(text) if answer.status == 200 else None
            except ValueError:
                found = None
            if not isinstance(found, dict):
                raise Unavailable(f"firecracker refused GET {path}: {_fault(text) or f'status {answer.status}'}")
            return found

    async def _send(self, method: str, path: str, body: dict[str, Any]) -> None:
        async with self._session.request(method, path, json=body) as answer:
            if answer.status != 204:
                text = await _whole(answer)
                raise Unavailable(f"firecracker refused {method} {path}: {_fault(text) or f'status {answer.status}'}")


class FirecrackerApi:
    """One Firecracker. Whoever asks it sets a time limit.

    Args:
        socket: Its API socket.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def put_all(self, requests: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Sends requests one after another, once the socket is there and answers.

        Raises:
            Unavailable: One was refused (the message says which and why), or the connection broke.
        """
        async with self.connected(appears=True) as session:
            for path, body in requests:
                await session.put(path, body)

    @contextlib.asynccontextmanager
    async def connected(self, *, appears: bool = False) -> AsyncIterator[FirecrackerSession]:
        """A connection, for as long as the block runs.

        Args:
            appears: Wait until the socket is there.

        Raises:
            Unavailable: It is gone, or the connection broke.
        """
        if appears:
            await self._appears()
        # a socket's address is short, a state directory's path may not be: see castoff.vmm.sockets
        try:
            directory = os.open(self._socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(f"{self._socket} is not there: {error.strerror}", hint="has the machine ended?") from error
        try:
            connector = aiohttp.UnixConnector(f"/proc/self/fd/{directory}/{self._socket.name}")
            unlimited = aiohttp.ClientTimeout(total=None)
            async with aiohttp.ClientSession("http://localhost", connector=connector, timeout=unlimited) as session:
                yield FirecrackerSession(session)
        except aiohttp.ClientError as error:
            raise Unavailable(f"firecracker hung up: {error}", hint="its log tells why") from error
        finally:
            os.close(directory)

    async def _appears(self) -> None:
        while True:  # the socket is bound some time after the process started, and listens a moment later
            try:
                _, writer = await connect_unix(self._socket)
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                writer.close()
                return


async def _whole(answer: aiohttp.ClientResponse) -> bytes:
    """An answer's body, as far as it is as short as Firecracker's are."""
    try:
        return await answer.content.readexactly(_MAX_ANSWER)
    except asyncio.IncompleteReadError as shorter:
        return shorter.partial


def _fault(text: bytes) -> str:
    try:
        answer = json.loads(text)
    except ValueError:
        return ""
    message = answer.get("fault_message", "") if isinstance(answer, dict) else ""
    return "".join(letter if letter.isprintable() else "?" for letter in str(message)[:500])
