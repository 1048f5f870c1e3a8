"""What is done with a region: an image published in its registry, hosts that have nothing of it, and what they do at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from tests import daemons

from bench.lazy_lab import push
from bench.measure import Failed, cpu_seconds, run, started
from bench.region import Region, RegionHost, in_memory, region
from castoff.hydrate.record import read_record

__all__ = ["RegionLab", "Stampede", "region_lab", "whole"]

_KERNELS = Path(".cache/kernels")
_SECONDS = 240
_APP = "/v1/apps/bench"


@dataclass(frozen=True, slots=True)
class Stampede:
    """What some hosts did at once."""

    seconds: float
    """From the word until the last of them had done it."""
    each: list[float]
    """Of each host."""
    sent: int
    """Bytes that the registry sent until all data was everywhere."""
    cpu: float
    """Seconds a host, its agent's among them."""
    memory: int
    """The most that a host's fetching process had, bytes; 0: not looked at."""
    given: list[int]
    """Bytes that each host sent."""

    def told(self, name: str) -> dict[str, object]:
        """For a row's figures."""
        return {f"{name}_seconds": self.each, f"{name}_registry": self.sent, f"{name}_cpu": self.cpu, f"{name}_given": self.given}


@dataclass(frozen=True, slots=True)
class RegionLab:
    """A region whose registry has an image and its artifact."""

    region: Region
    image: str
    """Its reference in the region."""
    template: Path
    """A state that has the fleet's key and a kernel, and nothing else."""

    def fresh(self, hosts: Sequence[RegionHost]) -> None:
        """They have nothing."""
        for host in hosts:
            shutil.rmtree(host.state, ignore_errors=True)
            subprocess.run(["cp", "-a", "--reflink=auto", str(self.template), str(host.state)], check=True)

    @contextlib.contextmanager
    def agents(self, hosts: Sequence[RegionHost], *, peers: bool = True, nats: str = "") -> Iterator[list[int]]:
        """Their agents for the block; process ids."""
        with contextlib.ExitStack() as stack:
            logs, pids = [], []
            for host in hosts:
                logs.append(host.directory / "agent.log")
                command = _castoff(host, host.settings(peers=peers, name="agent", nats=nats), "agent")
                pids.append(stack.enter_context(started(command, log=logs[-1])).pid)
            for log in logs:
                _until(lambda log=log: "listening at" in log.read_text(), log)  # type: ignore[misc]
            yield pids

    def preload(self, hosts: Sequence[RegionHost], *, peers: bool = True) -> Stampede:
        """All of them preload the image, at once, from nothing to the last byte, in processes that are up."""
        self.fresh(hosts)
        with contextlib.ExitStack() as stack:
            agents = stack.enter_context(self.agents(hosts)) if peers else []
            processes = []
            for host in hosts:
                settings = host.settings(peers=peers)
                command = host.within(sys.executable, "-m", "bench.region_host", settings)
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                stack.callback(_ended, process)
                processes.append(process)
            for process in processes:
                if _line(process) != "ready\n":
                    raise Failed("a host's process does not come up")
            sent, given = self.region.sent(), self.region.given()
            used, begun = sum(map(cpu_seconds, agents)), time.monotonic()
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(f"{self.image}\n")
                process.stdin.flush()
            told = [json.loads(_line(process)) for process in processes]
            used = sum(map(cpu_seconds, agents)) - used
            if any(one["way"] != "artifact" for one in told):
                raise Failed(f"a host had the image another way: {told}")
            return Stampede(
                seconds=max(one["ended"] for one in told) - begun,
                each=[one["ended"] - begun for one in told],
                sent=self.region.sent() - sent,
                cpu=(used + sum(one["cpu"] for one in told)) / len(told),
                memory=max(one["memory"] for one in told),
                given=[now - before for now, before in zip(self.region.given(), given, strict=True)],
            )

    async def create(self, hosts: Sequence[RegionHost], agents: Sequence[int]) -> Stampede:
        """Each of them creates a machine, at once, and is done when its command runs; waits until all data is there, too."""
        sent, given = self.region.sent(), self.region.given()
        used, begun = sum(map(cpu_seconds, agents)), time.monotonic()
        made = await asyncio.gather(*(self._create(host, begun) for host in hosts))
        await asyncio.gather(*(whole(host) for host in hosts))
        answer = Stampede(
            seconds=max(seconds for seconds, _ in made),
            each=[seconds for seconds, _ in made],
            sent=self.region.sent() - sent,
            cpu=(sum(map(cpu_seconds, agents)) - used) / len(hosts),
            memory=0,
            given=[now - before for now, before in zip(self.region.given(), given, strict=True)],
        )
        for host, (_, machine) in zip(hosts, made, strict=True):
            async with _api(host) as api:
                await _asked(api, "DELETE", f"{_APP}/machines/{machine}?force=true")
        return answer

    async def _create(self, host: RegionHost, begun: float) -> tuple[float, str]:
        config = {
            "image": self.image,
            "init": {"exec": ["sleep", "600"]},
            "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256},
            "restart": {"policy": "no"},
        }
        async with _api(host) as api:
            with contextlib.suppress(Failed):
                await _asked(api, "POST", "/v1/apps", {"name": "bench", "org_slug": "personal"})
            made = (await _asked(api, "POST", f"{_APP}/machines", {"config": config}))["id"]
            for _ in range(_SECONDS // 60):
                with contextlib.suppress(Failed):  # 408: not yet
                    await _asked(api, "GET", f"{_APP}/machines/{made}/wait?state=started&timeout=60")
                    return time.monotonic() - begun, str(made)
        raise Failed(f"host {host.number}: machine {made} does not start")


@contextlib.contextmanager
def region_lab(directory: Path, name: str, *, hosts: int) -> Iterator[RegionLab]:
    """A region whose registry has the image ``name``, published, for the block.

    The hosts' files are on one filesystem in memory: what one machine's disk would do for all of them is not measured.
    """
    directory.mkdir()
    with (
        in_memory() as memory,
        daemons.xfs(memory, size=24 << 30) as files,
        daemons.registry(directory / "registry") as near,
    ):
        template = files / "template"
        settings = directory / "publisher.toml"
        settings.write_text('store.backing = "native"\n')
        digest = push(near, name, ("app",))
        publisher = [sys.executable, "-m", "castoff", "--config", str(settings), "--state", str(template), "--quiet"]
        run([*publisher, "publish", f"{near.host}/app/{name}@{digest}"], watch=False)
        for area in ("layers", "rootfs", "images/sha256"):
            for entry in (template / "store" / area).iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        subprocess.run(["cp", "-r", f"{_KERNELS}/.", str(template / "store/kernels")], check=True)
        with region(directory, near.directory, hosts=hosts, files=files) as made:
            yield RegionLab(made, f"{made.registry}/app/{name}@{digest}", template)


def _castoff(host: RegionHost, settings: Path, *words: str) -> list[str]:
    return host.within(sys.executable, "-m", "castoff", "--config", settings, *words)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _ended(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _until(ready: Any, log: Path) -> None:
    end = time.monotonic() + 60
    while not ready():
        if time.monotonic() > end:
            raise Failed(f"an agent does not come up: {log.read_text()[-1000:]}")
        time.sleep(0.05)


async def whole(host: RegionHost) -> None:
    """Waits until the machines of a host have all their data."""
    end = time.monotonic() + _SECONDS
    while True:
        records = [read_record(path.parent) for path in (host.state / "store/machines").glob("*/lazy.json")]
        if all(record.complete for record in records):
            return
        if time.monotonic() > end:
            raise Failed(f"host {host.number}: a machine's data does not come")
        await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def _api(host: RegionHost) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(path=str(host.state / "agent" / "agent.sock"))
    async with aiohttp.ClientSession("http://agent", connector=connector) as api:
        yield api


async def _asked(api: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> Any:
    async with api.request(method, path, json=body) as answer:
        if answer.status >= 300:
            raise Failed(f"{method} {path}: {answer.status}: {(await answer.text())[:500]}")
        return await answer.json(content_type=None)
