"""Whom this host's fetches ask: files in the agent's directory, kept up to date, that hydrators and commands read."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from castoff.fleet.beyond import layers_beyond
from castoff.fleet.holders import Holders
from castoff.fleet.inventory import Inventory
from castoff.fleet.members import BEAT, Members
from castoff.fleet.neighbours import MOST, near
from castoff.fleet.record import HostRecord
from castoff.peers.known import HOLDERS, write_holders, write_known
from castoff.peers.settings import KNOWN_PEERS

__all__ = ["keep_holders", "keep_neighbours"]

_LOOK: Final = 10.0
_MOST_HOSTS: Final = 10_000


async def keep_neighbours(members: Members, describe: Callable[[], HostRecord], directory: Path) -> None:
    """The hosts that are asked for everything: written when they are others."""
    told: list[str] | None = None
    with members.changes() as changed:
        while True:
            changed.clear()
            urls = [host.peers for host in _near(members, describe)[:MOST]]
            kept = bool(told) and members.is_in_doubt  # cut off from NATS is not from one another
            if urls != told and not kept:
                await asyncio.to_thread(write_known, directory / KNOWN_PEERS, urls)
                told = urls
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT if kept else None):
                    await changed.wait()


async def keep_holders(
    members: Members, holders: Holders, describe: Callable[[], HostRecord], directory: Path, look: float = _LOOK
) -> None:
    """Who else has which layers: looked at every ``look`` seconds; nothing is written in regions where all are neighbours."""
    path = directory / HOLDERS
    path.unlink(missing_ok=True)
    told = b""
    while True:
        beyond = _near(members, describe)[MOST:_MOST_HOSTS]
        if not members.is_in_doubt and (beyond or told):
            told = await asyncio.to_thread(_write, path, beyond, dict(holders.lists()), told)
        await asyncio.sleep(look)


def _write(path: Path, beyond: list[HostRecord], lists: Mapping[str, Inventory], told: bytes) -> bytes:
    layers, hosts = layers_beyond([host.id for host in beyond], lists)
    if not len(layers):
        path.unlink(missing_ok=True)
        return b""
    return write_holders(path, [host.peers for host in beyond], layers, hosts, told)


def _near(members: Members, describe: Callable[[], HostRecord]) -> list[HostRecord]:
    return near(describe(), [member.record for member in members.alive()], partial(_order, members.own))


def _order(own: str, other: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{own} {other}".encode(), digest_size=8).digest(), "big")
