"""A region of 8 hosts that want one image: at once, after one another, and while others wait for a chunk.

Links: the registry's 200 Mbit/s in all, each host's 1 Gbit/s. Eight hosts that share two cores are kept up by those, though,
and no longer by links, so what is told of times is measured twice: with these rates, and with all of them divided by four.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterable
from statistics import median
from typing import Any

from bench.measure import Failed
from bench.region import HOST_MEGABITS, REGISTRY_MEGABITS
from bench.region_lab import RegionLab, Stampede, region_lab
from bench.results import Row, at_most
from bench.stage import Stage

__all__ = ["rows"]

_IMAGE = "medium"
_HOSTS = 8
_SLOWER = 4
_BULK = 3
"""Hosts that saturate another's link."""


def rows(stage: Stage) -> Iterable[Row]:
    """Every row, of one region."""
    with region_lab(stage.directory / "region", _IMAGE, hosts=_HOSTS) as lab:
        yield from _preloads(lab)
        yield from _urgent(lab)
        yield from _creates(lab)
        yield from _added(lab, 1 if stage.quick else 2)


def _preloads(lab: RegionLab) -> Iterable[Row]:
    """From nothing to the last byte."""
    hosts = lab.region.hosts
    alone = lab.preload(hosts[:1], peers=False)
    without = lab.preload(hosts, peers=False)
    together = lab.preload(hosts)
    told = alone.told("alone") | without.told("without") | together.told("together")
    what = f"preload on {_HOSTS} cold hosts at once"
    yield Row("region", f"{what}: the registry sends, images", together.sent / alone.sent, "x", at_most(1.15), told)
    yield Row("region", f"{what}, no peers: the registry sends, images", without.sent / alone.sent, "x")
    yield Row("region", f"{what}: the last / one host alone", together.seconds / alone.seconds, "x", at_most(1.15), told)
    yield Row("region", f"{what}, no peers: the last / one host alone", without.seconds / alone.seconds, "x")
    yield Row("region", f"{what}: CPU a host, its agent's included", together.cpu, "s")
    yield Row("region", f"{what}: memory of the fetching process, the most", together.memory / 1e6, "MB")
    lab.region.shape(REGISTRY_MEGABITS // _SLOWER, HOST_MEGABITS // _SLOWER)
    alone = lab.preload(hosts[:1], peers=False)
    together = lab.preload(hosts)
    lab.region.shape(REGISTRY_MEGABITS, HOST_MEGABITS)
    told = alone.told("alone") | together.told("together")
    what += f", links a {_SLOWER}th"
    yield Row("region", f"{what}: the registry sends, images", together.sent / alone.sent, "x", at_most(1.15), told)
    yield Row("region", f"{what}: the last / one host alone", together.seconds / alone.seconds, "x", at_most(1.15), told)


def _urgent(lab: RegionLab) -> Iterable[Row]:
    """The hosts have all of the image: one is asked for everything by some at once, and for a chunk now and then by another."""
    hosts = lab.region.hosts
    with lab.agents(hosts[:1]):
        idle = _waits(lab, bulk=0)
        loaded = _waits(lab, bulk=_BULK)
    told = {"idle": idle, "loaded": loaded}
    name = f"a chunk that a guest waits for, from a host that {_BULK} others take all from"
    yield Row("region", f"{name}: p99", loaded["p99"] * 1e3, "ms", at_most(20), told)
    yield Row("region", f"{name}: p50", loaded["p50"] * 1e3, "ms")
    yield Row("region", "what the others take meanwhile", loaded["bulk"] * 8 / 1e6, "Mbit/s")


def _waits(lab: RegionLab, *, bulk: int) -> dict[str, Any]:
    asker, *others = lab.region.hosts[1:]
    target = lab.region.hosts[0]
    busy = [
        subprocess.Popen(
            host.within(sys.executable, "-m", "bench.region_asker", host.settings(), target.url, "bulk"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for host in others[:bulk]
    ]
    try:
        for process in busy:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise Failed("nobody takes all from the host")
        before = lab.region.given()[target.number]
        command = asker.within(sys.executable, "-m", "bench.region_asker", asker.settings(), target.url, "urgent")
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        found["bulk"] = (lab.region.given()[target.number] - before) / found["seconds"]
        return found
    finally:
        for process in busy:
            process.terminate()
            process.communicate()


def _creates(lab: RegionLab) -> Iterable[Row]:
    """Machines, from the POST to their running command; and until their data is whole."""
    hosts = lab.region.hosts
    alone, _ = _create(lab, 1)
    without, _ = _create(lab, _HOSTS, peers=False)
    together, warm = _create(lab, _HOSTS)
    told = alone.told("alone") | without.told("without") | together.told("together") | warm.told("warm")
    what = f"create on {len(hosts)} cold hosts at once, lazy"
    yield Row("region", f"{what}: the registry sends, images", together.sent / alone.sent, "x", at_most(1.15), told)
    yield Row("region", f"{what}, no peers: the registry sends, images", without.sent / alone.sent, "x")
    yield Row("region", f"{what}: the last READY / one host alone", together.seconds / alone.seconds, "x", at_most(1.25), told)
    yield Row("region", f"{what}, no peers: the last READY / one host alone", without.seconds / alone.seconds, "x")
    name = f"create on {len(hosts)} warm hosts at once, on this machine's cores: the last READY / one cold host alone"
    yield Row("region", name, warm.seconds / alone.seconds, "x")


def _create(lab: RegionLab, count: int, *, peers: bool = True) -> tuple[Stampede, Stampede]:
    """The same create twice: cold, and then with all here."""
    hosts = lab.region.hosts[:count]
    lab.fresh(hosts)
    with lab.agents(hosts, peers=peers) as agents:
        return asyncio.run(lab.create(hosts, agents)), asyncio.run(lab.create(hosts, agents))


def _added(lab: RegionLab, rounds: int) -> Iterable[Row]:
    """A host that has nothing, in a region that has all; beside one that has all itself."""
    *old, new = lab.region.hosts
    cold, warm = [], []
    with lab.agents(old):
        for _ in range(rounds):
            lab.fresh([new])
            with lab.agents([new]) as agents:
                cold.append(asyncio.run(lab.create([new], agents)))
                warm.append(asyncio.run(lab.create([new], agents)))
    value = median(one.seconds for one in cold) / median(one.seconds for one in warm)
    told = {"cold": [one.seconds for one in cold], "warm": [one.seconds for one in warm]}
    told["registry"] = [float(one.sent) for one in cold]
    yield Row("region", "a host added to a region that has the image: cold READY / warm READY", value, "x", at_most(1.2), told)
    yield Row("region", "the same: the registry sends", median(one.sent for one in cold) / 1e6, "MB")
