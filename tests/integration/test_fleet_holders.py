"""Which host has which layers, over real NATS servers: told when it changes, believed within bounds, told again when lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from castoff.agent.fleet.whom import keep_holders, keep_neighbours
from castoff.fleet.connection import Connection, end
from castoff.fleet.holders import Holders
from castoff.fleet.inventory import Inventory
from castoff.fleet.members import Members
from castoff.fleet.record import HostRecord
from castoff.fleet.settings import FleetSettings
from castoff.fleet.told import telling as told_by
from castoff.image.digest import Digest
from castoff.peers.known import HOLDERS, KnownHolders, KnownPeers
from castoff.peers.settings import KNOWN_PEERS
from nats_servers import NatsServer, nats_cluster, nats_server

ONE, TWO = "1" * 16, "2" * 16
LOOK = 0.1
LAYERS = [Digest.of(bytes([number])) for number in range(8)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as running:
        yield running


class Shelf:
    """A host's layers: those of ``whole`` and ``part``."""

    def __init__(self, *whole: Digest) -> None:
        self.whole, self.part = set(whole), set[Digest]()

    async def __call__(self) -> Inventory:
        return Inventory.of(self.whole, self.part)


@contextlib.asynccontextmanager
async def telling(
    urls: Sequence[str], own: str, shelf: Shelf, told: list[str] | None = None, **more: int
) -> AsyncIterator[Holders]:
    notice = (told if told is not None else []).append
    settings = FleetSettings(urls=tuple(urls), **more)
    async with (
        Connection.open(settings, notice) as connection,
        Holders.open(connection, own, shelf, notice=notice, look=LOOK) as holders,
    ):
        yield holders


def who(holders: Holders, layer: Digest) -> tuple[set[str], set[str]]:
    """The hosts that have a layer whole, and those that have it in part."""
    lists = holders.lists()
    return {host for host in lists if lists[host].has(layer)}, {host for host in lists if lists[host].begins(layer)}


