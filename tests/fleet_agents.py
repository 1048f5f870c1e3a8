"""Agents of a fleet whose machines run in memory: their API, database, peers' door, certificates and NATS are the real ones.

``python -m tests.fleet_agents CONFIGURATION`` (as JSON) is one as a process of its own, which can be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from tests.api_server import Images
from tests.daemons import free_port
from tests.fleet_authority import Authority

from castoff.agent.fleet.fleet import Fleet, host_doors, in_fleet, placed
from castoff.agent.fleet.regions import fleet_room
from castoff.agent.fleet.routes import fleet_routes
from castoff.agent.listen import SOCKET, agent_directory, bind
from castoff.agent.peers.server import serving_peers
from castoff.agent.records import open_records
from castoff.api.parts import Parts
from castoff.api.server import build_app, serving
from castoff.config import Config
from castoff.fakes.launcher import FakeLauncher, World
from castoff.fleet.settings import FleetSettings
from castoff.lifecycle.attached import Attached
from castoff.lifecycle.machines import Machines
from castoff.lifecycle.settings import AgentSettings
from castoff.store.settings import StoreSettings
from castoff.store.store import Store

__all__ = ["FleetAgent", "agent_process", "configured", "fleet_agent"]


@dataclass
class FleetAgent:
    """A running agent."""

    name: str
    url: str
    token: str
    session: aiohttp.ClientSession
    world: World
    fleet: Fleet | None = None
    machines: Machines | None = None

    async def ask(self, method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
        """One request; its answer's JSON."""
        got, answer = await self.response(method, path, body)
        assert got == status, f"{method} {path}: {got} {answer}"
        return answer

    async def response(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One request; its status and its answer's JSON."""
        headers = {"Authorization": f"Bearer {self.token}"}
        async with self.session.request(method, f"{self.url}{path}", json=body, headers=headers) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else None

    async def hosts(self) -> dict[str, dict[str, Any]]:
        """The hosts that it knows, by name."""
        return {host["name"]: host for host in (await self.ask("GET", "/v1/fleet/hosts"))["hosts"]}


def configured(
    directory: Path, name: str, nats: str, authority: Authority, *, region: str = "fra", cpu_share: float = 4.0
) -> Config:
    """A host's configuration, with a certificate of its own."""
    address = f"127.0.0.1:{free_port()}"
    return Config(
        state=directory / name,
        store=StoreSettings(backing="native"),
        agent=AgentSettings(listen="127.0.0.1:0", region=region, requests_per_second=1e6, request_burst=1_000_000),
        peers=msgspec.structs.replace(authority.settings(name, address), url=f"https://{address}"),
        fleet=FleetSettings(urls=(nats,), host=name, cpu_share=cpu_share),
    )


@contextlib.asynccontextmanager
async def fleet_agent(config: Config, *, world: World | None = None) -> AsyncIterator[FleetAgent]:
    """An agent for the block."""
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        directory, world = agent_directory(config.state), world or World()
        store = await asyncio.to_thread(Store.open, config.state, config.store)
        volumes = store.root / "volumes"
        volumes.mkdir(exist_ok=True)
        records = await enter(open_records(config, volumes, first_token=True, discard_unknown=False))
        machines = await enter(
            Machines.open(
                records.database,
                FakeLauncher(world),
                secrets=records.secrets,
                volumes=records.volumes,
                region=config.agent.region,
            )
        )
        fleet = await enter(in_fleet(config, store, machines, directory, lambda line: None))
        parts = Parts(
            machines=machines,
            apps=records.apps,
            volumes=records.volumes,
            attached=Attached(records.volumes, machines),
            secrets=records.secrets,
            releases=records.releases,
            authenticator=records.tokens,
            images=Images(),
            settings=config.agent,
            room=fleet_room(fleet, config.agent.region),
        )
        app = build_app(parts, [fleet_routes(fleet), placed(fleet)])
        doors = await enter(host_doors(config, fleet, records, directory / SOCKET))
        await enter(serving_peers(config.peers, store, lambda: False, doors))
        sockets = bind(config.agent, directory)
        address = ":".join(map(str, sockets[1].getsockname()[:2]))
        await enter(serving(app, sockets))
        session = await enter(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        yield FleetAgent(
            config.fleet.host, f"http://{address}", records.first_token, session, world, fleet=fleet, machines=machines
        )


@contextlib.contextmanager
def agent_process(config: Config) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """An agent as a process of its own, with its ``url`` and ``token``; killed at the end of the block."""
    words = [sys.executable, "-m", "tests.fleet_agents", msgspec.json.encode(config, enc_hook=str)]
    root = Path(__file__).parents[1]
    process = subprocess.Popen(words, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdin is not None
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait(20)
        process.stdin.close()
        process.stdout.close()


async def _main(config: Config) -> None:
    async with fleet_agent(config) as agent:
        print(json.dumps({"url": agent.url, "token": agent.token}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main(msgspec.json.decode(sys.argv[1], type=Config, dec_hook=lambda kind, value: kind(value))))
