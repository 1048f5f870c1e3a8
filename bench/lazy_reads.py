"""Reads of a machine's clone while it is served, beside the same reads of a plain file; and the background's share of the link.

They are this process's reads of the clone, which the kernel treats as the VMM's.
"""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.lazy_lab import PROGRAM, Lab
from bench.measure import Failed, percentile
from bench.results import Row, at_least, at_most
from castoff.hydrate.fuse import BASE
from castoff.hydrate.map import ROW
from castoff.hydrate.record import CLONE, MAP, STATE
from castoff.hydrate.state import ABSENT, PRESENT
from castoff.layers.toc import CHUNK
from castoff.store.rootfs import FILE

__all__ = ["rows"]

_BLOCK = 4096
_READS = 4000
_TURN = 200
"""Reads of one file before it is the other's turn."""
_MISSES = 60
_FILL_SECONDS = 4.0
_MEGABITS = 200
_STAYS = (*PROGRAM[:2], f"{PROGRAM[2]}; import time; time.sleep(600)")


def rows(lab: Lab) -> Iterable[Row]:
    """Both fronts with the fill off; then fanotify with it on, until all is there."""
    (plain,) = (lab.warm.store / "rootfs").glob(f"*/{FILE}")
    lab.far.shape(_MEGABITS)
    reference = lab.reference("profiled", lab.far.host)
    for front, file in (("fuse", BASE), ("fanotify", CLONE)):
        lab.forget()
        with lab.served(reference, lab.settings(front=front), _STAYS) as machine:
            yield from _served(front, machine, machine / file, plain)
            alone = _misses(machine, machine / file) if front == "fanotify" else []
    lab.forget()
    with lab.served(reference, lab.settings(background=True), _STAYS) as machine:
        offsets = _offsets(_chunks(machine, PRESENT), 2)
        yield _share(lab, machine)
        beside = _misses(machine, machine / CLONE)
        told = {"alone": sorted(alone), "beside": sorted(beside), "ms": [percentile(each, 0.5) * 1e3 for each in (alone, beside)]}
        worse = percentile(beside, 0.99) / percentile(alone, 0.99)
        yield Row("lazy", f"a miss's 99th percentile ({_MISSES} of them): background fill on / off", worse, "x", at_most(3), told)
        lab.far.shape(1000)
        _wait_complete(machine)
        yield from _complete(machine, plain, offsets)


def _states(machine: Path) -> NDArray[np.uint8]:
    return np.fromfile(machine / STATE, np.uint8)


def _chunks(machine: Path, state: int) -> list[int]:
    """Chunks of the rootfs in that state."""
    rows = np.fromfile(machine / MAP, ROW)
    found: list[int] = rows["rootfs_chunk"][_states(machine) == state].tolist()
    return found


def _offsets(chunks: Sequence[int], seed: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.choice(chunks) * CHUNK + chance.randrange(CHUNK // _BLOCK) * _BLOCK for _ in range(_READS)]


def _timed(read: Callable[[int], object], offsets: Sequence[int]) -> list[float]:
    seconds = []
    for offset in offsets:
        begun = time.perf_counter()
        read(offset)
        seconds.append(time.perf_counter() - begun)
    return seconds


def _in_turn(files: Sequence[Path], offsets: Sequence[int], *, direct: bool) -> list[list[float]]:
    """Seconds of each read, a list a file; buffered reads find their page in the cache."""
    descriptors = [os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0)) for path in files]
    page = mmap.mmap(-1, _BLOCK)
    try:
        reads = [lambda offset, file=file: os.preadv(file, [page], offset) for file in descriptors]
        if not direct:
            for read in reads:
                _timed(read, offsets)
        taken: list[list[float]] = [[] for _ in files]
        for first in range(0, len(offsets), _TURN):
            for read, seconds in zip(reads, taken, strict=True):
                seconds += _timed(read, offsets[first : first + _TURN])
        return taken
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _told(taken: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    names = ("plain", "served")
    return {name: [percentile(each, share) * 1e6 for share in (0.5, 0.99)] for name, each in zip(names, taken, strict=True)}


def _served(front: str, machine: Path, file: Path, plain: Path) -> Iterable[Row]:
    offsets = _offsets(_chunks(machine, PRESENT), 1)
    cached, direct = (_in_turn([plain, file], offsets, direct=direct) for direct in (False, True))
    (ours, theirs), told = (percentile(each, 0.5) for each in reversed(cached)), _told(cached)
    name = f"{front}: 4 KiB reads of what is here while it is served, in the page cache, median"
    if front == "fanotify":
        yield Row("lazy", f"{name}: over the plain file", (ours - theirs) * 1e6, "us", at_most(15), told)
    else:
        yield Row("lazy", f"{name}: plain file / served", theirs / ours, "x", at_least(0.95), told)
    (ours, theirs), told = (percentile(each, 0.5) for each in reversed(direct)), _told(direct)
    yield Row("lazy", f"{front}: the same past the page cache: over the plain file", (ours - theirs) * 1e6, "us", None, told)


def _complete(machine: Path, plain: Path, offsets: Sequence[int]) -> Iterable[Row]:
    for direct, what in ((False, "in the page cache"), (True, "past the page cache")):
        taken = _in_turn([plain, machine / CLONE], offsets, direct=direct)
        theirs, ours = (percentile(each, 0.5) for each in taken)
        name = f"fanotify: 4 KiB reads once all is here, {what}, median: plain file / clone"
        yield Row("lazy", name, theirs / ours, "x", at_least(0.95), _told(taken))


def _misses(machine: Path, file: Path) -> list[float]:
    """Seconds of reads of chunks that are not here, one after another, from anywhere in the image."""
    chance = random.Random(3)
    seconds: list[float] = []
    descriptor = os.open(file, os.O_RDONLY)
    try:
        while len(seconds) < _MISSES:
            absent = _chunks(machine, ABSENT)
            if not absent:
                raise Failed(f"all is here after {len(seconds)} misses of {_MISSES}")
            offset = chance.choice(absent) * CHUNK
            begun = time.perf_counter()
            os.pread(descriptor, _BLOCK, offset)
            seconds.append(time.perf_counter() - begun)
        return seconds
    finally:
        os.close(descriptor)


def _share(lab: Lab, machine: Path) -> Row:
    time.sleep(1.0)  # until the fill has found its pace
    before, begun = lab.far.received(), time.perf_counter()
    here = int(np.count_nonzero(_states(machine) == PRESENT))
    time.sleep(_FILL_SECONDS)
    seconds = time.perf_counter() - begun
    rate = (lab.far.received() - before) / seconds
    told = {"bytes_a_second": rate, "chunks": int(np.count_nonzero(_states(machine) == PRESENT)) - here, "seconds": seconds}
    return Row(
        "lazy", "background fill: its share of a link of 200 Mbit/s", rate / (_MEGABITS * 1e6 / 8), "x", at_least(0.8), told
    )


def _wait_complete(machine: Path) -> None:
    end = time.monotonic() + 90
    while (machine / MAP).exists():  # it goes when all is here
        if time.monotonic() > end:
            raise Failed("the background fill does not end")
        time.sleep(0.2)