async def becomes(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def test_layers_come_and_go(server: NatsServer) -> None:
    """In part, whole, and gone when the host has thrown it away; who has which is one question."""
    first, second = Shelf(LAYERS[0]), Shelf(LAYERS[0])
    async with telling([server.url], ONE, first) as one, telling([server.url], TWO, second) as two:
        await becomes(lambda: who(one, LAYERS[0]) == who(two, LAYERS[0]) == ({ONE, TWO}, set()))
        second.part.add(LAYERS[1])
        await becomes(lambda: who(one, LAYERS[1]) == (set(), {TWO}))
        second.part.clear()
        second.whole = {LAYERS[1]}
        await becomes(lambda: who(one, LAYERS[1]) == ({TWO}, set()))
        assert who(one, LAYERS[0]) == ({ONE}, set())


async def test_what_strangers_write_is_not_believed(server: NatsServer) -> None:
    """What is no list, lists of what is no host, and too much: told once, and the list before it stays."""
    told: list[str] = []
    async with (
        telling([server.url], ONE, Shelf(*LAYERS), told) as one,
        telling([server.url], TWO, Shelf(*LAYERS)),
        Connection.open(FleetSettings(urls=(server.url,))) as stranger,
    ):
        await becomes(lambda: set(one.lists()) == {ONE, TWO})
        bucket = await stranger.bucket("layers", most_bytes=1 << 20, value_bytes=1 << 10)
        good = Inventory.of(LAYERS).to_bytes()
        for key, value in ((TWO, b"cin1"), (TWO, good[:-1]), ("x\x1b[2J", good), ("3" * 16, b"\xff" * 1000)):
            await bucket.put(key, value, validate_keys=False)
        with pytest.raises(Exception, match="maximum"):  # the servers keep the bound of one value
            await bucket.put("4" * 16, bytes(900_000))
        await becomes(lambda: len(told) == 3)
        assert all(line.startswith("not believed") and line.isprintable() for line in told), told
        assert set(one.lists()) == {ONE, TWO}
        assert who(one, LAYERS[3]) == ({ONE, TWO}, set())


async def test_a_large_region_has_what_few_of_it_have(server: NatsServer, tmp_path: Path) -> None:
    """A layer of a host that is not asked for everything: fetches learn that it has it; of another region's they do not."""

    def record(number: int) -> HostRecord:
        region = "fra" if number <= 30 else "nrt"
        return HostRecord(id=f"{number:016x}", name=str(number), region=region, peers=f"https://host-{number}:4290")

    def describe() -> HostRecord:
        return record(1)

    async with (
        Connection.open(FleetSettings(urls=(server.url,))) as connection,
        Members.open(connection, describe, beat=LOOK) as members,
        Holders.open(connection, record(1).id, Shelf(), look=LOOK) as holders,
        asyncio.timeout(30),
    ):
        while not (members.alive() and holders.lists()):
            await asyncio.sleep(0.02)
        hosts, layers = [await connection.jetstream().key_value(connection.bucket_name(name)) for name in ("hosts", "layers")]
        for number in range(2, 32):
            await layers.put(record(number).id, Inventory.of([LAYERS[0]] if number == 31 else [layer_of(number)]).to_bytes())
        works = [keep_neighbours(members, describe, tmp_path), keep_holders(members, holders, describe, tmp_path, LOOK)]
        tasks = [asyncio.create_task(work) for work in works]
        known, others = KnownPeers(tmp_path / KNOWN_PEERS), KnownHolders(tmp_path / HOLDERS)
        near: tuple[str, ...] = ()
        while len(near) < 24 or not any(others.of(layer_of(number)) for number in range(2, 31)):
            for number in range(2, 32):
                await hosts.put(record(number).id, msgspec.json.encode(record(number)))
            near = known.urls()
        far = {number for number in range(2, 31) if record(number).peers not in near}
        assert len(far) == 5
        assert {number for number in range(2, 31) if others.of(layer_of(number))} <= far
        assert all(others.of(layer_of(number)) in ([record(number).peers], []) for number in far)
        assert others.of(LAYERS[0]) == []
        await end(*tasks)


def layer_of(number: int) -> Digest:
    return Digest.of(b"only on %d" % number)


async def test_nats_is_started_again(server: NatsServer) -> None:
    """A host that watched before hears what changes after."""
    first, second = Shelf(LAYERS[0]), Shelf(LAYERS[1])
    async with telling([server.url], ONE, first) as one, telling([server.url], TWO, second) as two:
        await becomes(lambda: len(one.lists()) == len(two.lists()) == 2)
        server.kill()
        first.whole.add(LAYERS[2])
        server.start()
        second.whole.add(LAYERS[3])
        await becomes(lambda: who(two, LAYERS[2]) == ({ONE}, set()) and who(one, LAYERS[3]) == ({TWO}, set()), 60)


async def test_the_servers_lost_everything(daemon_directory: Path) -> None:
    """All that was told is told again, by hosts whose lists have not changed."""
    with nats_server(daemon_directory / "nats-before") as before:
        port = before.port
        async with telling([before.url], ONE, Shelf(LAYERS[0])) as one:
            await becomes(lambda: set(one.lists()) == {ONE})
            before.kill()
            after = NatsServer(daemon_directory / "nats-after", port=port)
            after.start()
            try:
                async with telling([after.url], TWO, Shelf(LAYERS[1])) as two:
                    await becomes(lambda: set(one.lists()) == set(two.lists()) == {ONE, TWO}, 60)
            finally:
                after.kill()


async def test_the_bucket_is_gone(server: NatsServer) -> None:
    """Servers that stay in reach lost it: noticed, made and filled again."""
    async with telling([server.url], ONE, Shelf(LAYERS[0])) as one, telling([server.url], TWO, Shelf(LAYERS[1])) as two:
        await becomes(lambda: len(one.lists()) == len(two.lists()) == 2)
        async with Connection.open(FleetSettings(urls=(server.url,))) as operator:
            await becomes(lambda: operator.is_connected)
            await operator.jetstream().delete_key_value(operator.bucket_name("layers"))
            async with telling([server.url], "3" * 16, Shelf(LAYERS[2])) as three:
                await becomes(lambda: len(three.lists()) == 3)


@pytest.mark.parametrize("forget", [True, False])
async def test_what_is_not_told_again(server: NatsServer, forget: bool) -> None:
    """It is forgotten where that is wanted; what is told is told again before."""
    heard: dict[str, bytes] = {}

    def hear(host: str, data: bytes) -> None:
        heard[host] = data

    async def say() -> bytes:
        return b"here"

    bounds = {"every": LOOK, "most_bytes": 1 << 20, "value_bytes": 1 << 10}
    async with (
        Connection.open(FleetSettings(urls=(server.url,))) as connection,
        told_by(connection, "things", ONE, say, hear, forget=forget, anew=0.4, **bounds),
    ):
        await becomes(lambda: heard == {ONE: b"here"})
        bucket = await connection.jetstream().key_value(connection.bucket_name("things"))
        await bucket.put(TWO, b"once")
        await becomes(lambda: heard == {ONE: b"here", TWO: b"once"})
        await asyncio.sleep(2.4)
        assert heard == {ONE: b"here", TWO: b"" if forget else b"once"}
        assert (await bucket.get(ONE)).value == b"here"


async def test_one_of_three_servers_dies(daemon_directory: Path) -> None:
    """Whichever a host was connected to."""
    with nats_cluster(daemon_directory / "nats-lists") as servers:
        urls = [server.url for server in servers]
        first, second = Shelf(LAYERS[0]), Shelf(LAYERS[1])
        async with telling(urls, ONE, first, replicas=3) as one, telling(urls[::-1], TWO, second, replicas=3) as two:
            await becomes(lambda: len(one.lists()) == len(two.lists()) == 2, 60)
            servers[0].kill()
            first.whole.add(LAYERS[2])
            second.whole.add(LAYERS[3])
            await becomes(lambda: who(two, LAYERS[2]) == ({ONE}, set()) and who(one, LAYERS[3]) == ({TWO}, set()), 60)
