"""What an access costs while a clone is served through fanotify and its bytes are here: by compiled code, and in Python.

The front alone, in a process that does nothing else; a whole hydrator beside a machine is measured by bench/lazy_reads.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from bench.results import Row, at_most
from bench.stage import Stage
from castoff.hydrate.fanotify_front import FanotifyFront
from castoff.hydrate.front import Answer, Recorder
from castoff.hydrate.record import CLONE
from castoff.layers.toc import CHUNK

__all__ = ["rows"]

_CHUNKS = 64
_ROUNDS = 3
_READER = """
import json, mmap, os, random, sys, time
page, chance, taken = mmap.mmap(-1, 4096), random.Random(1), {path: [] for path in sys.argv[1:]}
offsets = [chance.randrange(%d) * 4096 for _ in range(4000)]
files = {path: os.open(path, os.O_RDONLY) for path in taken}
for turn in range(4):
    for path, file in files.items():
        for offset in offsets:
            begun = time.perf_counter()
            os.preadv(file, [page], offset)
            if turn:  # the first brings the pages into the cache
                taken[path].append(time.perf_counter() - begun)
print(json.dumps([sorted(each)[len(each) // 2] for each in taken.values()]))
"""


class _Whole:
    """A core for whose front everything is here."""

    recorder: Recorder | None = None

    def __init__(self) -> None:
        self.holes = bytearray(_CHUNKS + 1)

    def present(self, start: int, end: int) -> bool:
        return self.holes.find(1, start // CHUNK, -(-end // CHUNK)) < 0

    def want(self, start: int, end: int, answer: Answer) -> None:
        raise AssertionError("everything is here")


def rows(stage: Stage) -> Iterable[Row]:
    """Both ways in turn, on the filesystem of the scratch directory."""
    with stage.scratch("answers") as scratch:
        (scratch / "plain").write_bytes(os.urandom(_CHUNKS * CHUNK))
        over: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(_ROUNDS):
            for compiled, found in over.items():
                directory = scratch / f"{turn}-{compiled}"
                directory.mkdir()
                found.append(_over(directory, scratch / "plain", compiled=compiled))
    name = "fanotify's front alone: a cached 4 KiB read of what is here over the plain file's, median"
    yield Row("answers", f"{name}, compiled", median(over[True]) * 1e6, "us", at_most(15), {"seconds": over[True]})
    yield Row("answers", f"{name}, in Python", median(over[False]) * 1e6, "us", None, {"seconds": over[False]})


def _over(directory: Path, plain: Path, *, compiled: bool) -> float:
    """Seconds that a read takes longer."""
    (directory / CLONE).write_bytes(os.urandom(_CHUNKS * CHUNK))
    front = FanotifyFront.marked(directory, _CHUNKS * CHUNK, print, compiled=compiled)
    front.start(_Whole())
    try:
        command = [sys.executable, "-c", _READER % (_CHUNKS * CHUNK // 4096), str(plain), str(directory / CLONE)]
        theirs, ours = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        return float(ours - theirs)
    finally:
        front.stop()
        front.close()
