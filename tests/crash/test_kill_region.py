"""Hosts of a region are killed, and cut off, in the middle of what they give one another: the others get all of it, and so do
they when they are back. Three hosts that begin together, processes of their own; another instant each time."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest

from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from daemons import free_port
from packed_layer import PackedLayer, random_files
from peer_hosts import real_pack
from region_process import Hosted

ROUNDS = 2 * int(os.environ.get("CASTOFF_CRASH_KILLS", "5"))
SEED = int(os.environ.get("CASTOFF_CRASH_SEED", "1"))
HOSTS = 3
PATIENCE = 60.0
Zygote: TypeAlias = "subprocess.Popen[str]"


class Region:
    """The hosts of one round.

    Args:
        directory: Where their states go.
        layer: A pickled PackedLayer.
        zygote: Forks them.
    """

    def __init__(self, directory: Path, layer: Path, zygote: Zygote) -> None:
        urls = tuple(f"http://127.0.0.1:{free_port()}" for _ in range(HOSTS))
        self.hosted = [Hosted(str(directory / f"host-{number}"), str(layer), urls, number, True) for number in range(HOSTS)]
        self._running: dict[int, int] = {}
        self._zygote = zygote

    def start(self, number: int, *, registry: bool = True) -> None:
        """Starts a host; one that was killed goes on with what it had."""
        hosted = msgspec.structs.replace(self.hosted[number], registry=registry)
        hosted.done.unlink(missing_ok=True)
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write(msgspec.json.encode(hosted).decode() + "\n")
        self._zygote.stdin.flush()
        self._running[number] = int(self._zygote.stdout.readline())

    def signal(self, number: int, what: signal.Signals) -> None:
        """Sends a signal; SIGSTOP is a host whose connections stand and that says nothing any more."""
        os.kill(self._running[number], what)

    def kill(self, number: int) -> None:
        """SIGKILL; returns when it is gone."""
        pid = self._running.pop(number)
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + PATIENCE
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < end, f"process {pid} does not end"
            time.sleep(0.005)

    def wait(self, numbers: Sequence[int]) -> None:
        """Waits until these hosts have all."""
        end = time.monotonic() + PATIENCE
        while left := [number for number in numbers if not self.hosted[number].done.exists()]:
            assert time.monotonic() < end, f"hosts {left} do not get all of it"
            time.sleep(0.02)

    def close(self) -> None:
        """Ends all."""
        for number in list(self._running):
            self.kill(number)


@pytest.fixture(name="zygote", scope="module")
def _zygote() -> Iterator[Zygote]:
    command = [sys.executable, Path(__file__).parents[1] / "region_process.py"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@contextlib.contextmanager
def region(directory: Path, layer: Path, zygote: Zygote) -> Iterator[Region]:
    found = Region(directory, layer, zygote)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(name="memory")
def _memory() -> Iterator[Path]:
    """A directory in memory: hosts must get on with one another, however long a disk takes to flush."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture(name="layer")
async def _layer(tmp_path: Path) -> PackedLayer:
    return await real_pack(tmp_path / "layer", random_files(11, chunks=40))


@pytest.fixture(name="pickled")
def _pickled(tmp_path: Path, layer: PackedLayer) -> Path:
    path = tmp_path / "layer.pickle"
    path.write_bytes(pickle.dumps(layer))
    return path


def _check(found: Region, layer: PackedLayer, numbers: Sequence[int]) -> None:
    """Every byte is right."""
    for number in numbers:
        stored = Store.open(Path(found.hosted[number].state), StoreSettings(backing="native")).layer(layer.index.diff_id)
        assert stored is not None
        assert stored.complete
        assert stored.segment.read_bytes() == layer.segment
        stored.pin.close()


def test_hosts_that_die_or_fall_silent_cost_the_others_nothing_but_time(
    memory: Path, layer: PackedLayer, pickled: Path, zygote: Zygote
) -> None:
    dice = random.Random(SEED)
    everybody = range(HOSTS)
    for number in range(ROUNDS):
        how, victim, after = dice.choice(["kill", "cut off", "cut off, then kill"]), dice.randrange(HOSTS), dice.uniform(0.0, 0.8)
        print(f"round {number}: {how} host {victim} after {after:.2f} s")
        directory = memory / f"round-{number}"
        directory.mkdir()
        begun = time.monotonic()
        with region(directory, pickled, zygote) as found:
            for host in everybody:
                found.start(host)
            time.sleep(after)
            if how == "kill":
                found.kill(victim)
            else:
                found.signal(victim, signal.SIGSTOP)
            found.wait([host for host in everybody if host != victim])
            if how == "cut off":
                found.signal(victim, signal.SIGCONT)
            else:
                if how == "cut off, then kill":
                    found.kill(victim)
                found.start(victim)
            found.wait(everybody)
            _check(found, layer, everybody)
        print(f"  {time.monotonic() - begun:.1f} s")
        shutil.rmtree(directory)


def test_the_registry_may_go_when_one_has_all(memory: Path, layer: PackedLayer, pickled: Path, zygote: Zygote) -> None:
    """Two hosts that begin when the registry is gone have all of it from the first, and from one another."""
    with region(memory, pickled, zygote) as found:
        found.start(0)
        found.wait([0])
        for host in (1, 2):
            found.start(host, registry=False)
        found.wait([1, 2])
        _check(found, layer, range(HOSTS))
