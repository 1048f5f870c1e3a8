"""A machine whose agents are killed, one after another: it runs to its end once, its exit and all of its output are known.

Real guests in QEMU, and more often stand-ins. CASTOFF_CRASH_KILLS=100 for a long run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from machines import Castoff, castoff_state, eventually

KILLS = int(os.environ.get("CASTOFF_CRASH_KILLS", "10"))
TESTS = Path(__file__).resolve().parents[1]
LINES = 60
pytestmark = pytest.mark.timeout(120 + 20 * KILLS)

AGENT = """
import asyncio, sys
from pathlib import Path
from castoff.agent.launch.launcher import HostLauncher
from castoff.agent.launch.logs import Logs
from castoff.config import load
from castoff.host import Host
from castoff.lifecycle.database import Database
from castoff.lifecycle.machines import Machines
from castoff.lifecycle.states import State
from lifecycle import Secrets, Volumes, wanted

async def main(state, config, image, script, work):
    async with Host.open(config=load(config, state=state)) as host:
        launcher = HostLauncher(host, Logs(state / "agent" / "logs"))
        async with (
            Database.open(state / "castoff.db") as database,
            Machines.open(database, launcher, secrets=Secrets(), volumes=Volumes(), region="local") as machines,
        ):
            if work == "destroy":
                for machine in machines.list():
                    await machines.destroy("shop", machine.id, force=True)
                    await machines.wait(None, machine.id, states=[State.DESTROYED], timeout=60)
                host.machines.sweep_debris()
                return
            found = machines.list()
            if not found:
                init = {"exec": ["/bin/sh", "-c", script]}
                found = [await machines.create("shop", wanted(image, init=init, restart={"policy": "on-failure"}))]
            print("here", found[0].id, flush=True)
            await machines.wait(None, found[0].id, states=[State.STOPPED], timeout=90)
            print("ended", flush=True)

asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
"""
SCRIPT = f"i=0; while [ $i -lt {LINES} ]; do echo $i; echo e$i >&2; i=$((i+1)); sleep 0.04; done; printf the-end"
"""Ends well: an agent that took it for lost would start it again, by its policy."""


PAUSES = (1.5, 0.3, 0.3, 0.5, 0.02)
"""Seconds, at most, after which the kill falls in each part."""


class Agents:
    """One agent after another over the same state."""

    def __init__(self, castoff: Castoff, dice: random.Random) -> None:
        self.castoff = castoff
        self.dice = dice

    def start(self, work: str = "") -> subprocess.Popen[bytes]:
        """An agent that makes a machine, where there is none, and waits for its end."""
        words = [str(self.castoff.state), str(self.castoff.config), self.castoff.image, SCRIPT, work]
        environment = os.environ | {"PYTHONPATH": str(TESTS)}
        return subprocess.Popen([sys.executable, "-c", AGENT, *words], stdout=subprocess.PIPE, env=environment, bufsize=0)

    def kill_one(self, part: int) -> bool:
        """Starts one and kills it; ``part`` says how far its machine is: each part gets its share. True: it had ended before."""
        before, lines = self.record(), self.lines()
        agent = self.start()
        deadline = time.monotonic() + 60
        try:
            while agent.poll() is None and not self.is_so_far(part, before, lines):
                assert time.monotonic() < deadline, f"in vain: part {part}"
                time.sleep(0.002)
            time.sleep(self.dice.random() * PAUSES[part])
        finally:
            agent.kill()
            said, _ = agent.communicate()
        return b"ended" in said

    def is_so_far(self, part: int, before: dict[str, object], lines: dict[int, list[str]]) -> bool:
        """Since an agent's start. 0: at once; 1: there is the machine's directory; 2: its VMM is written down, where it had none;
        3: it has written something; 4: its exit is known."""
        record = self.record()
        made = bool(before.get("vmm")) or record.get("created") != before.get("created")
        match part:
            case 0:
                return True
            case 1:
                return made
            case 2:
                return made and bool(record.get("vmm"))
            case 3:
                return self.lines() != lines
            case _:
                return record.get("exit_code") is not None

    def record(self) -> dict[str, object]:
        """Of the machine; nothing where there is none."""
        for directory in self.castoff.machines:
            try:
                found: dict[str, object] = json.loads((directory / "machine.json").read_bytes())
            except FileNotFoundError:
                continue
            return found
        return {}

    def finish(self, work: str = "") -> None:
        """An agent that nobody kills."""
        agent = self.start(work)
        said, _ = agent.communicate(timeout=120)
        assert agent.returncode == 0, said
        assert work or b"ended" in said

    def lines(self) -> dict[int, list[str]]:
        """What the log has, a list a stream."""
        file = self.castoff.state / "agent" / "logs" / str(self.record().get("id")) / "current"
        text = file.read_text() if file.exists() else ""
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return {stream: [line["m"] for line in lines if line["s"] == stream] for stream in (1, 2)}

    def left(self) -> dict[str, list[str]]:
        """What there is of machines on this host."""
        here = str(self.castoff.state)
        own = [path for part in ("machines", "kept", "tmp") for path in (self.castoff.state / "store" / part).rglob("*")]
        return {
            "files": sorted(str(path) for path in own),
            "sockets": [line for line in Path("/proc/net/unix").read_text().splitlines() if here in line],
            "mounts": [line for line in Path("/proc/self/mounts").read_text().splitlines() if here in line],
        }


@pytest.fixture(name="castoff")
def _castoff(kernels: Path, vmm: str) -> Iterator[Castoff]:
    with castoff_state(kernels) as state:
        config = state.state.parent / "config.toml"
        config.write_text(f'[vmm]\norder = ["{vmm}"]\n')
        assert Castoff(state.state, state.image, config)("rootfs", "build", state.image).returncode == 0
        yield Castoff(state.state, state.image, config)


@pytest.mark.parametrize(("vmm", "machines"), [("stand-in", max(1, KILLS // 5)), ("qemu", max(1, KILLS // 10))])
def test_a_machine_runs_once_whatever_becomes_of_its_agents(castoff: Castoff, vmm: str, machines: int) -> None:
    """Killed in every part of a machine's life: it is not started twice, no line is lost or doubled, its exit is its own."""
    seed = int(os.environ.get("CASTOFF_CRASH_SEED", "0")) or random.randrange(2**32)
    agents = Agents(castoff, random.Random(seed))
    before = agents.left()
    for _ in range(machines):
        for part in range(5):
            if agents.kill_one(part):
                break
        agents.finish()
        found = agents.record()
        assert (found["state"], found["exit_code"]) == ("exited", 0), (seed, vmm, found)
        numbers = list(map(str, range(LINES)))
        assert agents.lines() == {1: [*numbers, "the-end"], 2: [f"e{number}" for number in numbers]}, (seed, vmm)
        agents.finish("destroy")
        eventually("nothing is left of it", lambda: agents.left() == before)
