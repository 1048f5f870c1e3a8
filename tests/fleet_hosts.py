"""Hosts of a fleet in one process, for tests: real stores, real doors for peers, a real NATS, one registry for all."""

from __future__ import annotations

import contextlib
import hashlib
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from castoff.agent.fleet.builds import FleetBuilds
from castoff.agent.fleet.pace import Pace, local_time
from castoff.agent.fleet.working import working
from castoff.agent.peers.server import serving_peers
from castoff.artifact.keys import PRIVATE_PREFIX, alone, host_key, keys_directory
from castoff.config import Config
from castoff.errors import Unavailable
from castoff.fleet.cells import Bucket, BucketPlace
from castoff.fleet.connection import Connection
from castoff.fleet.orderbook import OrderBook
from castoff.fleet.record import HostRecord
from castoff.fleet.settings import FleetSettings
from castoff.host import Host
from castoff.peers.settings import PeerSettings
from castoff.store.durable import replace_file
from castoff.store.settings import StoreSettings

__all__ = ["PACE", "TTL", "FleetHost", "Severed", "fleet_host", "share_key"]

TTL = 1.5
"""Seconds that leases last in tests."""
PACE = Pace(look=1.0, back_off=0.1, tell=0.05, ttl=TTL, lead=0.05, tags=0.2)


class Severed(Bucket):
    """A bucket that can be cut off, as it is for a host whose process is killed: nothing of it is heard any more."""

    is_cut = False

    async def put(self, key: str, value: bytes, after: int) -> int | None:
        if self.is_cut:
            raise Unavailable("cut off")
        return await super().put(key, value, after)


@dataclass
class FleetHost:
    """A host that has joined."""

    host: Host
    connection: Connection
    record: HostRecord
    bucket: Severed
    builds: FleetBuilds
    book: OrderBook
    said: list[str] = field(default_factory=list)

    @property
    def segments(self) -> dict[str, str]:
        """The sha256 of each layer's segment, by its directory's name."""
        found = {}
        for layer in (self.host.store.root / "layers").iterdir():
            with (layer / "segment").open("rb") as file:
                found[layer.name] = hashlib.file_digest(file, "sha256").hexdigest()
        return found


def share_key(state: Path, key: bytes) -> None:
    """Has a host sign with a key that others have too."""
    directory = keys_directory(state)
    with alone(directory):
        text = urlsafe_b64encode(key).decode().rstrip("=")
        replace_file(directory / "host.key", f"{PRIVATE_PREFIX}{text}\n".encode(), mode=0o600)


@contextlib.asynccontextmanager
async def fleet_host(
    root: Path,
    nats: str,
    number: int,
    *,
    key: bytes | None = bytes(range(32)),
    serves: bool = True,
    region: str = "fra",
    labels: dict[str, str] | None = None,
    wait: float = 30.0,
    works: bool = False,
    now: Callable[[], datetime] = local_time,
    replicas: int = 1,
) -> AsyncIterator[FleetHost]:
    """A host of the fleet, for the block; its state stays, for when it comes again.

    Args:
        root: Directory of all hosts, on a filesystem that reflinks.
        nats: The servers, with spaces between.
        number: Of the host, which names it.
        key: What it signs with, the same on all hosts by default; None: one of its own.
        serves: Whether it has a door for others.
        region: Where it is.
        labels: What orders choose it by.
        wait: Seconds that its builds wait for others.
        works: Whether it does its part of orders.
        now: Its clock.
        replicas: Servers that keep what the fleet writes.
    """
    state = root / f"host-{number}"
    config = Config(state=state, store=StoreSettings(backing="native"))
    said: list[str] = []
    record = HostRecord(id=f"{number:016x}", name=f"host-{number}", region=region, labels=labels or {})
    async with contextlib.AsyncExitStack() as stack:
        connection = await stack.enter_async_context(
            Connection.open(FleetSettings(urls=tuple(nats.split()), replicas=replicas), said.append)
        )
        place = BucketPlace(connection, "builds", ttl=600, most_bytes=1 << 20, value_bytes=8192)
        found = record
        bucket = Severed(place)
        builds = FleetBuilds(bucket, lambda: found, notice=said.append, ttl=TTL, wait=wait)
        host = await stack.enter_async_context(Host.open(config=config, notice=said.append, builds=builds))
        if key is not None:
            share_key(state, key)
        host_key(state)
        if serves:
            listen = PeerSettings(listen="127.0.0.1:0")
            address = await stack.enter_async_context(serving_peers(listen, host.store, lambda: False))
            found = HostRecord(id=record.id, name=record.name, region=region, labels=labels or {}, peers=f"http://{address}")
        if works:
            await stack.enter_async_context(working(connection, lambda: found, host, notice=said.append, pace=PACE, now=now))
        yield FleetHost(host, connection, found, bucket, builds, OrderBook(connection), said)
