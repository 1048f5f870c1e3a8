"""Machines of a fleet, asked for at any of its hosts: real agents, certificates and NATS; what they boot runs in memory."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from castoff.lifecycle.config import parse_config
from castoff.lifecycle.model import CreateRequest
from castoff.machine.model import MachineId
from fleet_agents import FleetAgent, agent_process, configured, fleet_agent
from fleet_authority import Authority
from nats_servers import NatsServer, nats_server

MACHINES = "/v1/apps/web/machines"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as started:
        yield started


def config_of(memory: int = 64, cpus: int = 1) -> dict[str, Any]:
    return {"image": "registry.example/web:1", "guest": {"cpus": cpus, "memory_mb": memory}}


async def becomes(condition: Callable[[], Awaitable[bool]], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)


async def settled(agents: list[FleetAgent], count: int) -> None:
    """All know one another."""

    async def known() -> bool:
        return all([len(await agent.hosts()) == count for agent in agents])

    await becomes(known)


@contextlib.asynccontextmanager
async def three(tmp_path: Path, server: NatsServer, **shares: float) -> AsyncIterator[list[FleetAgent]]:
    """Two hosts of fra and one of nrt, all with the app."""
    authority = Authority(tmp_path, "fleet")
    async with contextlib.AsyncExitStack() as stack:
        agents = []
        for name, region in (("a", "fra"), ("b", "fra"), ("c", "nrt")):
            made = configured(tmp_path, name, server.url, authority, region=region, cpu_share=shares.get(name, 4.0))
            agents.append(await stack.enter_async_context(fleet_agent(made)))
        await settled(agents, 3)
        for agent in agents:
            await agent.ask("POST", "/v1/apps", {"app_name": "web", "org_slug": "personal"}, status=201)
        yield agents


async def create(agent: FleetAgent, region: str = "", status: int = 200, **guest: int) -> Any:
    return await agent.ask("POST", MACHINES, {"config": config_of(**guest), "region": region}, status=status)


def home(agents: list[FleetAgent], machine: str) -> str:
    """The name of the one host that has a machine."""
    homes = [agent.name for agent in agents if agent.machines is not None and agent.machines.has(machine)]
    assert len(homes) == 1, homes
    return homes[0]


async def test_a_machine_of_another_host_is_used_from_any(tmp_path: Path, server: NatsServer) -> None:
    """Made at one, it lives at another by its region; all that is asked of it at a third comes to it at once."""
    async with three(tmp_path, server) as agents:
        a, b, c = agents
        await a.ask("POST", "/v1/apps/web/secrets", {"values": {"KEY": "of the app"}})
        made = await create(a, "nrt")
        one = f"{MACHINES}/{made['id']}"
        assert (home(agents, made["id"]), made["region"]) == ("c", "nrt")
        for agent in agents:
            assert (await agent.ask("GET", f"{one}/wait?state=started"))["ok"]
            shown = await agent.ask("GET", one)
            assert (shown["id"], shown["state"], shown["host_status"]) == (made["id"], "started", "ok")
        assert c.world.launches[0].env["KEY"] == "of the app"
        ran = await b.ask("POST", f"{one}/exec", {"command": ["echo", "hello"]})
        assert ran["stdout"] == "echo hello"

        lease = (await b.ask("POST", f"{one}/lease", {"ttl": 60}, status=201))["data"]["nonce"]
        assert (await a.response("POST", f"{one}/stop", {}))[0] == 409
        headers = {"Authorization": f"Bearer {a.token}", "fly-machine-lease-nonce": lease}
        async with a.session.post(f"{a.url}{one}/stop", json={}, headers=headers) as answer:
            assert answer.status == 200
        assert (await b.ask("GET", f"{one}/wait?state=stopped"))["ok"]
        assert (await b.ask("GET", f"{one}/events"))[0]["status"] == "stopped"
        assert (await a.response("GET", f"/v1/apps/other/machines/{made['id']}"))[0] == 404
        async with a.session.delete(f"{a.url}{one}?force=true", headers=headers) as answer:
            assert answer.status == 200
        for agent in agents:
            await becomes(lambda agent=agent: is_destroyed(agent, one))  # type: ignore[misc]
        await a.ask("GET", f"{MACHINES}/{'0' * 14}", status=404)


async def is_destroyed(agent: FleetAgent, path: str) -> bool:
    return bool((await agent.ask("GET", path))["state"] == "destroyed")


async def test_lists_are_of_all_hosts(tmp_path: Path, server: NatsServer) -> None:
    """In order of their making, each once, filtered alike; an organization's goes on from page to page."""
    async with three(tmp_path, server) as agents:
        made = [(await create(agents[number % 3], ("fra", "nrt")[number % 2]))["id"] for number in range(8)]
        assert {home(agents, machine) for machine in made} >= {"c"}

        async def complete(agent: FleetAgent) -> bool:
            return [machine["id"] for machine in await agent.ask("GET", MACHINES)] == made

        for agent in agents[:2]:
            await becomes(lambda agent=agent: complete(agent))  # type: ignore[misc]
            far = await agent.ask("GET", f"{MACHINES}?region=nrt&summary=true")
            assert [machine["id"] for machine in far] == made[1::2]
            assert "config" not in far[0]
            assert await agent.ask("GET", f"{MACHINES}?metadata.role=none") == []
            pages, cursor = [], ""
            while cursor or not pages:
                page = await agent.ask("GET", f"/v1/orgs/personal/machines?limit=3&cursor={cursor}")
                pages.append([machine["id"] for machine in page["machines"]])
                cursor = page["next_cursor"]
            assert sorted(itertools.chain(*pages)) == sorted(made) and [len(page) for page in pages] == [3, 3, 2]
            assert page["error_regions"] == []
            assert (await agent.response("GET", "/v1/orgs/foreign/machines"))[0] == 404


