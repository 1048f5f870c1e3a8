"""A machine that is asked for here is made where it fits: on the host that offers most for it, which may be this one.

Its id is chosen here, before anybody is asked, so that nothing that is lost on the way makes two machines: a host that may have
made it is asked again for the same one, and no other is asked then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import msgspec
from aiohttp import web

from castoff.agent.fleet.describe import wanted_of
from castoff.agent.fleet.door import MACHINE_HEADER, PROMISE_HEADER, MakeOrder
from castoff.agent.fleet.outward import HERE, Outward, Unreached
from castoff.api.auth import grant_of, is_local
from castoff.api.errors import Refusal
from castoff.api.parts import MACHINE_ID, PARTS
from castoff.api.regions import ANY
from castoff.api.wire.image import is_local as is_on_disk
from castoff.api.wire.requests import MachineBody
from castoff.errors import CastoffError, Conflict, Unavailable
from castoff.fleet.members import Members
from castoff.fleet.offers import Offer
from castoff.fleet.placement import Placement
from castoff.fleet.record import HostRecord
from castoff.fleet.room import room_by_region
from castoff.fleet.roster import Roster
from castoff.lifecycle.config import MachineConfig, parse_config
from castoff.machine.model import MachineId, new_machine_id, parse_machine_id

__all__ = ["Placing"]

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_MACHINES: Final = "/v1/apps/{app}/machines"
_COMING: Final = 60.0
"""Seconds that a machine has to come about after its room was taken: its image is looked up and it is written down."""
_MOST_TRIES: Final = 8


@dataclass(frozen=True, slots=True)
class Placing:
    """The middleware of creates."""

    members: Members
    placement: Placement
    roster: Roster
    outward: Outward
    layers: Callable[[str], tuple[str, ...]]
    """The diffIDs of an image's layers, as far as this host knows them without asking anybody."""

    def add(self, app: web.Application) -> None:
        """Puts it before the routes."""

        @web.middleware
        async def placed(request: web.Request, handler: _Handler) -> web.StreamResponse:
            resource = request.match_info.route.resource
            if request.method != "POST" or resource is None or resource.canonical != _MACHINES:
                return await handler(request)
            return await self._placed(request, handler)

        app.middlewares.append(placed)

    async def _placed(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if is_local(request) and HERE in request.headers:
            self._take(request)
            return await handler(request)
        wanted = await _wanted(request)
        if wanted is None or self.members.is_cut_off:
            return await handler(request)
        region, config, name = wanted
        self._check_name(request.match_info["app"], name)
        try:
            offers = await self._offers(config, region, request.app[PARTS].settings.region)
        except Unavailable:
            if region not in ("", ANY, request.app[PARTS].settings.region):
                raise
            return await handler(request)  # cut off just now: what fits here is made here
        request[MACHINE_ID] = machine = new_machine_id()
        try:
            return await self._made(request, handler, machine, offers)
        finally:
            await self.placement.release(offers)

    def _check_name(self, app: str, name: str) -> None:
        """By what other hosts last told: two that make machines of one name in the same second do not know of one another."""
        if name and any(row.name == name for rows in self.roster.of_app(app).values() for row in rows):
            raise Conflict(f"app {app} has a machine named {name!r}", hint="take another name, or destroy that one")

    async def _offers(self, config: MachineConfig, region: str, own: str) -> list[Offer]:
        """Of a region's hosts; for any region, of the first that has room: this host's own, then those where most is free."""
        wanted, image = wanted_of(config), config.image
        if region != ANY:
            return await self.placement.ask(image, self.layers(image), wanted, region)
        hosts = [member.record for member in self.members.alive()]
        room = room_by_region(hosts, cpus=wanted.cpus, memory_mb=wanted.memory_mb, gpus=wanted.gpus, gpu_kind=wanted.gpu_kind)
        for name in sorted(room, key=lambda name: (name != own, -room[name], name)):
            offers = await self.placement.ask(image, self.layers(image), wanted, name)
            if offers:
                return offers
        return []

    async def _made(self, request: web.Request, handler: _Handler, machine: MachineId, offers: list[Offer]) -> web.StreamResponse:
        """Asks one host after another, the best offer first, as long as it is sure that none of them made it."""
        for offer in offers[:_MOST_TRIES]:
            host = self.members.find(offer.host)
            if offer.host == self.members.own:
                if self.placement.reservations.take(offer.promise, machine, _COMING):
                    return await handler(request)
                continue
            if host is None:
                continue
            try:
                status, answer = await self._make_there(request, machine, host, offer)
            except Unreached:
                continue
            if _is_no_room(status, answer):
                continue
            if status < 400:
                self.roster.expect(machine, request.match_info["app"], host.id)
            return web.Response(status=status, body=answer, content_type="application/json")
        raise Refusal(
            "no host has room for this machine",
            http=422,
            word="insufficient_capacity",
            status="insufficient_capacity",
            hint="take a smaller guest or another region; `castoff fleet hosts` shows what is free",
        )

    async def _make_there(self, request: web.Request, machine: MachineId, host: HostRecord, offer: Offer) -> tuple[int, bytes]:
        parts, app = request.app[PARTS], request.match_info["app"]
        order = msgspec.json.encode(
            MakeOrder(
                grant=grant_of(request),
                app=app,
                network=parts.apps.get(app).network,
                secrets=dict(await parts.secrets.values(app)),
                machine=machine,
                promise=offer.promise,
                body=msgspec.Raw(await request.read()),
            )
        )
        try:
            return await self.outward.make(host, order)
        except Unreached:
            raise
        except Unavailable as lost:
            try:
                return await self.outward.make(host, order)  # it may have made it: asked again, it gives the same one
            except Unavailable:
                hint = f"look for machine {machine} when that host is back, before you make another"
                raise Unavailable(f"whether host {host.name} made the machine is not known: {lost.what}", hint=hint) from lost

    def _take(self, request: web.Request) -> None:
        """Another host chose this one: the room that was promised becomes the machine's."""
        machine, promise = request.headers.get(MACHINE_HEADER), request.headers.get(PROMISE_HEADER, "")
        if machine is None:
            return
        request[MACHINE_ID] = identity = parse_machine_id(machine)
        if request.app[PARTS].machines.has(identity):
            return  # it was made, and the answer was lost
        if not self.placement.reservations.take(promise, identity, _COMING):
            raise Refusal(
                "what this host had promised is over", http=422, word="insufficient_capacity", status="insufficient_capacity"
            )


async def _wanted(request: web.Request) -> tuple[str, MachineConfig, str] | None:
    """Region, configuration and name of a machine that any host could make; None: this host must, or must say what is wrong."""
    try:
        body = msgspec.json.decode(await request.read(), type=MachineBody)
        config = parse_config(body.config)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, CastoffError, web.HTTPException):
        return None
    if config.mounts or config.rootfs is not None or is_on_disk(config.image):
        return None  # its volume, its file or its image is here
    return body.region or "", config, body.name or ""


def _is_no_room(status: int, answer: bytes) -> bool:
    return status == 422 and b'"insufficient_capacity"' in answer
