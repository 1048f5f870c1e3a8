"""A connection to a TCP port of an agent's machine, as its client has it. Implements castoff.lifecycle.launcher.Connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import aiohttp

from castoff.api.wire.tunnel import CONNECTED, END, NORMAL, REFUSED
from castoff.errors import CastoffError, Invalid, Unavailable

__all__ = ["Tunnel"]

_PIECE: Final = 256 << 10
_ENDS: Final = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED)


class Tunnel:
    """Made by :meth:`open`; for one reader and one writer.

    Args:
        socket: Upgraded already.
        refusal: Makes a failure of an HTTP status and a text.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, refusal: Callable[[int, bytes], CastoffError]) -> None:
        self._socket = socket
        self._refusal = refusal

    @classmethod
    async def open(cls, socket: aiohttp.ClientWebSocketResponse, refusal: Callable[[int, bytes], CastoffError]) -> Tunnel:
        """Waits until the machine's port is connected.

        Raises:
            CastoffError: It cannot be.
        """
        message = await socket.receive()
        if message.type != aiohttp.WSMsgType.TEXT or message.data != CONNECTED:
            cls(socket, refusal)._check(message)
            raise Invalid("what answered is no machine's port")
        return cls(socket, refusal)

    async def read(self) -> bytes:
        """What came next; empty at the end.

        Raises:
            CastoffError: It broke off.
        """
        while True:
            message = await self._socket.receive()
            if message.type != aiohttp.WSMsgType.BINARY:
                self._check(message)
                return b""
            if message.data:
                return bytes(message.data)

    async def write(self, data: bytes | memoryview) -> None:
        """Sends; returns when there is room for more."""
        for at in range(0, len(data), _PIECE):
            await self._socket.send_bytes(bytes(data[at : at + _PIECE]))

    async def end(self) -> None:
        """Sends no more; the server may still answer."""
        await self._socket.send_str(END)

    def _check(self, message: aiohttp.WSMessage) -> None:
        """Refuses all but a connection's regular end."""
        code = self._socket.close_code
        if message.type not in _ENDS:
            raise Invalid("a machine's port says bytes, and this is something else")
        if code is not None and REFUSED <= code < REFUSED + 1000:
            raise self._refusal(code - REFUSED, str(message.extra or "").encode())
        if code != NORMAL:
            raise Unavailable("the connection to the machine broke off", hint="does the agent still run?")