async def test_a_name_is_one_machines(tmp_path: Path, server: NatsServer) -> None:
    """Of an app, on whichever host that machine is."""
    async with three(tmp_path, server) as agents:
        body = {"config": config_of(), "name": "only", "region": "nrt"}
        made = await agents[0].ask("POST", MACHINES, body)
        await becomes(lambda: told_of(agents[0], made["id"]))
        refused = await agents[0].ask("POST", MACHINES, {**body, "region": "fra"}, status=409)
        assert "machine named 'only'" in refused["error"]
        await agents[0].ask("DELETE", f"{MACHINES}/{made['id']}?force=true")

        async def free() -> bool:
            return (await agents[0].response("POST", MACHINES, {**body, "region": "fra"}))[0] == 200

        await becomes(free)


async def test_what_is_full_refuses(tmp_path: Path, server: NatsServer) -> None:
    """In words that clients know, wherever it is asked for; a region of nobody is no region."""
    async with three(tmp_path, server) as agents:
        too_much = (await agents[0].hosts())["a"]["memory_mb"] + 1
        for agent in agents[:2]:
            status, answer = await agent.response("POST", MACHINES, {"config": config_of(memory=too_much)})
            assert (status, answer["status"]) == (422, "insufficient_capacity")
        assert not any(agent.machines.list() for agent in agents if agent.machines is not None)
        assert (await agents[0].response("POST", MACHINES, {"config": config_of(), "region": "mars"}))[0] >= 400


async def test_any_region(tmp_path: Path, server: NatsServer) -> None:
    """The one of the host that is asked first; another one where that is full."""
    async with three(tmp_path, server, c=64.0) as agents:
        near = await create(agents[0], "any")
        assert near["region"] == "fra"
        much = (await agents[0].hosts())["a"]["cpus"] + 1
        far = await create(agents[0], "any", cpus=much)
        assert (home(agents, far["id"]), far["region"]) == ("c", "nrt")


async def test_what_is_asked_for_again_meanwhile_is_made_once(tmp_path: Path, server: NatsServer) -> None:
    """A host whose answer was lost is asked for the same machine while it still makes it."""
    authority = Authority(tmp_path, "fleet")
    async with fleet_agent(configured(tmp_path, "a", server.url, authority)) as agent:
        await agent.ask("POST", "/v1/apps", {"app_name": "web", "org_slug": "personal"}, status=201)
        assert agent.machines is not None
        request = CreateRequest(document=config_of(), config=parse_config(config_of()))
        made = await asyncio.gather(*(agent.machines.create("web", request, id=MachineId("a" * 14)) for _ in range(5)))
        assert {machine.id for machine in made} == {"a" * 14}
        await agent.ask("GET", f"{MACHINES}/{'a' * 14}/wait?state=started")
        assert len(agent.machines.list()) == len(agent.world.launches) == 1


