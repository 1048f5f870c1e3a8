"""The fleet as it changes, for the page and ``castoff fleet transfers``: who is there, and what travels between whom."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from castoff.agent.fleet.fleet import Fleet
from castoff.agent.fleet.routes import fleet_of, host_row
from castoff.agent.peers.traffic import Traffic
from castoff.api.answer import json_answer
from castoff.api.server import Register
from castoff.fleet.transfers import Sending, Transfers

__all__ = ["in_sight", "transfer_routes"]

_LOOK: Final = 1.0
_BEAT: Final = 15.0
"""Seconds after which a quiet stream shows that it lives."""
_LIFE: Final = 300.0
"""Seconds after which a browser has to ask anew, and its token is looked at again."""
_MOST: Final = 1000
"""Hosts that a browser is told of."""


@contextlib.asynccontextmanager
async def in_sight(fleet: Fleet | None, traffic: Traffic, notice: Callable[[str], None]) -> AsyncIterator[Transfers | None]:
    """Tells the fleet for the block what this host sends; None where there is no fleet."""
    if fleet is None:
        yield None
        return

    def sendings() -> list[Sending]:
        return [Sending(*row) for row in traffic.lately()]

    async with Transfers.open(fleet.connection, fleet.members.own, sendings, notice=notice) as transfers:
        yield transfers


def transfer_routes(fleet: Fleet | None, transfers: Transfers | None) -> Register:
    """``GET /v1/fleet/transfers``, and ``/v1/fleet/stream``: events ``fleet`` with all that :class:`_Sight` has."""
    sight = _Sight(fleet, transfers)
    ending = asyncio.Event()

    async def moving(request: web.Request) -> web.Response:
        fleet_of(fleet, request)
        return json_answer({"transfers": sight.transfers()})

    async def stream(request: web.Request) -> web.StreamResponse:
        fleet_of(fleet, request)
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        ends, last, spoke = time.monotonic() + _LIFE, b"", time.monotonic()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):  # the browser went away
            while time.monotonic() < ends and not ending.is_set():
                frame = sight.frame()
                if frame != last or time.monotonic() - spoke >= _BEAT:
                    await response.write(b": \n\n" if frame == last else frame)
                    last, spoke = frame, time.monotonic()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        await ending.wait()
        return response

    async def close(_: web.Application) -> None:
        ending.set()  # else the server would wait for the browsers

    def add(app: web.Application) -> None:
        app.router.add_get("/v1/fleet/transfers", moving)
        app.router.add_get("/v1/fleet/stream", stream)
        app.on_shutdown.append(close)

    return add


class _Sight:
    """What is seen of the fleet; looked at once a second for all who look."""

    def __init__(self, fleet: Fleet | None, transfers: Transfers | None) -> None:
        self._fleet = fleet
        self._transfers = transfers
        self._looked = float("-inf")
        self._frame = b""

    def transfers(self) -> list[dict[str, Any]]:
        """What is sent, the fastest first; hosts by name where they are known."""
        if self._fleet is None or self._transfers is None:
            return []
        members = self._fleet.members.alive()
        names = {member.record.peers: member.record.name for member in members if member.record.peers}
        senders = {member.record.id: member.record.name for member in members}
        rows = [
            {"from": senders[host], "to": names.get(sending.to, sending.to), "sent": sending.sent, "rate": sending.rate}
            for host, sendings in self._transfers.now().items()
            if host in senders
            for sending in sendings
        ]
        return sorted(rows, key=lambda row: (-row["rate"], row["from"], row["to"]))

    def frame(self) -> bytes:
        """An event for browsers."""
        if self._fleet is not None and time.monotonic() - self._looked >= 0.9 * _LOOK:
            self._looked = time.monotonic()
            members, lists = self._fleet.members, self._fleet.holders.lists()
            hosts = [host_row(member, members.own, len(lists.get(member.record.id, ()))) for member in members.alive()]
            for host in hosts:
                del host["seen_seconds_ago"]  # else everything would be new every time
            seen = {
                "fleet": self._fleet.name,
                "connected": self._fleet.connection.is_connected,
                "seen": not members.is_cut_off,
                "count": len(hosts),
                "hosts": hosts[:_MOST],
                "transfers": self.transfers()[:_MOST],
            }
            self._frame = b"event: fleet\ndata: " + msgspec.json.encode(seen) + b"\n\n"
        return self._frame
