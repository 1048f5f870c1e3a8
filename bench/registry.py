"""The registry: how fast a blob comes in by castoff's own client, beside curl, and what a known tag costs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from bench import inside
from bench.measure import Failed, alternate, run
from bench.results import Row, at_most
from bench.stage import Published, Stage
from castoff.create import opened

__all__ = ["rows"]

_ROUNDS = 5
_RESOLVES = 50


def rows(stage: Stage) -> Iterable[Row]:
    """The big image's largest blob by both clients in turn, hashed by neither; resolving its tag when its manifest is here."""
    image = stage.publish("big")
    digest, size = _largest(image, stage)
    url = f"http://{stage.registry.host}/v2/{image.name}/blobs/{digest}"
    contenders = {
        "castoff": lambda: asyncio.run(_download(stage, image, digest)),
        "curl": lambda: run(["curl", "-sSf", "-o", "/dev/null", url]).seconds,
    }
    taken = alternate(contenders, rounds=1 if stage.quick else _ROUNDS)
    ours, curl = median(taken["castoff"]), median(taken["curl"])
    told = {"castoff": ours, "curl": curl, "bytes": size}
    yield Row("registry", "a blob of the big image by castoff's client", size / 1e6 / ours, "MB/s", None, told)
    yield Row("registry", "the same: castoff / curl, time", ours / curl, "x")
    tag = median(asyncio.run(_resolves(stage, image.reference)))
    pinned = median(asyncio.run(_resolves(stage, image.pinned)))
    yield Row("registry", "a known tag: one HEAD, median", tag * 1e3, "ms")
    yield Row("registry", "a known digest: no request / one HEAD", pinned / tag, "x", at_most(1))


def _largest(image: Published, stage: Stage) -> tuple[str, int]:
    manifest = image.pinned.partition("@")[2]
    blob = stage.registry.directory / "docker/registry/v2/blobs/sha256" / manifest[7:9] / manifest[7:] / "data"
    layer = max(json.loads(Path(blob).read_bytes())["layers"], key=lambda layer: layer["size"])
    return layer["digest"], layer["size"]


async def _download(stage: Stage, image: Published, digest: str) -> float:
    """Seconds from opening the blob to its last byte; the image is resolved before."""
    async with inside.host(stage) as host, opened(image.pinned, None, config=host.config, store=host.store) as (source, found):
        layer = next(layer for layer in found.layers if str(layer.digest) == digest)
        begun = time.perf_counter()
        got = 0
        async with source.open_blob(layer) as pieces:
            async for piece in pieces:
                got += len(piece)
        if got != layer.size:
            raise Failed(f"{got} bytes of {layer.size} came")
        return time.perf_counter() - begun


async def _resolves(stage: Stage, reference: str) -> list[float]:
    """Seconds of each but the first, every one with a connection of its own, as a command has."""
    seconds = []
    async with inside.host(stage) as host:
        for _ in range(_RESOLVES + 1):
            begun = time.perf_counter()
            async with opened(reference, None, config=host.config, store=host.store):
                seconds.append(time.perf_counter() - begun)
    return seconds[1:]