async def test_two_hundred_at_once(tmp_path: Path, server: NatsServer) -> None:
    """At both hosts of a region: never more on a host than it has, and no machine twice."""
    async with three(tmp_path, server) as agents:
        there = await agents[0].hosts()
        room = there["a"]["cpus"] + there["b"]["cpus"]

        async def one(number: int) -> tuple[int, Any]:
            return await agents[number % 2].response("POST", MACHINES, {"config": config_of(), "name": f"m{number}"})

        answers = await asyncio.gather(*map(one, range(200)))
        made = [answer["id"] for status, answer in answers if status == 200]
        refused = [answer["status"] for status, answer in answers if status != 200]
        for agent in agents[:2]:
            assert agent.machines is not None and len(agent.machines.list()) <= there[agent.name]["cpus"]
        assert len(made) == len(set(made)) == sum(len(agent.machines.list()) for agent in agents if agent.machines) <= room
        assert len(made) >= room // 2
        assert set(refused) == {"insufficient_capacity"}


async def test_a_host_that_is_gone(tmp_path: Path, server: NatsServer) -> None:
    """Killed: its machines are shown as they were, as unreachable, and the rest of the fleet goes on; then it is back."""
    authority = Authority(tmp_path, "fleet")
    gone = configured(tmp_path, "gone", server.url, authority, region="nrt")
    with contextlib.ExitStack() as processes:
        process, _ = processes.enter_context(agent_process(gone))
        async with fleet_agent(configured(tmp_path, "here", server.url, authority)) as here:
            await settled([here], 2)
            await here.ask("POST", "/v1/apps", {"app_name": "web", "org_slug": "personal"}, status=201)
            far, near = await create(here, "nrt"), await create(here, "fra")
            one = f"{MACHINES}/{far['id']}"
            await becomes(lambda: told_of(here, far["id"]))
            process.kill()
            process.wait()

            async def unreachable() -> bool:
                return bool((await here.ask("GET", one))["host_status"] == "unreachable")

            await becomes(unreachable)
            shown = await here.ask("GET", one)
            assert shown["incomplete_config"]["image"] == "registry.example/web:1" and shown["region"] == "nrt"
            listed = {machine["id"]: machine["host_status"] for machine in await here.ask("GET", MACHINES)}
            assert listed == {far["id"]: "unreachable", near["id"]: "ok"}
            assert (await here.ask("GET", "/v1/orgs/personal/machines"))["error_regions"] == ["nrt"]
            assert (await here.response("POST", f"{one}/stop", {}))[0] == 503
            again, _ = processes.enter_context(agent_process(gone))
            await becomes(lambda: is_ok(here, one))
            assert again.poll() is None


async def told_of(agent: FleetAgent, machine: str) -> bool:
    assert agent.fleet is not None
    return agent.fleet.roster.row(machine) is not None


async def is_ok(agent: FleetAgent, path: str) -> bool:
    return bool((await agent.ask("GET", path))["host_status"] == "ok")


async def test_nats_dies(tmp_path: Path, server: NatsServer) -> None:
    """Hosts make what they are asked for themselves meanwhile, and machines of others are reached all the same."""
    async with three(tmp_path, server) as agents:
        a, b, _ = agents
        far = await create(a, "nrt")
        await becomes(lambda: told_of(b, far["id"]))
        for agent in (a, b):
            assert (await agent.ask("GET", f"{MACHINES}/{far['id']}"))["id"] == far["id"]
        server.kill()
        made = await create(a)
        assert home(agents, made["id"]) == "a"
        assert (await a.response("POST", MACHINES, {"config": config_of(), "region": "nrt"}))[0] >= 400
        await becomes(lambda: cut_off(a))
        again = await create(a)
        assert home(agents, again["id"]) == "a"
        shown = await a.ask("GET", f"{MACHINES}/{far['id']}")
        assert (shown["id"], shown["host_status"]) == (far["id"], "ok")
        server.start()
        await settled(agents, 3)
        assert home(agents, (await create(a, "nrt"))["id"]) == "c"


async def cut_off(agent: FleetAgent) -> bool:
    return not (await agent.ask("GET", "/v1/fleet"))["seen"]
