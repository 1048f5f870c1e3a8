"""Many machines come and go: nothing of them stays with the agent but what it remembers of them on purpose.

``make soak`` has CASTOFF_TURNOVER machines a round and prints what was sampled after each.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from agents import AgentProcess, asked
from client_agent import served
from machines import Castoff

APP = "/v1/apps/shop"
MACHINES = int(os.environ.get("CASTOFF_TURNOVER", "16"))
AT_ONCE = 8
ROUNDS = 4
SLACK = 4
"""Descriptors, threads and files that one moment may have and another not; less than machines of a round."""


@dataclass(frozen=True)
class Sample:
    """What the agent has."""

    descriptors: int
    threads: int
    files: int
    resident: int
    database: int

    @classmethod
    def of(cls, castoff: Castoff, running: AgentProcess) -> Sample:
        process = Path("/proc", str(running.process.pid))
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
        logs = castoff.state / "agent" / "logs"  # are kept for as long as a destroyed machine can be listed
        files = [path for path in castoff.state.rglob("*") if logs not in path.parents]
        return cls(
            descriptors=len(list((process / "fd").iterdir())),
            threads=int(status["Threads"]),
            files=len(files),
            resident=int(status["VmRSS"].split()[0]) << 10,
            database=sum(path.stat().st_size for path in castoff.state.glob("castoff.db*")),
        )


async def come_and_go(api: aiohttp.ClientSession, image: str, gate: asyncio.Semaphore) -> None:
    """One machine's life."""
    async with gate:
        machine = await asked(api, "POST", f"{APP}/machines", {"config": {"image": image, "init": {"exec": ["sleep", "1000"]}}})
        one = f"{APP}/machines/{machine['id']}"
        await asked(api, "GET", f"{one}/wait?state=started&timeout=60")
        await asked(api, "DELETE", f"{one}?force=true")
        await asked(api, "GET", f"{one}/wait?state=destroyed&timeout=60")


async def test_machines_that_came_and_went_leave_nothing(kernels: Path) -> None:
    """Neither descriptors nor threads nor files: as many after the last round as after the first."""
    samples = []
    with served(kernels) as (castoff, running, _):
        async with running.client() as api:
            await asked(api, "POST", "/v1/apps", {"name": "shop", "org_slug": "personal"}, status=201)
            gate = asyncio.Semaphore(AT_ONCE)
            for _ in range(ROUNDS):
                await asyncio.gather(*(come_and_go(api, castoff.image, gate) for _ in range(MACHINES)))
                samples.append(Sample.of(castoff, running))
                print(f"{MACHINES} machines came and went: {samples[-1]}", flush=True)
    first, *_, last = samples
    assert last.descriptors <= first.descriptors + SLACK, samples
    assert last.threads <= first.threads + SLACK, samples
    assert last.files <= first.files + SLACK, samples
