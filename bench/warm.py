"""Warm: the rootfs is here. What a machine's own copy of it costs, small image and big."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from bench import inside
from bench.cold import build
from bench.measure import percentile
from bench.results import Row, at_most
from bench.stage import Stage
from castoff.disk.clone import CloneKind

__all__ = ["rows"]


def rows(stage: Stage) -> Iterable[Row]:
    """Locate + clone in a running process, images in turn."""
    names = ("small", "big")
    for name in names:
        build(stage, stage.publish(name))
    taken = asyncio.run(_rounds(stage, names, 50 if stage.quick else 300))
    middle = {name: percentile(seconds, 0.5) for name, seconds in taken.items()}
    for name, seconds in taken.items():
        yield Row("warm", f"{name}: locate + clone, median", middle[name] * 1e3, "ms", at_most(10), {"rounds": len(seconds)})
        yield Row("warm", f"{name}: locate + clone, 99th percentile", percentile(seconds, 0.99) * 1e3, "ms", at_most(50))
    slower = max(middle.values()) / min(middle.values())
    yield Row("warm", "the slower of these medians / the faster", slower, "x", at_most(1.3))


async def _rounds(stage: Stage, names: tuple[str, ...], rounds: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in names}
    async with inside.host(stage) as host:
        for name in names:  # composed again: build() forgets what was there before it
            async with inside.asked(host, stage.publish(name)) as asked:
                await asked.locate()
        async with (
            inside.asked(host, stage.publish(names[0]), clone=CloneKind.REFLINK) as first,
            inside.asked(host, stage.publish(names[1]), clone=CloneKind.REFLINK) as second,
        ):
            for number in range(rounds + 5):
                for name, asked in zip(names, (first, second), strict=True):
                    seconds = await asked.locate_and_clone(f"{number:014x}")
                    if number >= 5:
                        taken[name].append(seconds)
    return taken
