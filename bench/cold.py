"""Cold: nothing of the image is on the host. From its reference to a rootfs that boots, beside the ways of today."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import median

from bench import rivals
from bench.measure import Usage, alternate, run
from bench.results import Row, at_least, at_most
from bench.stage import SIZE, Published, Stage

__all__ = ["build", "footprint", "rows"]


def build(stage: Stage, image: Published, *, timeline: Path | None = None) -> Usage:
    """``castoff rootfs build`` of an image of which nothing is here, in a process of its own; memory and disk are watched."""
    stage.forget()
    told = ["--timeline", str(timeline)] if timeline else []
    command = stage.castoff("--quiet", "rootfs", "build", "--size", str(SIZE), *told, image.reference)
    return run(command, disk=stage.store)


def rows(stage: Stage) -> Iterable[Row]:
    """castoff, containerd with and without mke2fs -d, skopeo + umoci, GNU tar; in turn, in one run."""
    image = stage.publish("big")
    ours = {"castoff": lambda: build(stage, image), "containerd": lambda: rivals.containerd(stage, image)}
    theirs = {"skopeo + umoci": lambda: rivals.umoci(stage, image), "skopeo + tar": lambda: rivals.tar(stage, image)}
    rounds, discard = (1, 0) if stage.quick else (3, 1)
    taken = alternate(ours, rounds=rounds, discard=discard)
    if not stage.quick:
        taken |= alternate(theirs, rounds=2, discard=0)
    builds: list[Usage] = taken.pop("castoff")
    yield from _ratios(builds, taken)
    yield from footprint("cold", image, builds)


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
    yield Row(group, f"{image.name}: peak memory of a cold build", memory / (1 << 20), "MiB", at_most(256))
    over = (disk - image.unpacked) / 1e6
    measured = {"unpacked": image.unpacked, "most_disk": disk}
    yield Row(group, f"{image.name}: most disk in use, over the unpacked size", over, "MB", at_most(64), measured)
