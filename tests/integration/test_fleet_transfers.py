"""What travels between hosts, as people see it: over the API, in a stream, and on the page."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from castoff.agent.main import Agent, running
from castoff.api.client import ApiClient
from castoff.config import Config
from castoff.errors import Conflict
from castoff.fleet.connection import Connection
from castoff.fleet.settings import FleetSettings
from castoff.fleet.transfers import Sending, Transfers
from castoff.lifecycle.settings import AgentSettings
from castoff.peers.frames import indexed
from castoff.peers.peer import Peer, peer_transport
from castoff.peers.settings import PeerSettings
from castoff.sources.source import ByteRange
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from chromium import chromium, tab
from daemons import free_port
from nats_servers import nats_server
from packed_layer import PackedLayer, random_files
from peer_hosts import put, real_pack


@dataclass(frozen=True, slots=True)
class Two:
    """Agents of one fleet; the first has a layer."""

    first: Agent
    second: Agent
    configs: tuple[Config, Config]
    layer: PackedLayer

    async def fetch(self) -> None:
        """The second has the layer from the first, as its hydrator would."""
        giver, taker = self.configs
        pack = self.layer.index.locations.blobs[0]
        transport = peer_transport(lambda: None)
        try:
            peer = Peer(giver.peers.url, indexed({pack: self.layer.index}), transport, taker.peers.url)
            ranges = [
                ByteRange(int(self.layer.index.locations.offset[n]), int(self.layer.index.locations.length[n]))
                for n in self.layer.packed
            ]
            assert sum([len(piece.data) async for piece in peer.read(pack, ranges)]) > 100_000
        finally:
            await transport.close()


def _configured(directory: Path, name: str, url: str) -> Config:
    address = f"127.0.0.1:{free_port()}"
    return Config(
        state=directory / name,
        store=StoreSettings(backing="native"),
        agent=AgentSettings(listen=f"127.0.0.1:{free_port()}", region="fra"),
        peers=PeerSettings(listen=address, url=f"http://{address}"),
        fleet=FleetSettings(urls=(url,) if url else (), host=name),
    )


@pytest.fixture
async def two(scratch_xfs: Path, tmp_path: Path) -> AsyncIterator[Two]:
    layer = await real_pack(tmp_path / "layer", random_files(7, chunks=3))
    with nats_server(tmp_path / "nats") as server:
        one, other = _configured(scratch_xfs, "one", server.url), _configured(scratch_xfs, "two", server.url)
        async with running(one) as first, running(other) as second:
            await put(Store.open(one.state, one.store), layer)
            await told(second, "hosts", lambda rows: len(rows) == 2)
            yield Two(first, second, (one, other), layer)


async def told(agent: Agent, what: str, enough: Any) -> Any:
    """What an agent says of its fleet, once it is enough."""
    async with ApiClient.open(socket=agent.socket) as client, asyncio.timeout(30):
        while not enough(rows := (await client.ask("GET", f"/v1/fleet/{what}"))[what]):
            await asyncio.sleep(0.05)
    return rows


async def seen(session: aiohttp.ClientSession, agent: Agent) -> AsyncIterator[Any]:
    """What browsers are told."""
    async with session.get(
        f"http://{agent.address}/v1/fleet/stream", headers={"Authorization": f"Bearer {agent.token}"}
    ) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        async for line in response.content:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])


async def test_what_travels_is_told_on_all_hosts(two: Two) -> None:
    """Also on the one that takes, whose fetches are other processes; by the names of both."""
    await two.fetch()
    for agent in (two.first, two.second):
        (row,) = await told(agent, "transfers", lambda rows: rows and rows[0]["rate"])
        assert (row["from"], row["to"]) == ("one", "two")
        assert row["sent"] > 100_000
    await told(two.second, "transfers", lambda rows: rows and not rows[0]["rate"])  # it is over


async def test_browsers_hear_of_it(two: Two) -> None:
    """One event at once, and one when something is new; who may look at one app only may not look."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(40):
        async with contextlib.aclosing(seen(session, two.second)) as events:
            found = await anext(events)
            assert (found["fleet"], found["count"], found["transfers"]) == ("castoff", 2, [])
            assert [host["name"] for host in found["hosts"]] == ["one", "two"]
            await two.fetch()
            while not found["transfers"]:
                found = await anext(events)
            assert found["transfers"][0]["to"] == "two"
        async with session.get(f"http://{two.second.address}/v1/fleet/stream") as response:
            assert response.status == 401
        async with ApiClient.open(socket=two.second.socket) as client:
            await client.ask("POST", "/v1/apps", body={"app_name": "mine", "org_slug": "personal"})
        grant = json.dumps({"app": "mine"})
        connector = aiohttp.UnixConnector(str(two.second.socket))
        async with aiohttp.ClientSession(connector=connector) as local:
            for path in ("stream", "transfers", "hosts"):
                async with local.get(f"http://agent/v1/fleet/{path}", headers={"castoff-grant": grant}) as response:
                    assert response.status == 403


