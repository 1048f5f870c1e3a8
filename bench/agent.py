"""The agent: its own share of a create, 1,000 machines known, waiters, browsers; and real boots beside bare ones.

The agent is one process, its clients another (this one), HTTP over loopback. In all rows but those of agent_creates.py and
agent_boots.py machines run in memory (castoff.fakes.launcher), so that what remains is the agent's: neither castoff.create nor a
VMM's start is in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
from tests.pages import OPERATOR

from bench import agent_boots, agent_creates
from bench.measure import Failed, cpu_seconds, percentile
from bench.results import Row, at_most
from bench.stage import Stage

__all__ = ["rows"]

_MACHINES = "/v1/apps/mine/machines"
_KNOWN = 1000
_WAITERS = 500
_BROWSERS = 100
_START_SECONDS = 30


def rows(stage: Stage) -> Iterable[Row]:
    """All of them; each kind over an agent of its own."""
    for measured in (_creates, _known, _waits, _browsers):
        yield from asyncio.run(measured(stage))
    yield from asyncio.run(agent_creates.rows(stage))
    yield from agent_boots.rows(stage)


class _Agent:
    """A server in a process of its own, and a client's connections to it."""

    def __init__(self, session: aiohttp.ClientSession, pid: int) -> None:
        self.pid = pid
        self._session = session

    async def asked(self, method: str, path: str, body: Any = None) -> Any:
        """An answer's JSON."""
        async with self._session.request(method, path, json=body) as answer:
            if answer.status >= 300:
                raise Failed(f"{method} {path}: {answer.status}: {(await answer.text())[:500]}")
            return await answer.json(content_type=None)

    async def create(self, number: int) -> tuple[str, float]:
        """A machine's id, and seconds from POST to its acknowledgement."""
        begun = time.perf_counter()
        made = await self.asked("POST", _MACHINES, {"config": {"image": f"image:{number}"}})
        return made["id"], time.perf_counter() - begun

    async def wait(self, machine: str, state: str) -> None:
        """Until it is in ``state``."""
        await self.asked("GET", f"{_MACHINES}/{machine}/wait?state={state}&timeout=60")

    async def began(self, machine: str, status: str) -> float:
        """When its newest event of ``status`` was written; milliseconds since 1970, whole ones."""
        events = await self.asked("GET", f"{_MACHINES}/{machine}/events")
        return float(next(event["timestamp"] for event in events if event["status"] == status))

    async def listen(self, heard: asyncio.Event) -> None:
        """A browser: takes the page's stream until it is cancelled; ``heard`` once something came."""
        async with self._session.get("/page/stream") as answer:
            async for _ in answer.content.iter_any():
                heard.set()
        raise Failed(f"the page's stream ended, status {answer.status}")

    def cpu(self) -> float:
        """Seconds of CPU that the server has taken."""
        return cpu_seconds(self.pid)

    def memory(self) -> dict[str, float]:
        """MB: its proportional share and what is resident."""
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()[1:]
        sizes = {line.split(":")[0].lower(): int(line.split()[1]) * 1024 / 1e6 for line in lines}
        return {"pss": sizes["pss"], "rss": sizes["rss"]}


