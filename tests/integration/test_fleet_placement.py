"""A machine is made on the host that it fits, whichever host is asked: real agents, a real NATS server, a real registry."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from castoff.agent.fleet.door import MakeOrder
from castoff.agent.main import Agent, running
from castoff.api.auth import Grant
from castoff.api.client import ApiClient
from castoff.config import Config
from castoff.errors import CastoffError, Invalid, Unavailable
from castoff.fleet.connection import Connection
from castoff.fleet.offers import Question, read_offer
from castoff.fleet.settings import FleetSettings, subject_word
from castoff.lifecycle.settings import AgentSettings
from castoff.peers.tls import client_context
from castoff.store.settings import StoreSettings
from daemons import Registry, free_port
from fleet_authority import Authority
from machines import busybox_image
from nats_servers import NatsServer, nats_server
from oci_builder import write_layout


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as started:
        yield started


@dataclass(frozen=True)
class Hosts:
    """How the hosts of one fleet are configured."""

    directory: Path
    url: str
    authority: Authority

    def config(self, name: str, region: str) -> Config:
        address = f"127.0.0.1:{free_port()}"
        peers = msgspec.structs.replace(self.authority.settings(name, address), url=f"https://{address}")
        return Config(
            state=self.directory / name,
            store=StoreSettings(backing="native"),
            agent=AgentSettings(listen="", region=region),
            peers=peers,
            fleet=FleetSettings(urls=(self.url,), host=name),
        )


@pytest.fixture
def hosts(scratch_xfs: Path, tmp_path: Path, server: NatsServer) -> Hosts:
    return Hosts(scratch_xfs, server.url, Authority(tmp_path, "fleet"))


@pytest.fixture(scope="session")
def image(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    layout = write_layout(tmp_path_factory.mktemp("image"), {"v1": busybox_image()})
    target = f"{registry.host}/placed:v1"
    command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:v1", f"docker://{target}"]
    subprocess.run(command, check=True, timeout=60)
    return target


async def ready(*agents: Agent) -> None:
    """Every host sees every other."""
    for agent in agents:
        async with ApiClient.open(socket=agent.socket) as api, asyncio.timeout(30):
            while len((await api.ask("GET", "/v1/fleet/hosts"))["hosts"]) < len(agents):
                await asyncio.sleep(0.05)


async def asked(agent: Agent, method: str, path: str, body: Any = None) -> Any:
    async with ApiClient.open(socket=agent.socket) as api:
        return await api.ask(method, path, body=body)


def machine(image: str, region: str = "", **guest: int) -> dict[str, Any]:
    return {"config": {"image": image, "guest": guest or {"cpus": 1, "memory_mb": 64}}, "region": region, "skip_launch": True}


async def test_a_machine_is_made_in_the_region_that_was_asked_for(hosts: Hosts, image: str) -> None:
    """With its app, and the app's secrets; asked for a second time under its id it is the same one."""
    one, two = hosts.config("one", "fra"), hosts.config("two", "nrt")
    async with running(one) as first, running(two) as second:
        await ready(first, second)
        await asked(first, "POST", "/v1/apps", {"name": "shop"})
        await asked(first, "POST", "/v1/apps/shop/secrets", {"values": {"KEY": "value"}})
        made = await asked(first, "POST", "/v1/apps/shop/machines", machine(image, "nrt"))
        assert made["region"] == "nrt"
        assert [found.id for found in second.machines.list("shop")] == [made["id"]]
        assert not first.machines.list("shop")
        assert [secret["name"] for secret in (await asked(second, "GET", "/v1/apps/shop/secrets"))["secrets"]] == ["KEY"]

        here = await asked(first, "POST", "/v1/apps/shop/machines", machine(image, "fra"))
        assert [found.id for found in first.machines.list("shop")] == [here["id"]]
        anywhere = await asked(first, "POST", "/v1/apps/shop/machines", machine(image))
        assert anywhere["region"] == "fra"


async def test_no_host_has_room(hosts: Hosts, image: str) -> None:
    """Said as clients expect it, and nothing is kept of what was promised."""
    one = hosts.config("one", "fra")
    async with running(one) as first:
        await ready(first)
        await asked(first, "POST", "/v1/apps", {"name": "shop"})
        with pytest.raises(Invalid, match="no host has room"):
            await asked(first, "POST", "/v1/apps/shop/machines", machine(image, cpus=1, memory_mb=8 << 20))
        with pytest.raises(Unavailable, match="no host of region 'mars'"):
            await asked(first, "POST", "/v1/apps/shop/machines", machine(image, "mars"))
        await asked(first, "POST", "/v1/apps/shop/machines", machine(image))