async def test_the_agent_ends_with_browsers_that_look(scratch_xfs: Path, tmp_path: Path) -> None:
    """It does not wait for them."""
    with nats_server(tmp_path / "nats") as server:
        async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
            async with running(_configured(scratch_xfs, "one", server.url)) as agent:
                events = await stack.enter_async_context(contextlib.aclosing(seen(session, agent)))
                await anext(events)
                begun = asyncio.get_running_loop().time()
            assert asyncio.get_running_loop().time() - begun < 4.5  # the server's grace is 5 seconds


async def test_no_fleet(scratch_xfs: Path) -> None:
    async with running(_configured(scratch_xfs, "alone", "")) as agent, ApiClient.open(socket=agent.socket) as client:
        for path in ("stream", "transfers"):
            with pytest.raises(Conflict, match="of no fleet"):
                await client.ask("GET", f"/v1/fleet/{path}")


async def test_what_strangers_say_that_they_send(tmp_path: Path) -> None:
    """Too many, wrong kinds, negative counts, text for terminals: told once, and nobody sends."""
    told: list[str] = []
    good = [["http://127.0.0.1:1", 5, 1]]
    bad = [
        good * 33,
        [["http://\x1b[2J", 1, 1]],
        [["http://one", -1, 1]],
        {"to": "x"},
        [["x" * 300, 1, 1]],
        [["http://one", 1 << 61, 1]],
    ]
    with nats_server(tmp_path / "nats") as server:
        settings = FleetSettings(urls=(server.url,))
        async with (
            Connection.open(settings) as connection,
            Transfers.open(
                connection, "1" * 16, lambda: [Sending("http://127.0.0.1:2", 7, 1)], notice=told.append, every=0.1
            ) as transfers,
            asyncio.timeout(30),
        ):
            while not transfers.now():
                await asyncio.sleep(0.02)
            bucket = await connection.jetstream().key_value(connection.bucket_name("transfers"))
            for number, value in enumerate(bad):
                await bucket.put(f"{number + 2:016x}", json.dumps(value).encode())
            await bucket.put("f" * 16, json.dumps(good).encode())
            while "f" * 16 not in transfers.now():
                await asyncio.sleep(0.02)
            assert set(transfers.now()) == {"1" * 16, "f" * 16}
            assert len(told) == len(bad)
            assert all(line.isprintable() for line in told)


@pytest.mark.chromium
@pytest.mark.skipif(chromium() is None, reason="no Chromium: apt-get install chromium-headless-shell")
async def test_the_page_shows_the_fleet(two: Two, tmp_path: Path) -> None:
    """Hosts, and a transfer as it happens, without a reload; on a phone, too."""
    async with tab() as browser:
        await browser.look(390, 844)
        await browser.open(f"http://{two.second.address}/#/fleet")
        await browser.until("document.activeElement.id === 'token'")
        await browser.type(two.second.token)
        await browser.press("Enter")
        await browser.until("document.querySelectorAll('.hosts li').length === 2")
        assert await browser.run("document.querySelector('main').innerText.includes('Nothing travels')")
        await browser.run("document.querySelector('.hosts summary').click()")
        await two.fetch()
        await browser.until("document.querySelector('.transfers .ref')?.textContent === 'one → two'")
        assert await browser.run("document.querySelectorAll('.hosts details[open]').length") == 1  # what was opened stays open
        assert await browser.run("document.documentElement.scrollWidth") <= 390
        assert len(await browser.shoot(tmp_path / "fleet.png", whole=True)) > 10_000
        assert [line for line in browser.said if "401" not in line] == []
