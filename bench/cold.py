"""Cold: nothing of the image is on the host. From its reference to a rootfs that boots, beside the ways of today."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from bench import inside, rivals
from bench.measure import Usage, alternate, run
from bench.results import Row, at_least, at_most
from bench.stage import Published, Stage

__all__ = ["build", "conversion_seconds", "footprint", "rows"]


def build(stage: Stage, image: Published, *, timeline: Path | None = None, watch: bool = True) -> Usage:
    """``castoff rootfs build`` of an image of which nothing is here, in a process of its own; ``watch``: memory and disk, too."""
    stage.forget()
    told = ["--timeline", str(timeline)] if timeline else []
    command = stage.castoff("--quiet", "rootfs", "build", "--size", str(image.size), *told, image.reference)
    return run(command, disk=stage.store, watch=watch)


def conversion_seconds(timeline: Path) -> float:
    """From the first layer's start to the last one's end, by the create's own timeline."""
    steps = [step for step in json.loads(timeline.read_text())["steps"] if step["name"] == "layers.convert"]
    return float(max(step["ended"] for step in steps) - min(step["started"] for step in steps))


def rows(stage: Stage) -> Iterable[Row]:
    """castoff, containerd with and without mke2fs -d, skopeo + umoci, GNU tar; in turn, in one run."""
    yield from _big(stage)
    for name in ("small", "medium"):
        image = stage.publish(name)
        ours = {
            "castoff": lambda image=image: build(stage, image, watch=False).seconds,
            "in a running process": lambda image=image: asyncio.run(inside.build_cold(stage, image)),
            "containerd": lambda image=image: rivals.containerd(stage, image),
        }
        taken = alternate(ours, rounds=1 if stage.quick else 3, discard=0 if stage.quick else 1)
        rival = median(one.tree for one in taken.pop("containerd"))
        told = {"containerd": rival} | {which: median(seconds) for which, seconds in taken.items()}
        what = f"{name}: containerd's pull + unpack / castoff's bootable rootfs"
        yield Row("cold", what, rival / told["castoff"], "x", None, told)
        yield Row("cold", f"{what}, in a running process", rival / told["in a running process"], "x")


def _big(stage: Stage) -> Iterable[Row]:
    image, timeline = stage.publish("big"), stage.directory / "timeline.json"
    ours = {
        "castoff": lambda: build(stage, image, timeline=timeline, watch=False),
        "in a running process": lambda: asyncio.run(inside.build_cold(stage, image)),
        "containerd": lambda: rivals.containerd(stage, image),
    }
    theirs = {"skopeo + umoci": lambda: rivals.umoci(stage, image), "skopeo + tar": lambda: rivals.tar(stage, image)}
    rounds, discard = (1, 0) if stage.quick else (3, 1)
    taken = alternate(ours, rounds=rounds, discard=discard)
    if not stage.quick:
        taken |= alternate(theirs, rounds=2, discard=0)
    builds: list[Usage] = taken.pop("castoff")
    inner: list[float] = taken.pop("in a running process")
    yield from _ratios(builds, taken)
    for what, rival in (("containerd's pull + unpack", "tree"), ("containerd + mke2fs -d", "bootable")):
        seconds = median(getattr(one, rival) for one in taken["containerd"]) / median(inner)
        yield Row("cold", f"big: {what} / castoff in a running process", seconds, "x", None, {"seconds": inner})
    yield from _rates(image, builds, timeline)
    yield from footprint("cold", image, [build(stage, image) for _ in range(rounds)])


def _rates(image: Published, builds: list[Usage], timeline: Path) -> Iterable[Row]:
    """What one build does in a second, end to end; and where its time goes."""
    seconds = median(usage.seconds for usage in builds)
    steps = [(step["name"], step["started"], step["ended"]) for step in json.loads(timeline.read_text())["steps"]]
    told = {"last_build_steps": steps, "cpu_seconds": median(usage.cpu for usage in builds)}
    yield Row("cold", "big: reference to bootable rootfs, unpacked content", image.unpacked / 1e6 / seconds, "MB/s", None, told)
    yield Row("cold", "big: the same, compressed bytes from the registry", image.compressed / 1e6 / seconds, "MB/s")


def _ratios(builds: list[Usage], taken: dict[str, list[rivals.Taken]]) -> Iterable[Row]:
    castoff = median(usage.seconds for usage in builds)
    trees = {name: median(one.tree for one in runs) for name, runs in taken.items()}
    bootable = {name: median(one.bootable for one in runs) for name, runs in taken.items()}
    bars = {"castoff": (castoff, 0.0)} | {name: (trees[name], bootable[name] - trees[name]) for name in taken}
    raw = {"castoff": [usage.seconds for usage in builds]} | {name: [one.tree for one in runs] for name, runs in taken.items()}
    for name in taken:
        first = name == "containerd"
        what = "pull + unpack" if first else "an unpacked tree"
        yield Row(
            "cold",
            f"big: {name}'s {what} / castoff's bootable rootfs",
            trees[name] / castoff,
            "x",
            at_least(6) if first else None,
            {"contenders": bars, "seconds": raw} if first else {},
        )
        yield Row("cold", f"big: {name} + mke2fs -d / castoff", bootable[name] / castoff, "x", at_least(9) if first else None)


def footprint(group: str, image: Published, builds: list[Usage]) -> Iterable[Row]:
    """Peak memory, and disk beyond the unpacked size, the worst of several builds."""
    memory, disk = max(usage.memory for usage in builds), max(usage.disk for usage in builds)
    yield Row(group, f"{image.name}: peak memory of a cold build", memory / 1e6, "MB", at_most(256))
    over = (disk - image.unpacked) / 1e6
    measured = {"unpacked": image.unpacked, "most_disk": disk}
    yield Row(group, f"{image.name}: most disk in use, over the unpacked size", over, "MB", at_most(64), measured)
