"""Hydrator and keeper are killed, at any instant: a reader of the clone waits, goes on, and never sees a wrong byte.

Where both are dead and nobody can go on, the reader is killed. CASTOFF_CRASH_KILLS=50 for a long run.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hydration
from castoff.hydrate.descriptors import close_all
from castoff.hydrate.keeper_client import connect

KILLS = int(os.environ.get("CASTOFF_CRASH_KILLS", "6"))


def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def end(pid: int) -> None:
    """Kills a process that may be gone, and waits until its descriptors are closed."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, signal.SIGKILL)
    waiting = select.poll()
    waiting.register(process, select.POLLIN)
    assert waiting.poll(30_000)
    os.close(process)


class Host:
    """A state directory with a keeper, a hydrator that it starts, and one machine."""

    def __init__(self, state: Path, *, deadliness: float = 0.0) -> None:
        self.state = state
        self._command = [sys.executable, hydration.__file__, "hydrate", str(state), str(deadliness)]
        self.machine = hydration.prepare(state / "machines" / "m1")
        self._readers: list[subprocess.Popen[str]] = []
        keeper = connect(state, command=self._command)
        keeper.keep("m1", (self.machine.group, self.machine.fill))
        keeper.start_hydrator()
        keeper.close()

    def start_reader(self, *, inherits: bool, rounds: int = 3) -> subprocess.Popen[str]:
        """Starts it, and closes our own copies of the descriptors."""
        reader = subprocess.Popen(
            [sys.executable, hydration.__file__, "read", str(self.machine.clone), "1", str(rounds)],
            pass_fds=(self.machine.group, self.machine.fill) if inherits else (),
            stdout=subprocess.PIPE,
            text=True,
        )
        self._readers.append(reader)
        os.close(self.machine.group)
        os.close(self.machine.fill)
        return reader

    def wake(self) -> None:
        """What the next castoff command does: sees to it that there is a keeper and a hydrator."""
        keeper = connect(self.state, command=self._command)
        keeper.start_hydrator()
        keeper.close()

    def is_kept(self) -> bool:
        """Whether the keeper holds the machine's descriptors."""
        keeper = connect(self.state, command=self._command)
        held = keeper.take()
        keeper.close()
        for descriptors in held.values():
            close_all(descriptors)
        return "m1" in held

    def log(self) -> str:
        return (self.state / "hydrate" / "log").read_text()

    def hydrators(self) -> list[int]:
        return [int(line.split()[3]) for line in self.log().splitlines() if " started, " in line]

    def keepers(self) -> list[int]:
        return [int(line.split()[2]) for line in self.log().splitlines() if " keeps " in line]

    def end(self) -> None:
        for reader in self._readers:
            reader.kill()
            reader.communicate()
        while pids := self.processes():  # whoever lives starts the other again, and may be about to say so
            for pid in pids:
                end(pid)

    def processes(self) -> list[int]:
        """Keepers and hydrators of this state, by their command lines."""
        found, own = [], os.fsencode(self.state)
        for directory in Path("/proc").iterdir():
            if directory.name.isdecimal() and int(directory.name) != os.getpid():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if own in (directory / "cmdline").read_bytes().split(b"\0"):
                        found.append(int(directory.name))
        return found


@pytest.fixture
def state(scratch_xfs: Path) -> Path:
    return scratch_xfs / "state"


@contextlib.contextmanager
def host(state: Path, *, deadliness: float = 0.0) -> Iterator[Host]:
    found = Host(state, deadliness=deadliness)
    try:
        yield found
    finally:
        found.end()


def outcome(reader: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str]:
    """(exit status, the last line that it wrote)."""
    text, _ = reader.communicate(timeout=seconds)
    return reader.returncode, text.splitlines()[-1] if text else ""


def wait_for_lines(reader: subprocess.Popen[str], count: int) -> None:
    assert reader.stdout is not None
    for _ in range(count):
        assert reader.stdout.readline()


