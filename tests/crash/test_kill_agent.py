"""`castoff agent` under kill -9 while clients make, change and destroy machines and volumes; stand-ins are the machines' VMMs.

The agents are processes, and so are the machines; kills fall after any number of answers, and into starts. After each of them:
what was answered holds, machines that ran run on as the same processes, what was under way ends well. At the end nothing is left.
CASTOFF_CRASH_KILLS=100 for a long run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

from agents import agent, agent_killed_at_start, asked
from machines import Castoff, castoff_state, eventually

KILLS = int(os.environ.get("CASTOFF_CRASH_KILLS", "6"))
CLIENTS = 6
T = TypeVar("T")
MACHINES, VOLUMES = "/v1/apps/load/machines", "/v1/apps/load/volumes"


@dataclass(slots=True)
class Known:
    """What a client was answered of its machine, and the one thing that it has not been answered yet."""

    id: str
    number: int = 0
    """Metadata; each request writes a higher one."""
    state: str = "created"
    pid: int = 0
    under_way: str = ""

    def may_be(self) -> set[str]:
        """The states that it may settle in."""
        after = {"start": "started", "stop": "stopped", "update": "started", "destroy": "destroyed"}.get(self.under_way)
        before = "started" if self.state == "created" else self.state
        return {before} if after is None else {before, after}

    def is_left_alone(self) -> bool:
        """Whether it ran when the agent was killed, and nobody had asked for anything else."""
        return self.state == "started" and self.under_way in ("", "metadata")


@dataclass(slots=True)
class Load:
    """Clients, what they know, and how many answers they had."""

    castoff: Castoff
    chance: random.Random
    machines: dict[str, Known] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    volumes: set[str] = field(default_factory=set)
    deleting: set[str] = field(default_factory=set)
    answers: int = 0
    until: int = 0
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, api: aiohttp.ClientSession, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """An answer, counted."""
        answer = await asked(api, method, path, body, **options)
        self.answers += 1
        if self.answers >= self.until:
            self.enough.set()
        return answer

    def config(self, number: int) -> dict[str, Any]:
        """A machine's."""
        metadata = {"number": str(number)}
        return {"image": self.castoff.image, "init": {"exec": ["sleep", "infinity"]}, "metadata": metadata}

    async def client(self, api: aiohttp.ClientSession) -> None:
        """One after another, until the agent is no more."""
        while True:
            if self.chance.random() < 0.1:
                await self.volume(api)
            made = await self.ask(api, "POST", MACHINES, {"config": self.config(0)})
            one = self.machines[made["id"]] = Known(made["id"])
            await self.settled(api, one, "started")
            for work in self.chance.choices((self.number, self.restart, self.update), k=self.chance.randrange(4)):
                await work(api, one)
            if self.chance.random() < 0.7:
                await self.destroy(api, one)

    async def settled(self, api: aiohttp.ClientSession, one: Known, state: str) -> None:
        """Waits for a state, and knows it."""
        await self.ask(api, "GET", f"{MACHINES}/{one.id}/wait?state={state}&timeout=30")
        one.state, one.under_way = state, ""
        one.pid = pid_of(self.castoff, one.id) if state == "started" else 0

    async def number(self, api: aiohttp.ClientSession, one: Known) -> None:
        """A higher number in its metadata."""
        one.under_way = "metadata"
        await self.ask(api, "POST", f"{MACHINES}/{one.id}/metadata/number", {"value": str(one.number + 1)}, status=204)
        one.number, one.under_way = one.number + 1, ""

    async def restart(self, api: aiohttp.ClientSession, one: Known) -> None:
        """Stopped and started."""
        for work, state in (("stop", "stopped"), ("start", "started")):
            one.under_way = work
            await self.ask(api, "POST", f"{MACHINES}/{one.id}/{work}", {} if work == "stop" else None)
            await self.settled(api, one, state)

    async def update(self, api: aiohttp.ClientSession, one: Known) -> None:
        """Another version of it."""
        one.under_way = "update"
        made = await self.ask(api, "POST", f"{MACHINES}/{one.id}", {"config": self.config(one.number + 1)})
        one.number += 1
        await self.ask(api, "GET", f"{MACHINES}/{one.id}/wait?state=started&instance_id={made['instance_id']}&timeout=30")
        await self.settled(api, one, "started")

    async def destroy(self, api: aiohttp.ClientSession, one: Known) -> None:
        """No longer there."""
        one.under_way = "destroy"
        await self.ask(api, "DELETE", f"{MACHINES}/{one.id}?force=true")
        del self.machines[one.id]
        self.gone.add(one.id)

    async def volume(self, api: aiohttp.ClientSession) -> None:
        """One that stays, or one that goes."""
        made = await self.ask(api, "POST", VOLUMES, {"name": "data", "size_gb": 1})
        self.volumes.add(made["id"])
        if self.chance.random() < 0.7:
            self.volumes.discard(made["id"])
            self.deleting.add(made["id"])
            await self.ask(api, "DELETE", f"{VOLUMES}/{made['id']}")
            self.deleting.discard(made["id"])
            self.gone.add(made["id"])


