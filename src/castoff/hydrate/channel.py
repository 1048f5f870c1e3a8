"""Messages between the hydrator and those who ask it: JSON with descriptors beside it (castoff.hydrate.descriptors)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import msgspec

from castoff.errors import Invalid
from castoff.hydrate import descriptors as packets

__all__ = ["Channel"]


class Channel:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection

    async def send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Sends a message; the descriptors stay open here.

        Raises:
            OSError: The other end is gone.
        """
        data = msgspec.json.encode(message)
        while True:
            try:
                packets.send(self._socket, data, descriptors)
            except BlockingIOError:
                await self._until(writable=True)
            else:
                return

    async def receive(self) -> tuple[dict[str, Any], tuple[int, ...]] | None:
        """The next message and its descriptors, which are the caller's to close; None at the end.

        Raises:
            Invalid: It is not a message.
            OSError: The connection broke.
        """
        while True:
            try:
                data, descriptors = packets.receive(self._socket)
                break
            except BlockingIOError:
                await self._until(writable=False)
            except EOFError:
                return None
        try:
            return msgspec.json.decode(data, type=dict[str, Any]), descriptors
        except msgspec.MsgspecError as error:
            packets.close_all(descriptors)
            raise Invalid(f"a message to the hydrator is broken: {error}") from error

    def close(self) -> None:
        """Closes the connection. Idempotent."""
        self._socket.close()

    async def _until(self, *, writable: bool) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        add, remove = (loop.add_writer, loop.remove_writer) if writable else (loop.add_reader, loop.remove_reader)

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        add(self._socket, wake)
        try:
            await ready
        finally:
            remove(self._socket)
