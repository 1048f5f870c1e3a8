"""Machines that are suspended and go on: real ones, under the agent's launcher."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import castoff
from castoff.agent.launch.launcher import HostLauncher
from castoff.agent.launch.logs import Logs
from castoff.errors import Unavailable
from castoff.lifecycle.config import parse_config
from castoff.lifecycle.launcher import ExecRequest, Launch
from castoff.machine.model import MachineId, MachineState, new_machine_id
from castoff.machine.records import MachineRecords
from machines import Castoff, castoff_state, eventually, is_running

COUNTS = """
echo in memory >/dev/shm/kept; echo boot >>/boots; sync; echo -$(wc -l </boots)
i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done
"""
"""Writes -1, -2, ... at each boot, then counts."""
HERE = Path(__file__).parent


@pytest.fixture(name="state", scope="module")
def _state(kernels: Path) -> Iterator[Castoff]:
    with castoff_state(kernels) as state:
        yield state


@contextlib.asynccontextmanager
async def launcher(state: Castoff) -> AsyncIterator[HostLauncher]:
    """A launcher, as an agent has one while it lives."""
    async with castoff.Host.open(state.state) as host:
        launches = HostLauncher(host, Logs(state.state / "agent" / "logs"))
        try:
            yield launches
        except BaseException:
            for machine in await launches.machines():  # of a test that failed
                await launches.discard(machine)
            raise


def launch(image: str, machine: MachineId) -> Launch:
    """A launch of the counter."""
    config = parse_config({"image": image, "init": {"exec": ["sh", "-c", COUNTS]}})
    return Launch(machine=machine, name="web", app="shop", version="01A", config=config)


async def numbers(state: Castoff, machine: str) -> list[int]:
    """What a machine has written so far."""
    return [int(line.message) async for line in Logs(state.state / "agent" / "logs").read(machine)]


async def counted(state: Castoff, machine: str, last: int) -> list[int]:
    """The same, once it has come to a number."""
    async with asyncio.timeout(60):
        while not (found := await numbers(state, machine)) or found[-1] < last:
            await asyncio.sleep(0.05)
        return found


async def test_a_suspended_machine_goes_on(state: Castoff) -> None:
    """No VMM meanwhile, no line lost or twice, memory as it was, the clock right, what was executed gone; what is kept is nobody
    else's to read, and gone when it goes on. Where it is broken the machine boots, on its disk."""
    wanted = launch(state.image, new_machine_id())
    resumes = replace(wanted, fresh=False, resume=True)
    records = MachineRecords(state.state / "store" / "machines")
    async with launcher(state) as launches:
        run = await launches.launch(wanted)
        await counted(state, wanted.machine, 10)
        (pid,) = (records.get(wanted.machine).vmm_state["pid"],)
        hangs = asyncio.create_task(
            run.execute(ExecRequest(argv=("sh", "-c", "echo >/dev/shm/runs; exec sleep 54321"), timeout=600))
        )
        probe = ExecRequest(argv=("sh", "-c", "test -e /dev/shm/runs && pidof sleep"))
        async with asyncio.timeout(30):
            while (await run.execute(probe)).exit_code:
                pass
        run.check_suspend()
        await run.suspend()
        assert not is_running(pid)
        with pytest.raises(Unavailable):
            await hangs
        (memory,) = (records.path(wanted.machine) / "memory").iterdir()
        assert memory.stat().st_mode & 0o777 == 0o600 and memory.parent.stat().st_mode & 0o777 == 0o700
        assert memory.stat().st_size < 256 << 20, "zeros are written"
    before = await numbers(state, wanted.machine)
    async with launcher(state) as launches:
        assert await launches.reattach(wanted) is None
        again = await launches.launch(resumes)
        assert again.began_cold == ""
        assert not memory.parent.exists() and not await launches.keeps(wanted.machine)
        after = await counted(state, wanted.machine, before[-1] + 10)
        assert after == [-1, *range(1, len(after))]
        told = await again.execute(ExecRequest(argv=("sh", "-c", "date +%s; cat /dev/shm/kept; ps")))
        clock, kept, *processes = told.stdout.decode().splitlines()
        assert kept == "in memory" and not [line for line in processes if "54321" in line]
        assert abs(int(clock) - time.time()) < 3, "its clock is that of before"

        await again.suspend()
        with memory.open("r+b") as file:
            file.seek(memory.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))
        cold = await launches.launch(resumes)
        assert "not what was written" in cold.began_cold
        async with asyncio.timeout(60):
            while -2 not in (said := await numbers(state, wanted.machine)):  # its disk went on
                assert said.count(-1) == 1, "its disk is another"
                await asyncio.sleep(0.05)
        await cold.kill()
        await launches.discard(wanted.machine)
        assert state.machines == []


KILLED = """
import asyncio, sys
sys.path[:0] = [{here!r}, {tests!r}]
from test_launch_suspend import *
async def main(state, image, machine):
    async with launcher(Castoff(Path(state), image)) as launches:
        wanted = launch(image, MachineId(machine))
        run = await launches.reattach(wanted) or await launches.launch(replace(wanted, fresh=False, resume=True))
        print("runs", flush=True)
        sys.stdin.readline()
        await run.suspend()
        print("suspended", flush=True)
asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_launcher_killed_while_it_suspends(state: Castoff) -> None:
    """At each step on the way the machine runs on, or is suspended with all of its memory: it never boots, nothing is lost."""
    machine = new_machine_id()
    wanted = launch(state.image, machine)
    records = MachineRecords(state.state / "store" / "machines")
    memory = records.path(machine) / "memory"

    def grows() -> bool:
        return (memory / "guest").exists() and (memory / "guest").stat().st_size > 8 << 20

    def says_suspended() -> bool:
        return records.get(machine).state == MachineState.SUSPENDED

    async with launcher(state) as launches:
        run = await launches.launch(wanted)
        await counted(state, machine, 5)
        await run.detach()
    outcomes = []
    for moment in (memory.exists, grows, says_suspended):
        script = KILLED.format(here=str(HERE), tests=str(HERE.parent))
        command = [sys.executable, "-c", script, str(state.state), state.image, machine]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None and child.stdout.readline() == "runs\n"
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
            while not moment() and child.poll() is None:
                pass
            child.send_signal(signal.SIGKILL)
        last = max(await numbers(state, machine))
        async with launcher(state) as launches:
            found = await launches.reattach(wanted)
            outcomes.append("ran on" if found is not None else "suspended")
            if found is None:
                assert await launches.keeps(machine)
                found = await launches.launch(replace(wanted, fresh=False, resume=True))
                assert found.began_cold == ""
            said = await counted(state, machine, last + 5)
            assert said == [-1, *range(1, len(said))]
            assert not memory.exists()
            clock = (await found.execute(ExecRequest(argv=("date", "+%s")))).stdout
            assert abs(int(clock) - time.time()) < 3
            await found.detach()
    assert outcomes[0] == "ran on" and outcomes[2] == "suspended", outcomes
    async with launcher(state) as launches:
        await launches.discard(machine)
    eventually("its VMM is gone", lambda: state.machines == [])