def pid_of(castoff: Castoff, machine: str) -> int:
    """Of the process that is a machine."""
    record = json.loads((castoff.state / "store" / "machines" / machine / "machine.json").read_bytes())
    return int(record["vmm_state"]["pid"])


def processes(mark: str) -> dict[int, str]:
    """Those with ``mark`` in their environment, and their names."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if f"CASTOFF_TEST_MARK={mark}".encode() in (directory / "environ").read_bytes().split(b"\0"):
                found[int(directory.name)] = (directory / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ended, or is nobody's to look into
            continue
    return found


def standing_in(mark: str) -> dict[str, list[int]]:
    """Machines that run, and as which processes."""
    found: dict[str, list[int]] = {}
    for pid, name in processes(mark).items():
        if re.fullmatch("[0-9a-f]{14}", name):
            found.setdefault(name, []).append(pid)
    return found


def left(castoff: Castoff) -> dict[str, list[str]]:
    """What there is of an agent without machines. Logs go when their machines are forgotten."""
    here = str(castoff.state)
    files = [str(path) for path in castoff.state.rglob("*") if "agent/logs/" not in str(path) and "castoff.db" not in path.name]
    sockets = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if here in line]
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if here in line]
    loops = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    return {
        "files": sorted(files),
        "sockets": sorted(sockets),
        "mounts": mounts,
        "loops": [path for path in loops if here in path],
    }


def becomes(found: Callable[[], T], wanted: T) -> None:
    """Waits until the two are equal; tells how they differ where they stay different."""
    with contextlib.suppress(AssertionError):
        eventually("", lambda: found() == wanted)
    assert found() == wanted


@pytest.fixture(name="castoff")
def _castoff(kernels: Path) -> Iterator[Castoff]:
    with castoff_state(kernels) as state:
        config = state.state.parent / "agent.toml"
        config.write_text('[agent]\nlisten = ""\n[vmm]\norder = ["stand-in"]\n')
        yield Castoff(state.state, state.image, config)


@pytest.fixture(name="mark")
def _mark(castoff: Castoff) -> Iterator[str]:
    """Of the agents' environment, and of all that they start."""
    mark = uuid.uuid4().hex
    yield mark
    for pid in processes(mark):  # of a test that failed
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_kills_of_the_agent_under_load(castoff: Castoff, mark: str) -> None:
    """Nothing that was acknowledged is lost, no machine ends, nothing is left behind."""
    env = os.environ | {"CASTOFF_TEST_MARK": mark}
    seed = random.randrange(2**32)
    print("seed", seed)
    load = Load(castoff, random.Random(seed))
    with agent(castoff, env=env) as running:
        async with running.client() as api:
            await asked(api, "POST", "/v1/apps", {"name": "load", "org_slug": "personal"}, status=201)
            one = await asked(api, "POST", MACHINES, {"config": load.config(0)})
            await asked(api, "GET", f"{MACHINES}/{one['id']}/wait?state=started&timeout=60")
            volume = await asked(api, "POST", VOLUMES, {"name": "data", "size_gb": 1})
            await asked(api, "DELETE", f"{VOLUMES}/{volume['id']}")
            await remove(api, one["id"])
            before = left(castoff)
    for _ in range(KILLS):
        if load.chance.random() < 0.3:
            agent_killed_at_start(castoff, load.chance.random() * 0.7, env=env)
        with agent(castoff, env=env) as running:
            async with running.client() as api:
                await check(api, load, mark)
                load.enough.clear()
                load.until = load.answers + load.chance.randrange(1, 250)
                clients = [asyncio.create_task(load.client(api)) for _ in range(CLIENTS)]
                done, _ = await asyncio.wait(
                    [asyncio.create_task(load.enough.wait()), *clients], timeout=60, return_when=asyncio.FIRST_COMPLETED
                )
                running.kill()
                assert done
                for ended in await asyncio.gather(*clients, return_exceptions=True):
                    assert isinstance(ended, aiohttp.ClientError | ConnectionError), ended  # nothing but the agent's end
    with agent(castoff, env=env) as running:
        async with running.client() as api:
            await check(api, load, mark)
            for machine in await asked(api, "GET", MACHINES):
                await remove(api, machine["id"])
            for volume in await asked(api, "GET", VOLUMES):
                if volume["id"] not in load.gone:
                    await asked(api, "DELETE", f"{VOLUMES}/{volume['id']}")
            becomes(lambda: standing_in(mark), {})
            becomes(lambda: left(castoff), before)
            descriptors = [path.readlink() for path in Path(f"/proc/{running.process.pid}/fd").iterdir()]
            assert len(descriptors) < 32, descriptors  # its database, its sockets, this connection
    becomes(lambda: processes(mark), {})


