"""Flat: conversion speed, peak memory and scratch space from 100 MB to 10 GB."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from bench.cold import build, conversion_seconds, footprint
from bench.results import Row, at_least
from bench.stage import Published, Stage

__all__ = ["rows"]


def rows(stage: Stage) -> Iterable[Row]:
    """MB of unpacked content a second, for synthetic images of one layer."""
    rounds = {"100mb": 3, "1gb": 1} if stage.quick else {"100mb": 5, "1gb": 3, "10gb": 1}
    speeds: dict[str, float] = {}
    for name, count in rounds.items():
        image = stage.publish(name)
        yield from _one(stage, image, count, speeds)
    rates = list(speeds.values())
    share = min(rates) / max(rates)
    yield Row(
        "flat", "the slowest of these conversions / the fastest, MB/s", share, "x", at_least(0.7), {"mb_per_second": speeds}
    )


def _one(stage: Stage, image: Published, count: int, speeds: dict[str, float]) -> Iterable[Row]:
    builds, conversions = [], []
    timeline = stage.directory / "timeline.json"
    for _ in range(count + 1):
        builds.append(build(stage, image, timeline=timeline))
        conversions.append(conversion_seconds(timeline))
    # The first round touches disk blocks that the others find; its memory and disk count all the same.
    speeds[image.name] = image.unpacked / 1e6 / median(conversions[1:])
    yield Row("flat", f"{image.name}: conversion, download included", speeds[image.name], "MB/s", None, {"seconds": conversions})
    yield from footprint("flat", image, builds)
