"""More lazy boots: a small HTTP server's, one that is watched chunk by chunk until all is here, and one of an image that grew."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from bench import boot_chart
from bench.boot_chart import Came
from bench.lazy_lab import PROGRAM, Boot, Lab, lab, push
from bench.measure import Failed, alternate
from bench.results import Row, at_most
from bench.stage import Stage
from castoff.hydrate.record import RECORD, STATE, read_record
from castoff.hydrate.state import PRESENT

__all__ = ["PICTURE", "rows"]

PICTURE = "seconds until all is here, a profile, 200 Mbit/s (docs/bench/boot.svg)"
"""The row that the picture is made of."""
_IMAGE = "big"
_SERVER = "import http.server as h, sys; s = h.HTTPServer(('127.0.0.1', 8000), h.SimpleHTTPRequestHandler)"
_HTTP = ("python3", "-c", f"{_SERVER}; print('serving', flush=True)")
"""READY is its word that it listens; then it ends, so that the boot does."""
_ECHO = ("sh", "-c", "echo ready")
_STAYS = (*PROGRAM[:2], f"{PROGRAM[2]}; import time; time.sleep(600)")
_SECONDS = 120


def rows(stage: Stage) -> Iterable[Row]:
    """All of them, over one link of 200 Mbit/s."""
    with lab(stage, _IMAGE) as found:
        found.far.shape(200)
        found.forget()
        found.publish(found.reference("plain", found.near.host))
        yield from _http(found)
        yield _watched(found)
        yield _grown(found)


def _record(found: Lab, program: tuple[str, ...]) -> None:
    """Publishes the profile of one boot of the program, joined with what is published already."""
    found.forget()
    found.boot(found.reference("plain", found.far.host), settings=found.settings(), program=program)
    found.publish(found.reference("profiled", found.near.host))


def _http(found: Lab) -> Iterable[Row]:
    _record(found, _HTTP)
    found.boot_warm(_HTTP)

    def boot(repository: str) -> Boot:
        found.forget()
        return found.boot(found.reference(repository, found.far.host), settings=found.settings(), program=_HTTP)

    ways = {"warm": lambda: found.boot_warm(_HTTP), "profile": lambda: boot("profiled"), "none": lambda: boot("plain")}
    taken = alternate(ways, rounds=3, discard=0)
    seconds = {way: median(one.seconds for one in boots) for way, boots in taken.items()}
    told = {"seconds": {way: [one.seconds for one in boots] for way, boots in taken.items()}}
    told |= {"bytes": {way: [one.came for one in boots] for way, boots in taken.items()}}
    for way, what, most in (("profile", "a profile", 1.1), ("none", "no profile", 1.25)):
        name = f"cold to READY (an HTTP server), 200 Mbit/s, {what} / warm"
        yield Row("boots", name, seconds[way] / seconds["warm"], "x", at_most(most), told)


def _watched(found: Lab) -> Row:
    _record(found, PROGRAM)
    found.forget()
    begun = time.perf_counter()
    reference, settings = found.reference("profiled", found.far.host), found.settings(background=True)
    with _watching(found.cold.store / "machines", begun) as watch, found.served(reference, settings, _STAYS) as machine:
        ready = time.perf_counter() - begun
        while not read_record(machine).complete:
            if time.perf_counter() - begun > _SECONDS:
                raise Failed("the background fill does not end")
            time.sleep(0.01)
        complete = time.perf_counter() - begun
    told = {"vmm": watch.vmm, "ready": ready, "complete": complete, "chunks": watch.chunks, "came": boot_chart.encode(watch.came)}
    return Row("boots", PICTURE, complete, "s", None, told)


def _grown(found: Lab) -> Row:
    """The same program, in a small image and in one that has 100 MB more: neither has a profile."""
    images = {name: replace(found, image=name, digest=push(found.near, name, ("plain",))) for name in ("small", "grown")}

    def boot(one: Lab) -> Boot:
        one.forget()
        return one.boot(one.reference("plain", one.far.host), settings=one.settings(), program=_ECHO)

    packs = {}
    for name, one in images.items():
        one.forget()
        one.publish(one.reference("plain", one.near.host))
        boot(one)
        packs[name] = one.packs()
    taken = alternate({name: lambda one=one: boot(one) for name, one in images.items()}, rounds=5, discard=0)  # type: ignore[misc]
    seconds = {name: [one.seconds for one in boots] for name, boots in taken.items()}
    ratio = median(seconds["grown"]) / median(seconds["small"])
    larger = packs["grown"] / packs["small"]
    name = f"cold to READY (a shell), 200 Mbit/s, no profile: in an image {larger:.0f} times larger / small"
    told = {"seconds": seconds, "packs": packs, "bytes": {name: [one.came for one in boots] for name, boots in taken.items()}}
    return Row("boots", name, ratio, "x", at_most(1.1), told)


class _Watch:
    """Looks at the states of a machine's chunks, a hundred times a second."""

    def __init__(self, machines: Path, begun: float) -> None:
        self.came: list[Came] = []
        self.chunks = 0
        self.vmm = 0.0
        self._machines = machines
        self._known = {path.name for path in machines.iterdir()}
        self._begun = begun
        self._before: NDArray[np.bool_] | None = None

    def look(self) -> None:
        """What is here that was not."""
        at = time.perf_counter() - self._begun
        for machine in self._machines.iterdir():
            if machine.name not in self._known and (machine / RECORD).exists():
                self._started(machine, at)
                with contextlib.suppress(FileNotFoundError):  # all is here
                    self._compare(np.fromfile(machine / STATE, np.uint8) == PRESENT, at)

    def _started(self, machine: Path, at: float) -> None:
        if not self.vmm and (machine / "machine.json").exists() and b'"pid"' in (machine / "machine.json").read_bytes():
            self.vmm = at

    def _compare(self, here: NDArray[np.bool_], at: float) -> None:
        before = np.zeros(len(here), np.bool_) if self._before is None else self._before
        edges = np.flatnonzero(np.diff(np.concatenate(([False], here & ~before, [False])).astype(np.int8)))
        self.came += [Came(round(at * 1000), int(a), int(b - a)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
        self._before, self.chunks = here, len(here)


@contextlib.contextmanager
def _watching(machines: Path, begun: float) -> Iterator[_Watch]:
    watch, over = _Watch(machines, begun), threading.Event()

    def run() -> None:
        while not over.wait(0.01):
            watch.look()

    thread = threading.Thread(target=run, name="watch")
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()
