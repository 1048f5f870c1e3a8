"""Where a machine is made: from the client's POST to the offer that is taken, in a region of 8 hosts.

The agents are eight processes on this machine, with a real NATS server, certificates and databases; what their machines boot
takes no time. One of them is asked for all machines, one after another, as fast as it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.fleet_agents import FleetAgent, agent_process, configured, fleet_agent
from tests.fleet_authority import Authority
from tests.nats_servers import nats_server

from bench.measure import Failed, percentile
from bench.results import Row, at_most
from bench.stage import Stage
from castoff.fleet.offers import Offer

__all__ = ["rows"]

_HOSTS = 8
_WARM = 30
_ROUNDS = 400
_MACHINES = "/v1/apps/bench/machines"
_BODY = {"config": {"image": "registry.example/bench:1", "guest": {"cpus": 1, "memory_mb": 16}}}


def rows(stage: Stage) -> Iterable[Row]:
    """Until the offer is taken, and until the client has its answer."""
    directory = stage.directory / "placement"
    directory.mkdir()
    accepted, answered, homes = asyncio.run(_measured(directory))
    told = {"hosts": _HOSTS, "machines": len(answered), "made elsewhere": len(answered) - homes}
    name = f"POST to the offer that is taken, {_HOSTS} hosts"
    yield Row("placement", f"{name}: p50", 1e3 * percentile(accepted, 0.5), "ms", at_most(10), told)
    yield Row("placement", f"{name}: p99", 1e3 * percentile(accepted, 0.99), "ms", at_most(50), told)
    for share in (0.5, 0.99):
        yield Row("placement", f"POST to its answer: p{100 * share:.0f}", 1e3 * percentile(answered, share), "ms")


async def _measured(directory: Path) -> tuple[list[float], list[float], int]:
    """Seconds until each offer was taken and until each POST was answered; how many machines the asked host made itself."""
    authority = Authority(directory, "fleet")
    with nats_server(directory / "nats") as server, contextlib.ExitStack() as others:
        hosts = [configured(directory, f"host-{number}", server.url, authority, cpu_share=64.0) for number in range(_HOSTS)]
        for config in hosts[1:]:
            others.enter_context(agent_process(config))
        async with fleet_agent(hosts[0]) as agent:
            await _complete(agent)
            await agent.ask("POST", "/v1/apps", {"app_name": "bench", "org_slug": "personal"}, status=201)
            clock = _Clock(agent)
            for _ in range(_WARM):
                await clock.create()
            clock.accepted.clear()
            clock.answered.clear()
            before = len(agent.world.launches)
            for _ in range(_ROUNDS):
                await clock.create()
            if len(clock.accepted) != _ROUNDS:
                raise Failed(f"{len(clock.accepted)} of {_ROUNDS} creates asked for offers: nothing is measured")
            return clock.accepted, clock.answered, len(agent.world.launches) - before


class _Clock:
    """Creates machines and takes the times."""

    def __init__(self, agent: FleetAgent) -> None:
        assert agent.fleet is not None and agent.fleet.placing is not None
        self.accepted: list[float] = []
        self.answered: list[float] = []
        self._agent = agent
        self._began = 0.0
        placement = agent.fleet.placing.placement
        self._ask = placement.ask
        placement.ask = self._timed  # type: ignore[method-assign]

    async def _timed(self, *what: Any) -> list[Offer]:
        offers = await self._ask(*what)
        self.accepted.append(time.perf_counter() - self._began)
        return offers

    async def create(self) -> None:
        """One machine, which is removed again: no host shall be full."""
        self._began = time.perf_counter()
        made = await self._agent.ask("POST", _MACHINES, _BODY)
        self.answered.append(time.perf_counter() - self._began)
        await self._agent.ask("DELETE", f"{_MACHINES}/{made['id']}?force=true")


async def _complete(agent: FleetAgent) -> None:
    async with asyncio.timeout(60):
        while len(await agent.hosts()) < _HOSTS:  # noqa: ASYNC110 - another process's knowledge
            await asyncio.sleep(0.1)