async def remove(api: aiohttp.ClientSession, machine: str) -> None:
    """Destroys a machine and waits for it."""
    await asked(api, "DELETE", f"{MACHINES}/{machine}?force=true")
    await asked(api, "GET", f"{MACHINES}/{machine}/wait?state=destroyed&timeout=60")


async def check(api: aiohttp.ClientSession, load: Load, mark: str) -> None:
    """Compares what the agent has with what clients were answered; what no client knows is removed."""
    listed = {machine["id"]: machine for machine in await asked(api, "GET", MACHINES)}
    assert not load.gone & set(listed)
    for one in list(load.machines.values()):
        if one.id not in listed:
            assert one.under_way == "destroy", f"{one} is lost"
            del load.machines[one.id]
            continue
        if one.is_left_alone():
            assert (listed[one.id]["state"], pid_of(load.castoff, one.id)) == ("started", one.pid), one
        found = int(listed[one.id]["config"]["metadata"]["number"])
        assert found == one.number or (found == one.number + 1 and one.under_way in ("metadata", "update")), (one, found)
        await asked(api, "GET", f"{MACHINES}/{one.id}/wait?state={','.join(sorted(one.may_be()))}&timeout=30")
    for id in set(listed) - set(load.machines):
        await remove(api, id)
    shown = {machine["id"]: machine for machine in await asked(api, "GET", MACHINES)}
    for one in list(load.machines.values()):
        one.state, one.under_way = shown[one.id]["state"], ""
        one.number = int(shown[one.id]["config"]["metadata"]["number"])
        one.pid = pid_of(load.castoff, one.id) if one.state == "started" else 0
    started = {one.id: [one.pid] for one in load.machines.values() if one.state == "started"}
    becomes(lambda: standing_in(mark), started)
    volumes = {volume["id"] for volume in await asked(api, "GET", VOLUMES)}
    assert load.volumes <= volumes
    assert not load.gone & volumes
