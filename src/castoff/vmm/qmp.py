"""QEMU's control socket, as far as castoff speaks on it (QEMU, docs/interop/qmp-spec.rst)."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

from castoff.errors import Unavailable

__all__ = ["Qmp", "connect", "execute", "greet", "version"]

_MAX_LINE: Final = 1 << 20
_MAX_EVENTS: Final = 1000


class Qmp:
    """A connection. Made by :func:`connect`."""

    def __init__(self, connection: socket.socket, path: Path) -> None:
        self._socket = connection
        self._path = path
        self._received = bytearray()
        self._number = 0
        self._events: deque[dict[str, Any]] = deque(maxlen=_MAX_EVENTS)

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Executes one command; its answer.

        Raises:
            Unavailable: QEMU refused, or is gone.
        """
        return await self._ask(command, arguments)

    async def pass_descriptor(self, name: str, descriptor: int) -> None:
        """Gives QEMU a copy of a descriptor, for commands of this connection that name it.

        Raises:
            Unavailable: QEMU refused, or is gone.
        """
        await self._ask("getfd", {"fdname": name}, (descriptor,))

    async def event(self, name: str) -> dict[str, Any]:
        """The data of the next event of that name; others are thrown away.

        Raises:
            Unavailable: QEMU is gone.
        """
        while True:
            event = self._events.popleft() if self._events else await self._message()
            if event.get("event") == name:
                data = event.get("data")
                return data if isinstance(data, dict) else {}

    async def greeted(self) -> None:
        """Takes QEMU's greeting and leaves the mode in which it only negotiates."""
        await self._message()
        await self._ask("qmp_capabilities", {})

    async def _ask(self, command: str, arguments: dict[str, Any], descriptors: Sequence[int] = ()) -> Any:
        # Numbered: the answer of a command that nobody waited for any more is not the next one's.
        self._number += 1
        line = json.dumps({"execute": command, "arguments": arguments, "id": self._number}).encode() + b"\n"
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            # A short line, and the next one only after its answer: the socket has room for all of it, always.
            self._socket.sendmsg([line], passed)
        except OSError as error:
            raise self._gone(str(error)) from error
        while True:
            answer = await self._message()
            if "event" in answer:
                self._events.append(answer)
            elif answer.get("id") != self._number:
                continue
            elif "error" in answer:
                raise Unavailable(f"qemu refused {command}: {_described(answer['error'])}")
            else:
                return answer.get("return")

    async def _message(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        try:
            while (end := self._received.find(b"\n")) < 0:
                data = await loop.sock_recv(self._socket, 65536)
                self._received += data
                if not data or len(self._received) > _MAX_LINE:
                    raise ValueError("a line without end" if data else "it hung up")
            line = bytes(self._received[:end])
            del self._received[: end + 1]
            message = json.loads(line)
            if not isinstance(message, dict):
                raise ValueError("no object")
        except (OSError, ValueError) as error:
            raise self._gone(str(error)) from error
        return message

    def _gone(self, why: str) -> Unavailable:
        return Unavailable(f"qemu's control socket {self._path} gave no answer: {why}", hint="has the machine ended?")


def _described(error: object) -> str:
    return str(error.get("desc", "")) if isinstance(error, dict) else str(error)


@contextlib.asynccontextmanager
async def connect(path: Path) -> AsyncIterator[Qmp]:
    """A connection for the block. The caller sets a time limit: QEMU serves one at a time.

    Raises:
        Unavailable: Nobody answers, or not like QEMU.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    qmp = Qmp(connection, path)
    try:
        try:
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:  # a socket's address is short, a state directory's path may not be: see castoff.vmm.sockets
                await asyncio.get_running_loop().sock_connect(connection, f"/proc/self/fd/{directory}/{path.name}")
            finally:
                os.close(directory)
        except OSError as error:
            raise qmp._gone(str(error)) from error
        await qmp.greeted()
        yield qmp
    finally:
        connection.close()


async def greet(path: Path) -> str:
    """Waits for QEMU's greeting; its version. The caller sets a time limit.

    Raises:
        Unavailable: Nobody answers, or not like QEMU.
    """
    async with connect(path) as qmp:
        return (await version(qmp)).partition(" ")[0]


async def version(qmp: Qmp) -> str:
    """QEMU's version, and its distribution's word for it where there is one: ``7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)``.

    Raises:
        Unavailable: It tells none.
    """
    answer = await qmp.execute("query-version")
    try:
        number = ".".join(str(int(answer["qemu"][part])) for part in ("major", "minor", "micro"))
        return f"{number} {answer['package']}".strip()
    except (KeyError, TypeError, ValueError) as error:
        raise Unavailable("qemu tells no version", hint="is vmm.qemu.binary QEMU's?") from error


async def execute(path: Path, command: str, **arguments: Any) -> Any:
    """Executes one command; its answer.

    Raises:
        Unavailable: Nobody answers, or with an error.
    """
    async with connect(path) as qmp:
        return await qmp.execute(command, **arguments)