@contextlib.contextmanager
def _process(directory: Path) -> Iterator[tuple[int, str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "bench.agent_server", str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise Failed("the agent's server did not start")
            yield process.pid, url
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(_START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.asynccontextmanager
async def _agent(stage: Stage) -> AsyncIterator[_Agent]:
    with stage.scratch("agent") as directory, _process(directory) as (pid, url):
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(url, connector=connector, headers=OPERATOR, timeout=timeout) as session:
            agent = _Agent(session, pid)
            for number in range(20):  # imports, the first connections, SQLite's first pages
                await agent.wait((await agent.create(number))[0], "started")
            yield agent


async def _creates(stage: Stage) -> list[Row]:
    async with _agent(stage) as agent:
        return await agent_creates.measured(
            agent.asked, _MACHINES, lambda number: {"image": f"image:{number}"}, agent_creates.ALONE, agent.cpu, quick=stage.quick
        )


async def _known(stage: Stage) -> list[Row]:
    async with _agent(stage) as agent:
        count = len(await agent.asked("GET", _MACHINES))
        for first in range(count, _KNOWN, 50):
            await asyncio.gather(*(agent.create(number) for number in range(first, min(_KNOWN, first + 50))))
        lists = [await _list(agent) for _ in range(30 if stage.quick else 200)]
        memory = agent.memory()
        await asyncio.sleep(1)
        idle = await _idle(agent, 3 if stage.quick else 6)
    told = {"lists": len(lists), "p50_ms": percentile(lists, 0.5) * 1e3}
    return [
        Row("agent", f"{_KNOWN} machines known: list, p99", percentile(lists, 0.99) * 1e3, "ms", at_most(60), told),
        Row("agent", f"{_KNOWN} machines known: memory (PSS) of the process", memory["pss"], "MB", at_most(250), memory),
        Row("agent", f"{_KNOWN} machines known: idle CPU", idle * 100, "%", at_most(1)),
    ]


async def _list(agent: _Agent) -> float:
    begun = time.perf_counter()
    found = await agent.asked("GET", _MACHINES)
    seconds = time.perf_counter() - begun
    if len(found) != _KNOWN:
        raise Failed(f"a list has {len(found)} machines of {_KNOWN}")
    return seconds


async def _idle(agent: _Agent, seconds: float) -> float:
    """The share of a core that the server takes while nobody asks it anything."""
    cpu, begun = agent.cpu(), time.perf_counter()
    await asyncio.sleep(seconds)
    return (agent.cpu() - cpu) / (time.perf_counter() - begun)


async def _waits(stage: Stage) -> list[Row]:
    async with _agent(stage) as agent:
        late = [await _late(agent, number) for number in range(50)]
        machine, _ = await agent.create(0)
        await agent.wait(machine, "started")
        waiters = [asyncio.create_task(agent.wait(machine, "stopped")) for _ in range(_WAITERS)]
        await asyncio.sleep(3)  # all are connected
        idle = await _idle(agent, 3 if stage.quick else 6)
        if any(waiter.done() for waiter in waiters):
            raise Failed("a wait ended before its time")
        await agent.asked("POST", f"{_MACHINES}/{machine}/stop", {})
        await asyncio.gather(*waiters)
    told = {"p50_ms": percentile(late, 0.5)}
    return [
        Row("agent", "wait: from the state's change to its answer, p99 of 50", percentile(late, 0.99), "ms", at_most(20), told),
        Row("agent", f"{_WAITERS} waiters: CPU while they wait", idle * 100, "%", at_most(1)),
    ]


async def _late(agent: _Agent, number: int) -> float:
    """Milliseconds from a machine's being stopped, as its event says, to the answer of who waited for that."""
    machine, _ = await agent.create(number)
    await agent.wait(machine, "started")

    async def answered() -> float:
        await agent.wait(machine, "stopped")
        return time.time() * 1e3

    waiter = asyncio.create_task(answered())
    await asyncio.sleep(0.05)
    await agent.asked("POST", f"{_MACHINES}/{machine}/stop", {})
    return await waiter - await agent.began(machine, "stopped")


async def _browsers(stage: Stage) -> list[Row]:
    """Creates with browsers that listen and without, in turn, timed by the agent: the browsers' own work is this process's, which
    a host has not."""
    taken: dict[str, list[float]] = {"without": [], "with": []}
    async with _agent(stage) as agent:
        for _ in range(1 if stage.quick else 3):
            taken["without"] += await _fifty(agent)
            heard = [asyncio.Event() for _ in range(_BROWSERS)]
            listening = [asyncio.create_task(agent.listen(one)) for one in heard]
            try:
                await asyncio.wait_for(asyncio.gather(*(one.wait() for one in heard)), _START_SECONDS)
                taken["with"] += await _fifty(agent)
                if any(task.done() for task in listening):
                    raise Failed("a browser's stream ended")
            finally:
                for task in listening:
                    task.cancel()
                await asyncio.gather(*listening, return_exceptions=True)
    middle = {name: percentile(seconds, 0.5) * 1e3 for name, seconds in taken.items()}
    name = f"create, one by one, p50 by the agent's clock: {_BROWSERS} browsers listen (SSE) / none"
    return [Row("agent", name, middle["with"] / middle["without"], "x", at_most(1.2), middle)]


async def _fifty(agent: _Agent) -> list[float]:
    """Seconds of creates, each after the one before it."""
    machines = []
    for number in range(50):
        machine, _ = await agent.create(number)
        await agent.wait(machine, "started")
        machines.append(machine)
    return [await agent_creates.reached(agent.asked, machine, "agent.launch") for machine in machines]
