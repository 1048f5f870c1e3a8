"""Firecracker's HTTP API on its unix socket, as far as castoff speaks it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import aiohttp

from castoff.errors import Unavailable
from castoff.vmm.sockets import connect_unix

__all__ = ["FirecrackerApi"]

_RETRY_SECONDS: Final = 0.003
_MAX_ANSWER: Final = 64 * 1024


class FirecrackerApi:
    """One Firecracker.

    Args:
        socket: Its API socket; it need not be there yet.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def put_all(self, requests: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Sends requests one after another, once the socket answers; the caller sets a time limit.

        Raises:
            Unavailable: One was refused (the message says which and why), or the connection broke.
        """
        await self._appears()
        # a socket's address is short, a state directory's path may not be: see castoff.vmm.sockets
        directory = os.open(self._socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connector = aiohttp.UnixConnector(f"/proc/self/fd/{directory}/{self._socket.name}")
            async with aiohttp.ClientSession("http://localhost", connector=connector) as session:
                for path, body in requests:
                    await self._put(session, path, body)
        except aiohttp.ClientError as error:
            raise Unavailable(f"firecracker hung up: {error}", hint="its log tells why") from error
        finally:
            os.close(directory)

    async def _put(self, session: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> None:
        async with session.put(path, json=body) as answer:
            if answer.status != 204:
                text = await answer.content.read(_MAX_ANSWER)
                raise Unavailable(f"firecracker refused PUT {path}: {_fault(text) or f'status {answer.status}'}")

    async def _appears(self) -> None:
        while True:  # the socket is bound some time after the process started, and listens a moment later
            try:
                _, writer = await connect_unix(self._socket)
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                writer.close()
                return


def _fault(text: bytes) -> str:
    try:
        answer = json.loads(text)
    except ValueError:
        return ""
    message = answer.get("fault_message", "") if isinstance(answer, dict) else ""
    return "".join(letter if letter.isprintable() else "?" for letter in str(message)[:500])
