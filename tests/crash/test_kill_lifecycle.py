"""An agent's machines under kill -9: what was acknowledged is there, whole, and its state is one that can be gone on from."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from castoff.fakes.launcher import World
from castoff.lifecycle.states import SETTLED, State
from lifecycle import opened

KILLS = int(os.environ.get("CASTOFF_CRASH_KILLS", "6"))
TESTS = Path(__file__).resolve().parents[1]

AGENT = """
import asyncio, random, sys
from pathlib import Path
from castoff.fakes.launcher import World
from lifecycle import changed, opened, wanted

NO = {"policy": "no"}

async def client(machines):
    while True:
        machine = await machines.create("shop", wanted(skip_launch=random.random() < 0.5, restart=NO))
        print("made", machine.id, flush=True)
        for work in random.sample(("start", "stop", "update", "restart"), 2):
            extra = (changed(env={"A": work}, restart=NO),) if work == "update" else ()
            done = await getattr(machines, work)("shop", machine.id, *extra)
            if work == "update":
                print("updated", machine.id, done.version, flush=True)
        if random.random() < 0.5:
            await machines.destroy("shop", machine.id, force=True)
            print("destroyed", machine.id, flush=True)

async def main():
    async with opened(Path(sys.argv[1]), World()) as machines:
        await asyncio.gather(*(client(machines) for _ in range(20)))

asyncio.run(main())
"""


async def test_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    """Kills fall after any number of answers; the next agent has every machine and version, and none comes back to life."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    said: list[list[str]] = []
    for kill in range(KILLS):
        directory = tmp_path / str(kill // 2)  # so few that no destroyed machine is forgotten
        said = _killed_after(directory, chance.randrange(1, 400)) + (said if kill % 2 else [])
        async with opened(directory, World()) as machines:
            found = {str(machine.id): machine for machine in machines.list(include_deleted=True)}
            for what, machine, *version in said:
                assert machine in found, f"seed {seed}: {machine} was acknowledged ({what}) and is lost"
                state = found[machine].state
                if what == "destroyed":
                    assert state in (State.DESTROYING, State.DESTROYED), f"seed {seed}: {machine} is {state} after its end"
                if what == "updated":
                    assert found[machine].version >= version[0], f"seed {seed}: an update of {machine} is lost"
            for machine in found.values():
                await machines.wait(None, machine.id, states=SETTLED, timeout=20)
                assert await machines.versions(None, machine.id)


def _killed_after(directory: Path, answers: int) -> list[list[str]]:
    """What an agent said until it was killed, which it was after so many answers."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    agent = subprocess.Popen([sys.executable, "-c", AGENT, str(directory)], stdout=subprocess.PIPE, env=environment, text=True)
    with agent:
        assert agent.stdout is not None
        said = [agent.stdout.readline().split() for _ in range(answers)]
        agent.send_signal(signal.SIGKILL)
        rest = agent.stdout.read().splitlines(keepends=True)
    assert agent.returncode == -signal.SIGKILL
    return said + [line.split() for line in rest if line.endswith("\n")]