async def test_cut_off_machines_are_made_here(hosts: Hosts, server: NatsServer, image: str) -> None:
    one = hosts.config("one", "fra")
    async with running(one) as first:
        await ready(first)
        await asked(first, "POST", "/v1/apps", {"name": "shop"})
        server.kill()
        made = await asked(first, "POST", "/v1/apps/shop/machines", machine(image))
        assert [found.id for found in first.machines.list("shop")] == [made["id"]]
        with pytest.raises(CastoffError):
            await asked(first, "POST", "/v1/apps/shop/machines", machine(image, "nrt"))


def order(image: str, **what: Any) -> bytes:
    body = msgspec.Raw(msgspec.json.encode(machine(image)))
    known = {"grant": Grant(), "app": "shop", "machine": "a" * 14, "promise": "b" * 16, "body": body}
    return msgspec.json.encode(MakeOrder(**{**known, **what}))


async def test_only_hosts_of_the_fleet_come_in(hosts: Hosts, tmp_path: Path, image: str) -> None:
    """Without a certificate, or with one of another authority, nobody; and no more than a client's own grant allows."""
    one = hosts.config("one", "fra")
    strangers = Authority(tmp_path, "strangers").settings("mallory")
    async with running(one) as first:
        await ready(first)
        url = f"{one.peers.url}/v1/hosts"
        wrong = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        wrong.check_hostname, wrong.verify_mode = False, ssl.CERT_NONE
        foreign = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        foreign.check_hostname, foreign.verify_mode = False, ssl.CERT_NONE
        assert strangers.certificate is not None
        foreign.load_cert_chain(strangers.certificate, strangers.key)
        async with aiohttp.ClientSession() as session:
            for context in (wrong, foreign):
                with pytest.raises((aiohttp.ClientError, OSError)):
                    await session.post(f"{url}/machines", data=order(image), ssl=context)
            member = client_context(one.peers)
            assert member is not None
            for what in ({"grant": Grant(read_only=True)}, {"grant": Grant(app="other")}):
                async with session.post(f"{url}/machines", data=order(image, **what), ssl=member) as answer:
                    assert answer.status in (400, 403, 503)
            async with session.post(f"{url}/machines", data=order(image), ssl=member) as answer:
                assert (answer.status, "promised" in await answer.text()) == (422, True)
            async with session.get(f"{url}/api/v1/apps", ssl=member) as answer:
                assert answer.status == 400
            async with session.post(f"{url}/machines", data=b'{"grant": {}}', ssl=member) as answer:
                assert answer.status == 400
        assert not first.machines.list()


async def test_an_order_that_is_repeated_makes_one_machine(hosts: Hosts, image: str) -> None:
    one, two = hosts.config("one", "fra"), hosts.config("two", "fra")
    async with running(one) as first, running(two) as second:
        await ready(first, second)
        member = client_context(one.peers)
        assert member is not None
        seen = []
        async with aiohttp.ClientSession() as session:
            for agent, config in ((first, one), (first, one), (second, two)):
                promise = "b" * 16 if seen else await promised(hosts.url, agent)
                data = order(image, promise=promise)
                async with session.post(f"{config.peers.url}/v1/hosts/machines", data=data, ssl=member) as answer:
                    seen.append((answer.status, (await answer.json()).get("id")))
        assert seen == [(200, "a" * 14), (200, "a" * 14), (422, None)]
        assert len(first.machines.list()) == 1


async def promised(url: str, agent: Agent) -> str:
    """Room that an agent promised to somebody who asked."""
    host = (await asked(agent, "GET", "/v1/fleet"))["host"]
    async with Connection.open(FleetSettings(urls=(url,))) as connection:
        async with asyncio.timeout(10):
            while not connection.is_connected:
                await asyncio.sleep(0.02)
        question = msgspec.json.encode(Question(id="c" * 16, image="any"))
        place = connection.subject("place", subject_word("fra"))
        offers = [read_offer(data) async for data in connection.ask_all(place, question, within=0.5)]
        return next(offer.promise for offer in offers if offer.host == host)
