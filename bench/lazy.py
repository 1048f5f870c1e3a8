"""Lazy boot: a host that has nothing, an artifact in a registry behind a shaped link, and the time to the first line.

READY is the first line of a program that imports numpy and pandas. Warm, the rootfs complete, and the lazy ways run in turn.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from bench import lazy_reads, lazy_rivals, publish
from bench.fleet import high_water
from bench.lazy_lab import Boot, Lab, lab
from bench.measure import Failed, alternate, started
from bench.results import Row, at_least, at_most
from bench.stage import Stage
from bench.start import wait_for_vmm

__all__ = ["rows"]

_IMAGE = "big"
_MACHINES = 4
_ALLOWED_SECONDS = 0.3


def rows(stage: Stage) -> Iterable[Row]:
    """Every row of lazy boot, over one link."""
    with lab(stage, _IMAGE) as found:
        yield from publish.rows(found)
        yield from _exec(found)
        boots = _boots(found)
        yield from _slow_rows(boots.slow, boots.needed)
        yield from _fill_rows(boots.slow, boots.fast)
        yield from _bytes_rows(boots.slow, boots.needed, boots.packs)
        yield from lazy_reads.rows(found)
        yield _memory(found)
        yield from _rivals(found, boots.slow)


@dataclass(frozen=True, slots=True)
class _Boots:
    """Boots by their way, at 200 Mbit/s and at 1 Gbit/s; bytes of the packs, and of them what READY needs."""

    slow: dict[str, list[Boot]]
    fast: dict[str, list[Boot]]
    needed: int
    packs: int


def _boots(found: Lab) -> _Boots:
    found.far.shape(200)
    found.forget()
    found.boot(found.reference("plain", found.far.host), settings=found.settings())  # its boot is the profile
    needed, packs = found.needed(), found.packs()
    found.publish(found.reference("profiled", found.near.host))
    found.boot_warm()
    rounds = 1 if found.cold.quick else 3
    slow = _in_turn(found, ("warm", "profile", "fill", "none", "late"), rounds)
    found.far.shape(1000)
    fast = _in_turn(found, ("profile", "fill"), min(rounds, 2))
    return _Boots(slow, fast, needed, packs)


def _in_turn(found: Lab, ways: tuple[str, ...], rounds: int) -> dict[str, list[Boot]]:
    """The boots of each way."""

    def boot(way: str) -> Boot:
        if way == "warm":
            return found.boot_warm()
        found.forget()
        repository = "plain" if way in {"none", "late"} else "profiled"
        host = found.far.late if way == "late" else found.far.host
        return found.boot(found.reference(repository, host), settings=found.settings(background=way == "fill"))

    return alternate({way: lambda way=way: boot(way) for way in ways}, rounds=rounds, discard=0)  # type: ignore[misc]


def _seconds(boots: list[Boot]) -> float:
    return median(boot.seconds for boot in boots)


def _told(boots: list[Boot]) -> dict[str, object]:
    """What the figures of a way were made from."""
    return {
        "seconds": [boot.seconds for boot in boots],
        "bytes": [boot.came for boot in boots],
        "misses": [boot.told("hydrate.boot").get("misses") for boot in boots],
        "machine_boot": [boot.took("machine.boot") for boot in boots],
        "to_vmm": [boot.begun("vmm.qemu") for boot in boots],
    }


def _slow_rows(slow: dict[str, list[Boot]], needed: int) -> Iterable[Row]:
    warm = _seconds(slow["warm"])
    name = "cold to READY (numpy, pandas), 200 Mbit/s"
    yield Row("lazy", "warm to READY (numpy, pandas)", warm, "s", None, _told(slow["warm"]))
    for way, what, most in (
        ("profile", "a profile", 1.1),
        ("none", "no profile", 1.25),
        ("late", "no profile, 10 ms added", 1.6),
    ):
        yield Row("lazy", f"{name}, {what} / warm", _seconds(slow[way]) / warm, "x", at_most(most), _told(slow[way]))
    overhead, floor = _seconds(slow["profile"]) - warm, needed / (200e6 / 8)
    allowed = max(1.2 * floor, _ALLOWED_SECONDS)
    told = {"overhead": overhead, "floor": floor, "allowed": allowed, "needed": needed}
    what = "overhead / the larger of 1.2 x bytes needed / link rate and 0.3 s"
    yield Row("lazy", f"{name}, a profile: {what}", overhead / allowed, "x", at_most(1), told)


def _fill_rows(slow: dict[str, list[Boot]], fast: dict[str, list[Boot]]) -> Iterable[Row]:
    for boots, rate in ((slow, "200 Mbit/s"), (fast, "1 Gbit/s")):
        ratio = _seconds(boots["fill"]) / _seconds(boots["profile"])
        told = {way: _told(boots[way]) for way in ("fill", "profile")}
        yield Row("lazy", f"cold to READY, a profile, {rate}: background fill on / off", ratio, "x", at_most(1.1), told)
    ratio = _seconds(fast["profile"]) / _seconds(slow["warm"])
    yield Row("lazy", "cold to READY, a profile, 1 Gbit/s / warm", ratio, "x", None)


def _bytes_rows(slow: dict[str, list[Boot]], needed: int, packs: int) -> Iterable[Row]:
    name, told = "bytes over the link before READY (numpy, pandas)", {"packs": packs, "needed": needed}
    profile, none = (median(boot.came for boot in slow[way]) for way in ("profile", "none"))
    yield Row("lazy", f"{name}, a hot pack: of the packs", 100 * profile / packs, "%", at_most(5), told | {"bytes": profile})
    yield Row("lazy", f"{name}, no profile / the chunks that it needs", none / needed, "x", at_most(1.2), told | {"bytes": none})
    yield Row("lazy", f"{name}, no profile: of the packs", 100 * none / packs, "%", None)


def _rivals(found: Lab, slow: dict[str, list[Boot]]) -> Iterable[Row]:
    """Their bytes are not here either, and their link is the same; only the rootfs that QEMU reads by HTTP is made already."""
    found.far.shape(200)
    ours, warm = _seconds(slow["profile"]), _seconds(slow["warm"])
    pulled = lazy_rivals.containerd(found)
    told = {"pull_and_unpack": pulled, "warm": warm, "castoff": ours}
    yield Row(
        "lazy",
        "to READY, 200 Mbit/s: containerd's pull + unpack + boot / castoff",
        (pulled + warm) / ours,
        "x",
        at_least(5),
        told,
    )
    name = "to READY, 200 Mbit/s: a plain ext4 by QEMU's curl driver"
    lack = lazy_rivals.lacks()
    try:
        seconds = 0.0 if lack else lazy_rivals.over_http(found)
    except Failed as error:
        lack = str(error)
    if lack:
        print(f"bench: lazy: {name}: not measured, {lack}", file=sys.stderr)  # no row: there is no figure
    else:
        yield Row("lazy", f"{name} / castoff", seconds / ours, "x", at_least(1.5), {"seconds": seconds, "castoff": ours})


def _exec(found: Lab) -> Iterable[Row]:
    """From the command line to the VMM's exec on a host that has nothing, not even a hydrator; the registry is on loopback."""
    reference = found.reference("plain", found.near.host)
    found.forget()
    whole = found.boot(reference, settings=found.settings(), program=("echo", "ready"))
    taken: list[float] = []
    for _ in range(1 if found.cold.quick else 5):
        found.forget()
        os.sync()
        command = found.command(found.settings(), "run", "--vmm", "qemu", "--lazy", "always", reference, "echo", "ready")
        begun = time.perf_counter()
        with started(command) as process:
            taken.append(wait_for_vmm(process) - begun)
    steps = [(step["name"], step["started"], step["ended"]) for step in whole.steps]
    yield Row("lazy", "reference to VMM's exec on a host that has nothing", median(taken), "s", at_most(0.8), {"seconds": taken})
    composing = max((step for step in whole.steps if step["name"] == "rootfs.lazy"), key=lambda step: float(step["started"]))
    decoding = whole.took("layers.published") + composing["ended"] - composing["started"]
    yield Row("lazy", "of it index decoding and composing (one run)", decoding, "s", at_most(0.35), {"steps": steps})


def _memory(found: Lab) -> Row:
    """The hydrator's, while it serves several machines that boot and fill at a time."""
    found.forget()
    found.far.shape(1000)
    program = ("sh", "-c", "echo ready; sleep 600")
    with contextlib.ExitStack() as stack:
        for _ in range(_MACHINES):
            stack.enter_context(found.served(found.reference("plain", found.far.host), found.settings(background=True), program))
        time.sleep(4.0)
        peak = sum(high_water(pid) for pid in found.hydrator())
    return Row("lazy", f"memory of the hydrator, {_MACHINES} machines of one image that fill", peak / 1e6, "MB", at_most(200))
