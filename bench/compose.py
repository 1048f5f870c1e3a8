"""Compose only: the image's layers are here, the image was never composed here."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import inside
from bench.cold import build, footprint
from bench.measure import run
from bench.results import Row, at_least, at_most
from bench.stage import SIZE, Published, Stage

__all__ = ["rows"]


@dataclass(frozen=True, slots=True)
class _Limits:
    """The targets of one image, in seconds."""

    entries: str
    running: float
    cold: float


_IMAGES = {"big": _Limits("38,000 entries", 0.15, 0.6), "many": _Limits("200,000 entries", 0.5, 1.2)}


def rows(stage: Stage) -> Iterable[Row]:
    """In a running process and in one that starts for it; beside ``mke2fs -d`` of the same tree."""
    for name, limits in _IMAGES.items():
        image = stage.publish(name)
        if name == "big":
            build(stage, image)
        else:
            yield from footprint("compose", image, [build(stage, image)])
        processes = [_cold_process(stage, image) for _ in range(3 if stage.quick else 7)]
        seconds, written, metadata = asyncio.run(_running(stage, image, 3 if stage.quick else 10))
        running, cold = median(seconds), median(processes)
        raw = {"running": seconds, "cold": processes}
        yield Row("compose", f"{name} ({limits.entries}): in a running process", running, "s", at_most(limits.running), raw)
        yield Row("compose", f"{name}: a process that starts for it", cold, "s", at_most(limits.cold))
        told = {"written": written, "metadata": metadata}
        yield Row("compose", f"{name}: bytes written / the metadata's bytes", written / metadata, "x", at_most(1.1), told)
        tree = _mke2fs(stage, image)
        yield Row(
            "compose", f"{name}: mke2fs -d of the same tree / composing", tree / running, "x", at_least(20), {"mke2fs": tree}
        )


def _cold_process(stage: Stage, image: Published) -> float:
    stage.forget("rootfs")
    return run(stage.castoff("--quiet", "rootfs", "build", "--size", str(SIZE), image.pinned)).seconds


async def _running(stage: Stage, image: Published, rounds: int) -> tuple[list[float], int, int]:
    """Seconds of each round but the first, bytes written in the last, and the metadata's bytes.

    Those are what the result takes on disk beyond its segments, however it came there: a copied segment would show.
    """
    seconds = []
    written = 0
    async with inside.host(stage) as host, inside.asked(host, image) as asked:
        for _ in range(rounds + 1):
            await asyncio.to_thread(stage.forget, "rootfs")
            before = inside.written_bytes()
            seconds.append(await asked.locate())
            written = inside.written_bytes() - before
    (file,) = (stage.store / "rootfs").glob("*/rootfs.ext4")
    segments = sum(_on_disk(path) for path in (stage.store / "layers").glob("*/segment"))
    return seconds[1:], written, _on_disk(file) - segments


def _on_disk(path: Path) -> int:
    return path.stat().st_blocks * 512


def _mke2fs(stage: Stage, image: Published) -> float:
    """Seconds of ``mke2fs -d``, with the tree in the page cache."""
    with stage.scratch("compose") as scratch:
        tree, blobs = scratch / "tree", scratch / "blobs"
        tree.mkdir()
        run(["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{image.reference}", f"dir:{blobs}"])
        for layer in json.loads((blobs / "manifest.json").read_text())["layers"]:
            blob = blobs / layer["digest"].removeprefix("sha256:")
            run(["tar", "--xattrs", "--numeric-owner", "-I", "unpigz", "-C", tree, "-xpf", blob])
        os.sync()
        seconds = []
        for _ in range(1 if stage.quick else 2):
            file = scratch / "rootfs.ext4"
            seconds.append(run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, file, f"{SIZE >> 10}k"]).seconds)
        return seconds[-1]
