"""This host in its fleet: it says who it is and what it has, knows the others, and tells this host's fetches whom to ask."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aiohttp import web

from castoff.agent.fleet.describe import (
    Listing,
    host_capacity,
    host_identity,
    host_records,
    machine_rows,
    machines_here,
)
from castoff.agent.fleet.door import HostDoor
from castoff.agent.fleet.elsewhere import Elsewhere
from castoff.agent.fleet.images import ImagesHere
from castoff.agent.fleet.outward import Outward
from castoff.agent.fleet.placing import Placing
from castoff.agent.fleet.whom import keep_holders, keep_neighbours
from castoff.agent.records import Records
from castoff.api.server import Register
from castoff.config import Config
from castoff.fleet.connection import Connection, end
from castoff.fleet.holders import Holders
from castoff.fleet.members import Members
from castoff.fleet.placement import Placement
from castoff.fleet.record import HostRecord
from castoff.fleet.reservations import Reservations
from castoff.fleet.roster import Roster
from castoff.lifecycle.machines import Machines
from castoff.peers.known import HOLDERS
from castoff.peers.settings import KNOWN_PEERS, PeerSettings
from castoff.store.store import Store

__all__ = ["Fleet", "host_doors", "in_fleet", "placed", "trusts_hosts"]


@dataclass(frozen=True, slots=True)
class Fleet:
    """The fleet, as this host sees it."""

    name: str
    connection: Connection
    members: Members
    holders: Holders
    roster: Roster
    placing: Placing | None
    """Makes machines where they fit; None: this host has no certificates, so that it makes its machines itself."""
    describe: Callable[[], HostRecord]
    """What this host says of itself now."""
    elsewhere: Elsewhere | None
    """Asks other hosts for their machines; None as above."""


@contextlib.asynccontextmanager
async def in_fleet(
    config: Config, store: Store, machines: Machines, directory: Path, notice: Callable[[str], None]
) -> AsyncIterator[Fleet | None]:
    """Is of the configured fleet for the block; None where none is configured.

    Args:
        config: The configuration.
        store: What this host has.
        machines: What it runs.
        directory: The agent's.
        notice: Called with a line for people.

    Raises:
        Invalid: The settings are broken.
    """
    if not config.fleet.is_used:
        for name in (KNOWN_PEERS, HOLDERS):
            (directory / name).unlink(missing_ok=True)
        yield None
        return
    identity = await asyncio.to_thread(host_identity, directory)
    total = host_capacity(config)
    reservations = Reservations(total, partial(machines_here, machines))
    describe = host_records(config, identity, machines, total, reservations)
    async with (
        Connection.open(config.fleet, notice) as connection,
        Members.open(connection, describe, notice=notice) as members,
        Holders.open(connection, identity, Listing(store.root), notice=notice) as holders,
        Roster.open(connection, identity, partial(machine_rows, machines), notice=notice) as roster,
        contextlib.AsyncExitStack() as stack,
    ):
        images = ImagesHere(store.root, members, holders)
        placing, elsewhere = None, None
        if trusts_hosts(config.peers):
            region = config.agent.region
            placement = await stack.enter_async_context(
                Placement.open(connection, members, region=region, total=total, reservations=reservations, share=images.share)
            )
            outward = await stack.enter_async_context(Outward.open(config.peers))
            placing = Placing(members, placement, roster, outward, images.layers)
            elsewhere = await stack.enter_async_context(Elsewhere.open(members, roster, outward, connection, machines))
        else:
            notice("this host makes its machines itself: others make them with peers.listen, peers.url and certificates")
        telling = asyncio.create_task(keep_neighbours(members, describe, directory))
        naming = asyncio.create_task(keep_holders(members, holders, describe, directory))
        try:
            yield Fleet(config.fleet.name, connection, members, holders, roster, placing, describe, elsewhere)
        finally:
            await end(telling, naming)


def placed(fleet: Fleet | None) -> Register:
    """Machines are made where they fit, and found wherever they are."""

    def add(app: web.Application) -> None:
        for part in (fleet.placing, fleet.elsewhere) if fleet is not None else ():
            if part is not None:
                part.add(app)

    return add


@contextlib.asynccontextmanager
async def host_doors(config: Config, fleet: Fleet | None, records: Records, socket: Path) -> AsyncIterator[Sequence[Register]]:
    """What other hosts of the fleet may ask beside chunks, for the block."""
    if fleet is None or fleet.placing is None:
        yield ()
        return
    async with HostDoor.open(socket, records, config.agent.organization) as door:
        yield (door.add,)


def trusts_hosts(settings: PeerSettings) -> bool:
    """Whether this host can tell other hosts of the fleet from strangers, and they reach it."""
    return bool(settings.listen and settings.url and settings.authority is not None)
