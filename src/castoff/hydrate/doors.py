"""The hydrator's socket: who is asked there, and what it answers (castoff.hydrate.client asks)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from castoff.errors import CastoffError, Invalid
from castoff.hydrate import descriptors as packets
from castoff.hydrate.channel import Channel
from castoff.hydrate.client import socket_path
from castoff.hydrate.record import HotPackRecord
from castoff.hydrate.server import Hydrator
from castoff.image.digest import Digest
from castoff.image.settings import ImageSettings

__all__ = ["Doors", "open_doors"]


class Doors:
    """Those who ask."""

    def __init__(self, hydrator: Hydrator) -> None:
        self._hydrator = hydrator
        self._visits: set[asyncio.Task[None]] = set()

    @property
    def is_busy(self) -> bool:
        """Whether anybody is connected."""
        return bool(self._visits)

    async def accept(self, listener: socket.socket) -> None:
        """Lets in root and this user, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            if not packets.is_ours(connection):
                connection.close()
                continue
            visit = asyncio.create_task(self._visit(Channel(connection)))
            self._visits.add(visit)
            visit.add_done_callback(self._visits.discard)

    async def close(self) -> None:
        """Sends everybody away."""
        for visit in list(self._visits):
            visit.cancel()
        await asyncio.gather(*self._visits, return_exceptions=True)

    async def _visit(self, channel: Channel) -> None:
        attached: list[str] = []
        try:
            while (found := await channel.receive()) is not None:
                request, theirs = found
                packets.close_all(theirs)  # nobody is asked for any
                await self._answer(channel, request, attached)
        except (CastoffError, OSError):
            # It went before it could have the descriptors: no VMM will ever be started on them.
            for machine in attached:
                await self._hydrator.detach(machine)
        finally:
            channel.close()

    async def _answer(self, channel: Channel, request: dict[str, Any], attached: list[str]) -> None:
        try:
            match request:
                case {"do": "attach", "directory": str(directory)}:
                    fds = await self._hydrator.attach(Path(directory))
                    attached.append(Path(directory).name)
                    await channel.send({}, (fds.front, fds.fill))
                    attached.clear()
                    return
                case {"do": "hello"}:
                    answer: dict[str, Any] = {}
                case {"do": "expect", "image": str(image), "hot_pack": dict(hot_pack), "registry": dict(registry)}:
                    where = msgspec.convert(hot_pack, HotPackRecord)
                    await self._hydrator.profiles.expect(Digest.parse(image), where, msgspec.convert(registry, ImageSettings))
                    answer = {}
                case {"do": "ready", "machine": str(machine), "when": float(when)}:
                    await self._hydrator.ready(machine, when)
                    answer = {}
                case {"do": "detach", "machine": str(machine)}:
                    await self._hydrator.detach(machine)
                    answer = {}
                case {"do": "progress", "machine": str(machine)}:
                    served = self._hydrator.served(machine)
                    answer = {"served": False} if served is None else {"progress": msgspec.to_builtins(served.progress)}
                case _:
                    raise Invalid(f"the hydrator was asked {str(request.get('do'))[:40]!a}, which it does not know")
        except msgspec.ValidationError as error:
            answer = {"error": {"code": "invalid", "what": str(error), "hint": ""}}
        except CastoffError as error:
            answer = {"error": {"code": error.code.value, "what": error.what, "hint": error.hint}}
        await channel.send(answer)


@asynccontextmanager
async def open_doors(state: Path, hydrator: Hydrator) -> AsyncIterator[Doors]:
    """Answers at the socket of a state directory, for the block."""
    listener = packets.listen(socket_path(state))
    listener.setblocking(False)
    doors = Doors(hydrator)
    accepting = asyncio.create_task(doors.accept(listener))
    try:
        yield doors
    finally:
        accepting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await accepting
        listener.close()
        await doors.close()
