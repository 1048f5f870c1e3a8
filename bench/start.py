"""Start: from the command line to the VMM, from the VMM to the image's first line, and what the guest init adds."""

from __future__ import annotations

import contextlib
import os
import re
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

__all__ = ["rows"]

_MARK = "bench: the command runs"
_END_SECONDS = 60
_GUEST = f"echo '{_MARK}' >/dev/kmsg; echo ready; dmesg"
"""The kernel's log then has its own last line before init, and the command's first act, on one clock."""


@dataclass(frozen=True, slots=True)
class _Run:
    """One warm ``castoff run``. Seconds."""

    to_exec: float
    """From the command line to the VMM's exec."""
    to_line: float
    """From there to the first line of the image's command."""
    kernel: float
    """The kernel's clock when it started init."""
    init: float
    """From there to the image's command."""


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
    kernel, init = median(run.kernel for run in runs), median(run.init for run in runs)
    clocks = {"kernel": kernel, "init": init}
    yield Row("start", "guest: init to the image's command / the kernel's own boot", init / kernel, "x", at_most(0.1), clocks)
    yield from _help(stage)


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


def _run(stage: Stage, image: Published) -> _Run:
    os.sync()
    command = stage.castoff("--quiet", "run", "--vmm", "qemu", image.pinned, "sh", "-c", _GUEST)
    begun = time.perf_counter()
    with started(command) as process:
        executed = _wait_for_vmm(process) - begun
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()
        line = time.perf_counter() - begun
        log, errors = process.communicate(timeout=_END_SECONDS)
    if process.returncode != 0 or first != "ready\n":
        raise Failed(f"castoff run ended with {process.returncode}: {errors.strip()[-1500:]}")
    return _Run(executed, line - executed, *_guest_clock(log))


def _wait_for_vmm(process: subprocess.Popen[str]) -> float:
    """When a descendant of ``process`` became QEMU, to about a millisecond, seen from outside."""
    while process.poll() is None:
        for pid in tree(process.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().startswith("qemu-system"):
                    return time.perf_counter()
        time.sleep(0.001)
    assert process.stderr is not None
    raise Failed(f"castoff run ended without a VMM: {process.stderr.read().strip()[-1500:]}")


def _guest_clock(log: str) -> tuple[float, float]:
    """The kernel's clock when it started init, and how much later the image's command ran."""
    kernel = re.search(r"\[ *([0-9.]+)\] Run \S+ as init process", log)
    mark = re.search(rf"\[ *([0-9.]+)\] {re.escape(_MARK)}", log)
    if kernel is None or mark is None:
        raise Failed(f"the guest's kernel log does not tell when init started: {log[-500:]}")
    return float(kernel[1]), float(mark[1]) - float(kernel[1])
