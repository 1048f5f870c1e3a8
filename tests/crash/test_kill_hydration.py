"""Whoever begins, fills or replaces a layer is killed, at any instant: a bit stands only for a chunk that is there.

The workers are forks of a process that has imported all that they need, so that the kills fall into the work itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from castoff.errors import CastoffError
from castoff.image.digest import Digest
from castoff.store.builds import sweep
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from packed_layer import PackedLayer, packed_layer, random_files

KILLS = 25

ZYGOTE = """
import asyncio, json, os, pickle, sys
from dataclasses import replace
from pathlib import Path
import numpy
from castoff.layers.index import write_index
from castoff.layers.locations import Locations
from castoff.layers.toc import CHUNK
from castoff.store import replace as _
from castoff.store.hydration import HaveMap
from castoff.store.settings import StoreSettings
from castoff.store.store import Store

async def hydrate(store, index, segment):
    layer = await store.begin_layer(index.diff_id, index)
    with HaveMap.open(layer.path) as have, layer.segment.open("r+b", buffering=0) as file:
        missing = [n for n in range(have.chunks) if not have.has(n)]
        for first in range(0, len(missing), 3):
            batch = missing[first : first + 3]
            for number in batch:
                os.pwrite(file.fileno(), segment[number * CHUNK : (number + 1) * CHUNK], number * CHUNK)
            os.fdatasync(file.fileno())
            have.set_many(batch)
        have.complete()

async def convert(store, index, segment):
    async def build(directory):
        for first in range(0, len(segment), CHUNK):
            with (directory / "segment").open("ab") as file:
                file.write(segment[first : first + CHUNK])
        write_index(directory / "index", replace(index, locations=Locations.local(len(index.zero))))
    await store.build_layer(index.diff_id, build)

print("ready", flush=True)
for line in sys.stdin:
    what, state, layer = json.loads(line)
    pid = os.fork()
    if pid == 0:
        index, segment = pickle.loads(Path(layer).read_bytes())
        store = Store.open(Path(state), StoreSettings(backing="native"))
        asyncio.run(globals()[what](store, index, segment))
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


class Zygote:
    """Forks workers, one at a time."""

    def __init__(self, process: subprocess.Popen[str], state: Path, layer: Path) -> None:
        self._process = process
        self._state = state
        self._layer = layer

    def run(self, what: str, *, kill_after: float | None = None, once: Callable[[], bool] = lambda: True) -> bool:
        """Runs a worker, kills it so many seconds after ``once`` holds; whether it came to its end."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, str(self._state), str(self._layer)]) + "\n")
        self._process.stdin.flush()
        pid = int(self._line())
        if kill_after is not None:
            deadline = time.monotonic() + 30
            while not once():
                assert time.monotonic() < deadline
                time.sleep(0.0005)
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        status = int(self._line())
        assert status in (0, signal.SIGKILL), f"the worker ended with {status}"
        return status == 0

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture
async def layer(tmp_path: Path) -> PackedLayer:
    return await packed_layer(tmp_path / "layer", random_files(9, chunks=40))


@pytest.fixture
def zygote(tmp_path: Path, layer: PackedLayer) -> Iterator[Zygote]:
    stored = tmp_path / "layer.pickle"
    stored.write_bytes(pickle.dumps((layer.index, layer.segment)))
    with subprocess.Popen([sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield Zygote(process, tmp_path / "state", stored)
        process.stdin.close()
        assert process.wait(30) == 0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "state", StoreSettings(backing="native"))


def chunks_here(store: Store, layer: PackedLayer) -> int | None:
    """How many of the layer's chunks are here, each compared; None where it has not begun."""
    found = store.layer(layer.index.diff_id)
    if found is None:
        return None
    present, segment = found.present(), found.segment.read_bytes()
    assert len(segment) == layer.index.segment_size
    for number in np.flatnonzero(present):
        at = int(number) * layer.index.chunk_size
        assert segment[at : at + layer.index.chunk_size] == layer.chunk(int(number)), f"chunk {number} is not there"
    assert not found.complete or present.all()
    return int(present.sum())


def said_to_be_here(store: Store, layer: PackedLayer) -> int:
    """The same by the layer's own word."""
    found = store.layer(layer.index.diff_id)
    return 0 if found is None else int(found.present().sum())


def clear(store: Store, diff_id: Digest) -> None:
    from castoff.store.prune import remove_layer

    with contextlib.suppress(CastoffError):
        remove_layer(store.root, diff_id)


def test_a_killed_filler_leaves_what_it_said(zygote: Zygote, store: Store, layer: PackedLayer) -> None:
    """From the first step to the flag; the next one goes on from there, and no debris stays."""
    dice = random.Random(os.environ.get("CASTOFF_CRASH_SEED", "1"))
    began = time.monotonic()
    assert zygote.run("hydrate")
    longest = time.monotonic() - began
    reached = {None: 0, "some": 0, "all": 0}
    for number in range(KILLS):
        before = chunks_here(store, layer)
        if number % 4 == 0 or before == len(layer.index.zero):
            clear(store, layer.index.diff_id)
            before = 0
        if number % 4 == 0:  # anywhere
            zygote.run("hydrate", kill_after=longest * dice.random())
        else:  # soon after it has said that some more are here, however fast the machine is
            once = lambda before=before: said_to_be_here(store, layer) > (before or 0)  # noqa: E731
            zygote.run("hydrate", kill_after=0.3 * longest * dice.random(), once=once)
        here = chunks_here(store, layer)
        reached[None if here is None else "all" if here == len(layer.index.zero) else "some"] += 1
        sweep(store.root)
        assert list((store.root / "tmp").iterdir()) == []
    assert zygote.run("hydrate")
    found = store.layer(layer.index.diff_id)
    assert found is not None
    assert found.complete
    assert chunks_here(store, layer) == len(layer.index.zero)
    assert reached["some"], f"kills fell only into {reached}"


def test_a_killed_conversion_leaves_one_of_both(zygote: Zygote, store: Store, layer: PackedLayer) -> None:
    """The layer that comes in, or the whole one in its place; never neither."""
    dice = random.Random(os.environ.get("CASTOFF_CRASH_SEED", "1"))
    assert zygote.run("hydrate", kill_after=0.15) in (True, False)
    if chunks_here(store, layer) is None:
        assert zygote.run("hydrate")
    began = time.monotonic()
    assert zygote.run("convert")
    longest = time.monotonic() - began
    for _ in range(KILLS // 2):
        clear(store, layer.index.diff_id)
        zygote.run("hydrate", kill_after=longest)
        before = chunks_here(store, layer)
        zygote.run("convert", kill_after=longest * dice.random() * 1.2)
        after = chunks_here(store, layer)
        assert before is None or (after is not None and after >= before)
        assert zygote.run("convert")
        assert chunks_here(store, layer) == len(layer.index.zero)
        sweep(store.root)
        assert list((store.root / "tmp").iterdir()) == []