def test_a_hydrator_killed_at_random_instants_has_a_successor(state: Path) -> None:
    """Its reader waits and goes on; every byte is right, those it wrote itself too; each death had a successor."""
    dice = random.Random(os.environ.get("CASTOFF_CRASH_SEED", "1"))
    for number in range(-(-KILLS // hydration.DEATHS)):
        with host(state / str(number)) as here:
            reader = here.start_reader(inherits=True, rounds=12)  # long enough for all of these deaths, on any machine
            for kill in range(1, hydration.DEATHS + 1):
                eventually(lambda kill=kill, here=here: len(here.hydrators()) == kill)  # type: ignore[misc]
                wait_for_lines(reader, 60)  # it serves again
                time.sleep(dice.random() * 0.05)
                os.kill(here.hydrators()[-1], signal.SIGKILL)
            assert outcome(reader) == (0, "right")
            assert len(here.keepers()) == 1


def test_a_hydrator_that_dies_at_each_of_its_steps_has_a_successor(state: Path) -> None:
    """Between reading an event, filling, marking, answering and writing that down: no event is lost, no byte is wrong."""
    deaths: Counter[str] = Counter()
    recovered = 0
    for number in range(-(-KILLS // hydration.DEATHS)):  # some at a time: the pause before a successor grows
        with host(state / str(number), deadliness=0.02) as here:
            assert outcome(here.start_reader(inherits=True)) == (0, "right")
            deaths.update((here.state / "deaths").read_text().split())
            recovered += (here.state / "recovered").stat().st_size
    assert deaths.total() >= KILLS
    assert recovered > 0
    assert len(deaths) >= (2 if KILLS < 50 else len(hydration.STEPS)), deaths


def test_a_keeper_that_is_killed_is_started_again_by_the_hydrator(state: Path) -> None:
    """Again and again, and the hydrator after it: the second keeper held what the first one had."""
    with host(state) as here:
        reader = here.start_reader(inherits=False, rounds=KILLS)
        wait_for_lines(reader, 20)
        for number in range(3):
            os.kill(here.keepers()[-1], signal.SIGKILL)
            eventually(lambda number=number: len(here.keepers()) == number + 2)  # type: ignore[misc]
            eventually(here.is_kept)
            os.kill(here.hydrators()[-1], signal.SIGKILL)
            eventually(lambda number=number: here.log().count("serves 1") == number + 2)  # type: ignore[misc]
        assert outcome(reader) == (0, "right")


def test_both_killed_the_descriptors_are_taken_back_from_the_monitor(state: Path) -> None:
    """The reader holds them, so it only waits; who comes next goes on where the dead ones were."""
    with host(state) as here:
        reader = here.start_reader(inherits=True)
        for number in range(1, 4):
            wait_for_lines(reader, 60)
            kill_both(here)
            time.sleep(0.1)
            assert reader.poll() is None
            here.wake()
            eventually(lambda number=number: here.log().count("took back") == number)  # type: ignore[misc]
        assert outcome(reader) == (0, "right")


def test_both_killed_and_nothing_to_take_back_the_reader_is_killed(state: Path) -> None:
    """The kernel let it go on with zeros; it ends, and its clone is gone."""
    with host(state) as here:
        machine = here.machine
        sleeper = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import time; file = open({str(machine.clone)!r}, 'r+b'); print(1, flush=True); time.sleep(999)",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        bystander = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import time; file = open({str(machine.clone)!r}, 'rb'); print(1, flush=True); time.sleep(999)",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in (sleeper, bystander):
            wait_for_lines(process, 1)
        os.close(machine.group)
        os.close(machine.fill)
        eventually(lambda: len(here.hydrators()) == 1)
        kill_both(here)
        here.wake()
        assert outcome(sleeper) == (-signal.SIGKILL, "")
        eventually(lambda: not machine.clone.exists())
        assert bystander.poll() is None  # it reads only: a backup, say
        bystander.kill()
        bystander.communicate()


def kill_both(here: Host) -> None:
    """So that neither can start the other: stopped first, both, then killed."""
    pids = here.keepers()[-1], here.hydrators()[-1]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        end(pid)
