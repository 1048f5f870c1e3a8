"""This host in its fleet: it says who it is and what it has, knows the others, and tells this host's fetches whom to ask."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from castoff.agent.fleet.describe import Listing, host_identity, host_records
from castoff.config import Config
from castoff.fleet.connection import Connection, end
from castoff.fleet.holders import Holders
from castoff.fleet.members import Members
from castoff.fleet.neighbours import neighbours
from castoff.fleet.record import HostRecord
from castoff.lifecycle.machines import Machines
from castoff.peers.known import KNOWN_PEERS, write_known
from castoff.store.store import Store

__all__ = ["Fleet", "in_fleet"]


@dataclass(frozen=True, slots=True)
class Fleet:
    """The fleet, as this host sees it."""

    name: str
    connection: Connection
    members: Members
    holders: Holders


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
        (directory / KNOWN_PEERS).unlink(missing_ok=True)
        yield None
        return
    identity = await asyncio.to_thread(host_identity, directory)
    describe = host_records(config, identity, machines)
    async with (
        Connection.open(config.fleet, notice) as connection,
        Members.open(connection, describe, notice=notice) as members,
        Holders.open(connection, identity, Listing(store.root), notice=notice) as holders,
    ):
        telling = asyncio.create_task(_tell_whom_to_ask(members, describe, directory / KNOWN_PEERS))
        try:
            yield Fleet(config.fleet.name, connection, members, holders)
        finally:
            await end(telling)


async def _tell_whom_to_ask(members: Members, describe: Callable[[], HostRecord], path: Path) -> None:
    """Keeps the file that hydrators and other commands of this host read."""
    order = partial(_order, members.own)
    told: list[str] | None = None
    with members.changes() as changed:
        while True:
            changed.clear()
            urls = list(neighbours(describe(), [member.record for member in members.alive()], order))
            if urls != told and not (members.is_cut_off and told):  # cut off from NATS is not from one another
                await asyncio.to_thread(write_known, path, urls)
                told = urls
            await changed.wait()


def _order(own: str, other: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{own} {other}".encode(), digest_size=8).digest(), "big")
