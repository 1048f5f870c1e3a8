"""Agents of one fleet: real ones, over a real NATS server; each says what it has, and its fetches ask the others."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from castoff.agent.main import Agent, running
from castoff.api.client import ApiClient
from castoff.config import Config
from castoff.errors import Conflict
from castoff.fleet.settings import FleetSettings
from castoff.host import Host
from castoff.lifecycle.settings import AgentSettings
from castoff.peers.settings import PeerSettings
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from daemons import free_port
from nats_servers import NatsServer, nats_server
from packed_layer import random_files
from peer_hosts import put, real_pack


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as started:
        yield started


def configured(directory: Path, name: str, url: str, *, region: str = "fra", zone: str = "") -> Config:
    address = f"127.0.0.1:{free_port()}"
    return Config(
        state=directory / name,
        store=StoreSettings(backing="native"),
        agent=AgentSettings(listen="", region=region),
        peers=PeerSettings(listen=address, url=f"http://{address}"),
        fleet=FleetSettings(urls=(url,) if url else (), host=name, zone=zone, labels={"disk": "nvme"}),
    )


@contextlib.asynccontextmanager
async def client(agent: Agent) -> AsyncIterator[ApiClient]:
    async with ApiClient.open(socket=agent.socket) as opened:
        yield opened


async def answers(agent: Agent, path: str, enough: Any, seconds: float = 30) -> Any:
    """The agent's answer, once it is enough."""
    async with client(agent) as asker, asyncio.timeout(seconds):
        while not enough(answer := await asker.ask("GET", path)):
            await asyncio.sleep(0.05)
    return answer


def known(config: Config) -> list[str]:
    path = config.state / "agent" / "peers"
    return path.read_text().split() if path.exists() else []


async def test_hosts_know_what_each_has(scratch_xfs: Path, tmp_path: Path, server: NatsServer) -> None:
    """Two of a region and one of another: who is there, who has which layer, and whom fetches ask."""
    layer = await real_pack(tmp_path / "layer", random_files(3, chunks=2))
    one = configured(scratch_xfs, "one", server.url, zone="a")
    two = configured(scratch_xfs, "two", server.url, zone="b")
    far = configured(scratch_xfs, "far", server.url, region="nrt")
    async with running(one) as first, running(two) as second, running(far) as third:
        for agent in (first, second, third):
            found = await answers(agent, "/v1/fleet/hosts", lambda answer: len(answer["hosts"]) == 3)
            assert [host["name"] for host in found["hosts"]] == ["far", "one", "two"]
        assert [(host["this"], host["region"], host["zone"]) for host in found["hosts"]] == [
            (True, "nrt", ""),
            (False, "fra", "a"),
            (False, "fra", "b"),
        ]
        assert all(host["cpus"] and host["memory_mb"] and host["labels"] == {"disk": "nvme"} for host in found["hosts"])

        assert known(one) == [two.peers.url]  # far is of another region
        assert known(two) == [one.peers.url]
        assert known(far) == []
        async with Host.open(config=one) as host:
            assert host.providers.peers.known == one.state / "agent" / "peers"

        async with client(third) as asker:
            listed = await asker.ask("GET", "/v1/platform/regions")
            assert (listed["nearest"], [region["code"] for region in listed["regions"]]) == ("nrt", ["nrt", "fra"])
            wanted = {"org_slug": "personal", "count": 2, "region": "fra", "compute": {"cpus": 1, "memory_mb": 256}}
            placed = await asker.ask("POST", "/v1/platform/placements", body=wanted)
            assert placed["regions"] == [{"region": "fra", "count": 2, "concurrency": 2}]
            nowhere = await asker.ask("POST", "/v1/platform/placements", body={**wanted, "compute": {"cpus": 128}})
            assert nowhere["regions"] == []

        await put(Store.open(two.state, two.store), layer)
        found = await answers(first, "/v1/fleet/layers", lambda answer: answer["total"] == 1)
        assert found["layers"] == [{"layer": layer.index.diff_id.hex[:16], "whole": ["two"], "part": []}]
        status = await answers(first, "/v1/fleet", lambda answer: answer["seen"])
        assert (status["fleet"], status["hosts"], status["layers"]) == ("castoff", 3, 1)


async def test_cut_off_it_goes_on(scratch_xfs: Path, server: NatsServer) -> None:
    """Without NATS the API answers, and the hosts that were known are asked as before: they may be there still."""
    one, two = configured(scratch_xfs, "one", server.url), configured(scratch_xfs, "two", server.url)
    async with running(one) as first, running(two):
        await answers(first, "/v1/fleet/hosts", lambda answer: len(answer["hosts"]) == 2)
        server.kill()
        found = await answers(first, "/v1/fleet", lambda answer: not answer["seen"])
        assert not found["connected"]
        assert known(one) == [two.peers.url]
        async with client(first) as asker:
            assert await asker.ask("POST", "/v1/apps", body={"name": "still"}) is not None
        server.start()
        await answers(first, "/v1/fleet/hosts", lambda answer: len(answer["hosts"]) == 2)


async def test_a_host_of_no_fleet(scratch_xfs: Path) -> None:
    """It says so, and what an agent of a fleet left is not believed any more."""
    config = configured(scratch_xfs, "alone", "")
    (config.state / "agent").mkdir(parents=True)
    (config.state / "agent" / "peers").write_text("http://127.0.0.1:1\n")
    async with running(config) as agent, client(agent) as asker:
        with pytest.raises(Conflict, match="of no fleet"):
            await asker.ask("GET", "/v1/fleet")
        async with Host.open(config=config) as host:
            assert host.providers.peers.known is None


async def test_the_host_keeps_its_id(scratch_xfs: Path, server: NatsServer) -> None:
    """Over restarts, and others see it go and come."""
    config = configured(scratch_xfs, "one", server.url)
    seen = []
    for _ in range(2):
        async with running(config) as agent:
            seen.append((await answers(agent, "/v1/fleet", lambda answer: answer["seen"]))["host"])
    assert seen[0] == seen[1]
    assert json.dumps(seen[0]).strip('"').isalnum()
