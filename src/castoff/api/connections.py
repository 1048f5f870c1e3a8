"""Every connection of a client: how many there may be, and how slow one may be.

aiohttp's server waits for ever for the first byte of a request and for a client that does not read its answer. This protocol
stands between the transport and aiohttp's and ends such connections; the time it gives is one setting for all of it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

__all__ = ["Connections"]

_FULL_BODY: Final = b'{"error":"too many open connections","status":"unknown","code":"unavailable"}'
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_FULL_BODY), _FULL_BODY)
)


class Connections:
    """All open connections.

    Args:
        most: How many there may be of each door: whoever fills the port does not keep the operator out of the unix socket.
        timeout: Seconds that a client has for sending a request's head, and for reading when it is behind.
    """

    def __init__(self, *, most: int, timeout: float) -> None:
        self.most = most
        self.timeout = timeout
        self._open: dict[asyncio.BaseTransport, _Connection] = {}
        self._of_door: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def factory(self, inner: Callable[[], asyncio.Protocol], door: str = "") -> Callable[[], asyncio.Protocol]:
        """A protocol factory for ``create_server`` around another's.

        Args:
            inner: The other one.
            door: What is listened at; each has room for ``most``.
        """
        return lambda: _Connection(self, inner(), door)

    def admit(self, transport: asyncio.BaseTransport, connection: _Connection) -> bool:
        """Takes a new connection in, where there is room."""
        if self._of_door[connection.door] >= self.most:
            return False
        self._open[transport] = connection
        self._of_door[connection.door] += 1
        return True

    def leaves(self, transport: asyncio.BaseTransport) -> None:
        """One that was taken in is over."""
        connection = self._open.pop(transport, None)
        if connection is not None:
            self._of_door[connection.door] -= 1

    def begins(self, transport: asyncio.BaseTransport | None) -> float:
        """A request's head is here: its handler decides how long it takes from now on.

        Returns:
            When its first bytes were read, of time.monotonic(): whoever measures a request begins there.
        """
        connection = self._open.get(transport) if transport is not None else None
        return time.monotonic() if connection is None else connection.request_begins()

    def ends(self, transport: asyncio.BaseTransport | None) -> None:
        """The handler is done."""
        connection = self._open.get(transport) if transport is not None else None
        if connection is not None:
            connection.request_ends()


class _Connection(asyncio.Protocol):
    def __init__(self, connections: Connections, inner: asyncio.Protocol, door: str) -> None:
        self.door = door
        self._connections = connections
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        self._refused = False
        self._handling = False
        self._received: float | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._connections.admit(transport, self):
            self._refused = True
            transport.write(_FULL)
            transport.close()
            return
        self._inner.connection_made(transport)
        self._reading = self._expire()

    def _expire(self) -> asyncio.TimerHandle:
        assert self._transport is not None
        return asyncio.get_running_loop().call_later(self._connections.timeout, self._transport.abort)

    def request_begins(self) -> float:
        self._handling = True
        received, self._received = self._received, None
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        return time.monotonic() if received is None else received

    def request_ends(self) -> None:
        self._handling = False

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._received is None:
            self._received = time.monotonic()
        if not self._handling and self._reading is None:
            self._reading = self._expire()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return False if self._refused else self._inner.eof_received()

    def pause_writing(self) -> None:
        if self._writing is None:
            self._writing = self._expire()
        if not self._refused:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        if not self._refused:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()
        if self._refused:
            return
        if self._transport is not None:
            self._connections.leaves(self._transport)
        self._inner.connection_lost(exc)
