"""Hosts of a fleet see one another, over real NATS servers that come and go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from castoff.errors import Invalid, Unavailable
from castoff.fleet.connection import Connection
from castoff.fleet.members import Members
from castoff.fleet.record import HostRecord, read_record
from castoff.fleet.settings import FleetSettings, check_fleet
from nats_servers import NatsServer, nats_cluster, nats_server

BEAT = 0.2


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path) as running:
        yield running


def host(number: int) -> HostRecord:
    return HostRecord(id=f"{number:016x}", name=f"host-{number}", region="fra")


@contextlib.asynccontextmanager
async def joined(urls: str | tuple[str, ...], number: int, told: list[str] | None = None, **more: int) -> AsyncIterator[Members]:
    urls = (urls,) if isinstance(urls, str) else urls
    notice = (told if told is not None else []).append
    settings = FleetSettings(urls=urls, host=f"host-{number}", **more)
    async with (
        Connection.open(settings, notice) as connection,
        Members.open(connection, lambda: host(number), notice=notice, beat=BEAT) as members,
    ):
        yield members


def names(members: Members) -> list[str]:
    return [member.record.name for member in members.alive()]


async def becomes(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def test_hosts_come_and_go(server: NatsServer) -> None:
    async with joined(server.url, 1) as one:
        async with joined(server.url, 2) as two:
            await becomes(lambda: names(one) == names(two) == ["host-1", "host-2"])
            assert not one.is_cut_off
        await becomes(lambda: names(one) == ["host-1"], 2)  # it took its leave: nobody waits for its silence


async def test_a_silent_host_is_gone(server: NatsServer) -> None:
    """It ends without a word: its beats stop."""
    async with joined(server.url, 1) as one, contextlib.AsyncExitStack() as stack:
        connection = await stack.enter_async_context(Connection.open(FleetSettings(urls=(server.url,))))
        await becomes(lambda: connection.is_connected)
        bucket = await connection.bucket("hosts", durable=False, most_bytes=1 << 20, value_bytes=1 << 14)
        await bucket.put(host(2).id, b'{"id": "0000000000000002", "name": "host-2", "region": "fra"}')
        await becomes(lambda: names(one) == ["host-1", "host-2"])
        await becomes(lambda: names(one) == ["host-1"])


async def test_what_strangers_write_is_not_believed(server: NatsServer) -> None:
    """Wrong types, lying ids, too much: told once, and nothing else."""
    told: list[str] = []
    async with joined(server.url, 1, told) as one, Connection.open(FleetSettings(urls=(server.url,))) as connection:
        await becomes(lambda: connection.is_connected and names(one) == ["host-1"])
        bucket = await connection.bucket("hosts", durable=False, most_bytes=1 << 20, value_bytes=1 << 14)
        for key, value in (("2" * 16, b"{"), ("3" * 16, b'{"id": "4444444444444444", "name": "x", "region": "y"}')):
            await bucket.put(key, value)
            await bucket.put(key, value)
        await becomes(lambda: len(told) == 2)
        await asyncio.sleep(3 * BEAT)
        assert names(one) == ["host-1"]
        assert len(told) == 2
        assert all("not believed" in line for line in told)


async def test_nats_is_started_again(server: NatsServer) -> None:
    """Cut off, and back with nothing lost: what lay in the servers' memory is put there again."""
    told: list[str] = []
    async with joined(server.url, 1, told) as one, joined(server.url, 2) as two:
        await becomes(lambda: names(one) == names(two) == ["host-1", "host-2"])
        server.kill()
        await becomes(lambda: one.is_cut_off and names(one) == [])
        assert any("cut off" in line for line in told)
        server.start()
        await becomes(lambda: names(one) == names(two) == ["host-1", "host-2"])
        assert any("back in its fleet" in line for line in told)


async def test_nats_comes_later(daemon_directory: Path) -> None:
    """A host starts without it, at once, and joins when it is there."""
    server = NatsServer(daemon_directory / "nats-later")
    try:
        async with joined(server.url, 1) as one:
            assert one.is_cut_off
            with pytest.raises(Unavailable, match="cut off"):
                one._connection.jetstream()
            server.start()
            await becomes(lambda: names(one) == ["host-1"])
    finally:
        server.kill()


async def test_one_of_three_servers_dies(daemon_directory: Path) -> None:
    with nats_cluster(daemon_directory / "nats-cluster") as servers:
        urls = tuple(server.url for server in servers)
        async with joined(urls, 1, replicas=3) as one, joined(urls[::-1], 2, replicas=3) as two:
            await becomes(lambda: names(one) == names(two) == ["host-1", "host-2"], 60)
            servers[0].kill()
            await asyncio.sleep(6 * BEAT)
            await becomes(lambda: names(one) == names(two) == ["host-1", "host-2"], 60)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (FleetSettings(urls=("http://127.0.0.1:4222",)), "no URL of a NATS server"),
        (FleetSettings(urls=("nats://10.0.0.1:4222",)), "in the clear"),
        (FleetSettings(urls=("tls://10.0.0.1:4222",)), "nothing says who"),
        (FleetSettings(urls=("nats://127.0.0.1:1",), name="a.b"), "at most 40 letters"),
        (FleetSettings(urls=("nats://127.0.0.1:1",), key=Path("/key")), "belong together"),
    ],
)
def test_settings_that_are_refused(settings: FleetSettings, what: str) -> None:
    with pytest.raises(Invalid, match=what):
        check_fleet(settings)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'{"id": 7}', b"[" * 100_000, b'{"id": "0000000000000001"}', b"\xff" * 8])
def test_records_that_are_none(data: bytes) -> None:
    with pytest.raises(Invalid):
        read_record("0" * 15 + "1", data)
