"""Extents: a clone costs 15 to 20 us for each, so segments must lie in few."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.measure import run
from bench.results import Row, at_most
from bench.stage import SIZE, Stage
from castoff.store.extents import extents
from castoff.store.have import CHUNK

__all__ = ["rows"]

_PER_EXTENT = 64 << 20


def rows(stage: Stage) -> Iterable[Row]:
    """Segments written side by side by two converters, and one that is filled in random order as hydration will."""
    images = [stage.publish(name) for name in ("big", "1gb")]
    stage.forget()
    builds = [stage.castoff("--quiet", "rootfs", "build", "--size", str(SIZE), image.reference) for image in images]
    with ThreadPoolExecutor() as threads:
        list(threads.map(run, builds))
    counts = {path.parent.name[:12]: _count(path) for path in sorted((stage.store / "layers").glob("*/segment"))}
    worst = max(found / allowed for found, allowed in counts.values())
    told = {"extents_and_allowed": counts}
    yield Row("extents", "segments of two builds at once: extents / one per 64 MiB, the worst", worst, "x", at_most(1), told)
    found, allowed = _random_order(stage.store / "tmp" / "bench-extents")
    told = {"extents_and_allowed": {"random": (found, allowed)}}
    yield Row("extents", "a preallocated segment filled in random order: the same", found / allowed, "x", at_most(1), told)


def _count(path: Path) -> tuple[int, int]:
    """The extents of ``path``, and how many it may have."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = extents(descriptor)
        assert found is not None
        return len(found), max(1, -(-os.fstat(descriptor).st_size // _PER_EXTENT))
    finally:
        os.close(descriptor)


def _random_order(path: Path) -> tuple[int, int]:
    """A 512 MiB file, reserved in one piece, its chunks written in random order with a flush now and then."""
    size = 512 << 20
    order = list(range(0, size, CHUNK))
    random.Random(1).shuffle(order)
    chunk = os.urandom(CHUNK)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, size)
        for number, offset in enumerate(order):
            os.pwrite(descriptor, chunk, offset)
            if number % 100 == 0:
                os.fsync(descriptor)
        os.fsync(descriptor)
        return _count(path)
    finally:
        os.close(descriptor)
        path.unlink()
