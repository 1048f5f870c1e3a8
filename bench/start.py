"""Start: from the command line to the VMM, from the VMM to the image's first line, and what the guest init adds."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.cold import build
from bench.measure import Failed, alternate, started, tree
from bench.results import Row, at_most
from bench.stage import Published, Stage

__all__ = ["rows", "wait_for_vmm"]

_END_SECONDS = 60


@dataclass(frozen=True, slots=True)
class _Run:
    """One warm ``castoff run``. Seconds."""

    to_exec: float
    """From the command line to the VMM's exec."""
    to_line: float
    """From there to the first line of the image's command."""
    kernel: float
    """The guest kernel's clock when its init started."""
    drivers: float
    """What init then had the kernel do: load drivers, mount the root. With both built in it would come before init."""
    init: float
    """From init's start to the execve of the image's command, drivers and root included."""

    @property
    def added(self) -> float:
        """What init adds to a kernel's boot, which includes drivers and root."""
        return (self.init - self.drivers) / (self.kernel + self.drivers)


def rows(stage: Stage) -> Iterable[Row]:
    """Warm runs of the small image; the cost of starting Python for ``--help``."""
    image = stage.publish("small")
    build(stage, image)
    runs = [_run(stage, image) for _ in range(4 if stage.quick else 11)][1:]
    to_exec, to_line = median(run.to_exec for run in runs), median(run.to_line for run in runs)
    raw = {"to_exec": [run.to_exec for run in runs], "to_line": [run.to_line for run in runs]}
    yield Row(
        "start", "warm run: command line to VMM's exec / exec to the first line", to_exec / to_line, "x", at_most(0.15), raw
    )
    yield Row("start", "warm run: command line to the VMM's exec", to_exec * 1e3, "ms")
    yield Row("start", "warm run: the VMM's exec to the image's first line", to_line, "s")
    yield from _init(runs, "network")
    yield from _init([_run(stage, image, "--network", "none") for _ in range(len(runs))], "no network")
    yield from _help(stage)


def _init(runs: list[_Run], what: str) -> Iterable[Row]:
    """What the guest init costs: its own work, and all that happens between its start and the command's."""
    clocks = {name: median(getattr(run, name) for run in runs) for name in ("kernel", "drivers", "init")}
    name = f"guest ({what}): init's own work / the kernel's boot, drivers and root included"
    yield Row("start", name, median(run.added for run in runs), "x", at_most(0.1), clocks)
    whole = median(run.init / run.kernel for run in runs)
    yield Row("start", f"guest ({what}): init to the image's command / the kernel's boot until init", whole, "x", None, clocks)


def _help(stage: Stage) -> Iterable[Row]:
    commands = {"help": stage.castoff("--help"), "nothing": [sys.executable, "-c", "pass"]}
    found = alternate({name: lambda words=words: _seconds(words) for name, words in commands.items()}, rounds=20)  # type: ignore[misc]
    ours, python = median(found["help"]), median(found["nothing"])
    told = {"help": ours, "python": python}
    yield Row("start", "castoff --help / python -c pass", ours / python, "x", at_most(10), told)


def _seconds(words: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def _run(stage: Stage, image: Published, *options: str) -> _Run:
    os.sync()
    timeline = stage.directory / "start.timeline"
    words: tuple[str | Path, ...] = ("--vmm", "qemu", "--timeline", timeline, *options, image.pinned, "echo", "ready")
    command = stage.castoff("--quiet", "run", *words)
    begun = time.perf_counter()
    with started(command) as process:
        executed = wait_for_vmm(process) - begun
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()
        line = time.perf_counter() - begun
        _, errors = process.communicate(timeout=_END_SECONDS)
    if process.returncode != 0 or first != "ready\n":
        raise Failed(f"castoff run ended with {process.returncode}: {errors.strip()[-1500:]}")
    return _Run(executed, line - executed, *_guest_clock(timeline))


def wait_for_vmm(process: subprocess.Popen[str]) -> float:
    """When a descendant of ``process`` became QEMU, to about a millisecond, seen from outside."""
    while process.poll() is None:
        for pid in tree(process.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().startswith("qemu-system"):
                    return time.perf_counter()
        time.sleep(0.001)
    assert process.stderr is not None
    raise Failed(f"castoff run ended without a VMM: {process.stderr.read().strip()[-1500:]}")


def _guest_clock(timeline: Path) -> tuple[float, float, float]:
    """The guest's clock as its init told it: kernel, drivers and root, init. Seconds."""
    steps = json.loads(timeline.read_bytes())["steps"]
    told = next(step["attributes"] for step in steps if step["name"] == "machine.boot")
    return told["kernel_ms"] / 1e3, told["drivers_ms"] / 1e3, told["init_ms"] / 1e3
