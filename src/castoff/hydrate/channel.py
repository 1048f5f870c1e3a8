"""Messages between the hydrator and those who ask it: JSON with descriptors beside it, over a unix SOCK_SEQPACKET socket.

A message is whole or not at all (the socket keeps their bounds), at most 64 KiB, with at most four descriptors.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from castoff.errors import Invalid, Unauthorized

__all__ = ["Channel", "address"]

_LARGEST = 64 << 10
_DESCRIPTORS = 4
_INT = array.array("i").itemsize
_CREDENTIALS = struct.Struct("3i")


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """``path`` as a socket's name, for the block: through its directory's descriptor, since a name has 107 bytes at most."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


class Channel:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection

    def authorize(self) -> None:
        """Raises Unauthorized unless the other end is root's or this user's."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(credentials)
        if uid not in (0, os.geteuid()):
            raise Unauthorized(f"uid {uid} may not speak to the hydrator of uid {os.geteuid()}")

    async def send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Sends a message; the descriptors stay open here.

        Raises:
            OSError: The other end is gone.
        """
        data = msgspec.json.encode(message)
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        while True:
            try:
                self._socket.sendmsg([data], beside)
                return
            except BlockingIOError:
                await self._until(writable=True)

    async def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message and its descriptors, which are the caller's to close; None at the end.

        Raises:
            Invalid: It is not a message.
            OSError: The connection broke.
        """
        while True:
            try:
                data, beside, flags, _ = self._socket.recvmsg(
                    _LARGEST, socket.CMSG_SPACE(_DESCRIPTORS * _INT), socket.MSG_CMSG_CLOEXEC
                )
                break
            except BlockingIOError:
                await self._until(writable=False)
        descriptors = _received(beside)
        try:
            if not data and not descriptors:
                return None
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise Invalid("a message to the hydrator is too long")
            return msgspec.json.decode(data, type=dict[str, Any]), descriptors
        except msgspec.MsgspecError as error:
            _close(descriptors)
            raise Invalid(f"a message to the hydrator is broken: {error}") from error
        except BaseException:
            _close(descriptors)
            raise

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


def _received(beside: Sequence[tuple[int, int, bytes]]) -> list[int]:
    descriptors = array.array("i")
    for level, kind, data in beside:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % _INT])
    return descriptors.tolist()


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
