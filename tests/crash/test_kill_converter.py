"""Whoever makes a rootfs is killed, at any instant, many times: the next one is right, and nothing wrong was ever there.

The workers are forks of a process that has imported all that they need, so that the kills fall into the work itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from castoff.rootfs.verify import verify_store
from castoff.store.builds import sweep
from castoff.store.rootfs import rootfs_names
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from oci_builder import LayerTar, build_image, write_layout

KILLS = 50
MIB = 1 << 20

ZYGOTE = """
import asyncio, json, os, sys
from pathlib import Path
from castoff import timeline
from castoff.image.image import Platform
from castoff.image.layout import LayoutSource
from castoff.image.opening import open_source
from castoff.image.reference import parse_reference
from castoff.image.settings import ImageSettings
from castoff.rootfs import composition, conversion
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.layered import LayeredProvider
from castoff.rootfs.provider import RootfsRequest
from castoff.rootfs.settings import RootfsSettings
from castoff.store.settings import StoreSettings
from castoff.store.store import Store

async def work(layout, state):
    store = Store.open(Path(state), StoreSettings(backing="native"))
    source = open_source(parse_reference(f"oci:{layout}"), ImageSettings(), store.images)
    with timeline.recording(timeline.Timeline()) as recorded:
        image = await source.resolve(Platform())
        found = await LayeredProvider(ProviderContext(store, RootfsSettings(size=48 << 20))).locate(RootfsRequest(image, source))
    await source.close()
    return {"rootfs": str(found.path), "steps": [step.name for step in recorded.steps]}

print("ready", flush=True)
for line in sys.stdin:
    layout, state, answer = json.loads(line)
    pid = os.fork()
    if pid == 0:
        with open(answer, "w") as file:
            json.dump(asyncio.run(work(layout, state)), file)
        os._exit(0)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""


class Zygote:
    """Forks workers, one at a time."""

    def __init__(self, process: subprocess.Popen[str], directory: Path) -> None:
        self._process = process
        self._answer = directory / f"answer-{process.pid}"

    def start(self, layout: Path, state: Path) -> int:
        """A worker's pid."""
        assert self._process.stdin is not None
        self._answer.unlink(missing_ok=True)
        self._process.stdin.write(json.dumps([str(layout), str(state), str(self._answer)]) + "\n")
        self._process.stdin.flush()
        return int(self._line())

    def wait(self) -> dict[str, Any] | None:
        """Waits for the worker's end: its answer, or None where it was killed before it had one."""
        assert self._line() == "ended"
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            answer: dict[str, Any] = json.loads(self._answer.read_text())
            return answer
        return None

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def zygote(directory: Path) -> Iterator[Zygote]:
    process = subprocess.Popen([sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    yield Zygote(process, directory)
    process.stdin.close()
    process.stdout.close()
    assert process.wait(30) == 0


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """An image of three layers, in three compressions' worth of work."""
    dice = random.Random(11)
    big = LayerTar().directory("big")
    for number in range(200):
        big.file(f"big/{number}", dice.randbytes(dice.choice([100, 5000, 80_000, 300_000])))
    small = LayerTar().file("etc/motd", b"hello\n").whiteout("big/7").hardlink("etc/link", "big/8")
    other = LayerTar().file("other", dice.randbytes(5 * MIB)).symlink("sym", "other")
    return write_layout(tmp_path / "layout", {"latest": build_image([big, small, other])})


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def undisturbed(worker: Zygote, layout: Path, state: Path) -> tuple[str, float, dict[str, Any]]:
    """(digest of the rootfs, seconds that it took, the worker's answer)."""
    started = time.monotonic()
    worker.start(layout, state)
    answer = worker.wait()
    took = time.monotonic() - started
    assert answer is not None
    return digest_of(Path(answer["rootfs"])), took, answer


def wait_for(what: str, count: int, store: Store) -> None:
    """Until so many layers, or rootfs, are published."""
    deadline = time.monotonic() + 30
    while len(list((store.root / what).iterdir())) < count:
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def check_what_is_there(store: Store, expected: str) -> None:
    """Whatever has a name in the store is whole and right."""
    verdicts = asyncio.run(verify_store(store))
    assert [verdict for verdict in verdicts if verdict.problem] == []
    for name in rootfs_names(store.root):
        assert digest_of(store.root / "rootfs" / str(name) / "rootfs.ext4") == expected


def test_fifty_kills_at_random_instants(layout: Path, tmp_path: Path, scratch_xfs: Path) -> None:
    """After each: what is there is right; the next run makes the same bytes as an undisturbed one; no debris stays."""
    dice = random.Random(os.environ.get("CASTOFF_CRASH_SEED", "1"))
    state = scratch_xfs / "state"
    reached = dict.fromkeys(("nothing", "some layers", "all layers", "rootfs"), 0)
    with zygote(tmp_path) as worker:
        expected, _, _ = undisturbed(worker, layout, scratch_xfs / "undisturbed")
        store = Store.open(state, StoreSettings(backing="native"))
        longest = max(undisturbed(worker, layout, state)[1] for _ in range(3) if asyncio.run(store.prune()) is not None)
        for number in range(KILLS):
            asyncio.run(store.prune())
            pid = worker.start(layout, state)
            match number % 4:  # each part of the run gets its share of kills, however slow the machine is just now
                case 0:
                    time.sleep(longest * (number + dice.random()) / KILLS)  # spread over the whole run
                case 1:
                    wait_for("layers", 1, store)
                case 2:
                    wait_for("layers", 3, store)
                    time.sleep(0.01 * dice.random())
                case 3:
                    wait_for("rootfs", 1, store)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            worker.wait()
            layers, made = len(list((store.root / "layers").iterdir())), any((store.root / "rootfs").iterdir())
            reached["rootfs" if made else ("nothing", "some layers", "some layers", "all layers")[layers]] += 1
            check_what_is_there(store, expected)
            assert undisturbed(worker, layout, state)[0] == expected
            sweep(store.root)
            assert list((store.root / "tmp").iterdir()) == []
    assert all(reached.values()), f"kills fell only into {reached}"


def test_two_processes_convert_once(layout: Path, tmp_path: Path, scratch_xfs: Path) -> None:
    """Started at once, each gets the rootfs, and of every layer there was one conversion; of the rootfs, one composition."""
    with zygote(tmp_path) as first, zygote(tmp_path) as second:
        for attempt in range(4):
            state = scratch_xfs / f"state-{attempt}"
            Store.open(state, StoreSettings(backing="native"))
            for worker in (first, second):
                worker.start(layout, state)
            answers = [worker.wait() for worker in (first, second)]
            steps = [name for answer in answers if answer is not None for name in answer["steps"]]
            assert all(answers)
            assert steps.count("layers.convert") == 3
            assert steps.count("ext4.compose") == 1
            assert "store.locks" in steps  # one waited for the other


def test_a_waiter_takes_over_from_the_killed(layout: Path, tmp_path: Path, scratch_xfs: Path) -> None:
    """Two want the same image; the one that works dies; the other does it, and is right."""
    dice = random.Random(2)
    with zygote(tmp_path) as first, zygote(tmp_path) as second:
        expected, took, _ = undisturbed(first, layout, scratch_xfs / "undisturbed")
        for attempt in range(4):
            state = scratch_xfs / f"state-{attempt}"
            Store.open(state, StoreSettings(backing="native"))
            pid = first.start(layout, state)
            second.start(layout, state)
            time.sleep(took * dice.random())
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            first.wait()
            answer = second.wait()
            assert answer is not None
            assert digest_of(Path(answer["rootfs"])) == expected
