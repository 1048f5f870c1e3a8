"""What an agent that is killed in the midst of a launch leaves on this host, and commands that are executed at once."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import castoff
from castoff.agent.launch.launcher import HostLauncher
from castoff.agent.launch.logs import Logs
from castoff.agent.reconcile import reconcile_forever
from castoff.errors import Unavailable
from castoff.lifecycle.config import parse_config
from castoff.lifecycle.database import Database
from castoff.lifecycle.launcher import ExecRequest, Launch
from castoff.lifecycle.machines import Machines
from castoff.machine.model import MachineId, MachineState, new_machine_id
from castoff.vmm.channel import GuestSilent
from lifecycle import Secrets, Volumes
from machines import Castoff, castoff_state

STAYS = "echo up; exec sleep 600"


@pytest.fixture(name="state", scope="module")
def _state(kernels: Path) -> Iterator[Castoff]:
    with castoff_state(kernels) as state:
        yield state


def launch(state: Castoff, script: str, *, machine: MachineId | None = None, fresh: bool = True) -> Launch:
    """A launch of a shell script."""
    config = parse_config({"image": state.image, "init": {"exec": ["sh", "-c", script]}})
    return Launch(machine=machine or new_machine_id(), name="web", app="shop", version="01A", config=config, fresh=fresh)


def vmm_processes(machine: str) -> list[int]:
    """Processes that call themselves a machine's."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"castoff-{machine}".encode() in words:
                found.append(int(entry.name))
    return found


async def test_a_launch_that_a_kill_broke_off_leaves_no_vmm(state: Castoff) -> None:
    """Its VMM ran, and nobody had written that down: whoever asks for the machine next ends it. A root filesystem that never
    ran is not kept, it may be half a copy."""
    async with castoff.Host.open(state.state) as host:
        launches = HostLauncher(host, Logs(state.state / "agent" / "logs"))
        wanted = launch(state, STAYS)
        run = await launches.launch(wanted)
        await run.detach()
        record = host.machines.get(wanted.machine)
        host.machines.update(msgspec.structs.replace(record, state=MachineState.CREATING, vmm="", vmm_state={}))
        assert vmm_processes(wanted.machine)
        assert await launches.reattach(wanted) is None
        assert vmm_processes(wanted.machine) == []
        host.machines.update(msgspec.structs.replace(record, state=MachineState.CREATING, vmm="", vmm_state={}))
        (state.machines[0] / "root.ext4").write_bytes(b"half a copy")
        run = await launches.launch(launch(state, STAYS, machine=wanted.machine, fresh=False))
        await run.kill()
        await launches.discard(wanted.machine)
        assert state.machines == []


async def test_a_launch_whose_surroundings_were_not_written_is_ended(state: Castoff) -> None:
    """The VMM is known and its launch was not over: it is ended, and launched anew from what it had."""
    async with castoff.Host.open(state.state) as host:
        launches = HostLauncher(host, Logs(state.state / "agent" / "logs"))
        wanted = launch(state, STAYS)
        first = await launches.launch(wanted)
        await first.detach()
        (state.machines[0] / "guest.json").unlink()
        assert await launches.reattach(wanted) is None
        assert vmm_processes(wanted.machine) == []
        run = await launches.launch(launch(state, STAYS, machine=wanted.machine, fresh=False))
        await run.kill()
        await launches.discard(wanted.machine)


async def test_a_guest_that_is_silent_is_not_ended(state: Castoff) -> None:
    """Whoever takes it up cannot tell that it is lost: it may be stopped, or slow. It is taken up when it answers again; until
    then it can be ended by force."""
    async with castoff.Host.open(state.state) as host:
        launches = HostLauncher(host, Logs(state.state / "agent" / "logs"), patience=1.0)
        one = launch(state, STAYS)
        await (await launches.launch(one)).detach()
        (vmm,) = vmm_processes(one.machine)
        os.kill(vmm, signal.SIGSTOP)
        for _ in range(2):
            with pytest.raises(GuestSilent):
                await launches.reattach(one)
        assert vmm_processes(one.machine) == [vmm]
        os.kill(vmm, signal.SIGCONT)
        run = await HostLauncher(host, Logs(state.state / "agent" / "logs")).reattach(one)
        assert run is not None
        assert (await run.execute(ExecRequest(argv=("echo", "here")))).stdout == b"here\n"
        await run.detach()
        os.kill(vmm, signal.SIGSTOP)
        await launches.end(one.machine)
        assert not vmm_processes(one.machine)
        assert await launches.reattach(one) is None
        await launches.discard(one.machine)


async def test_commands_at_once(state: Castoff) -> None:
    """None waits for another or disturbs it; one that is given up is killed; a stop does not wait for them."""
    async with castoff.Host.open(state.state) as host:
        launches = HostLauncher(host, Logs(state.state / "agent" / "logs"))
        wanted = launch(state, "trap '' INT; while :; do sleep 0.1; done")
        run = await launches.launch(wanted)
        slow = asyncio.create_task(run.execute(ExecRequest(argv=("sh", "-c", "sleep 3; echo slow"))))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        more = [run.execute(ExecRequest(argv=("echo", str(number)))) for number in range(40)]
        assert [result.stdout for result in await asyncio.gather(*more)] == [b"%d\n" % number for number in range(40)]
        assert time.monotonic() - began < 2.5
        endless = asyncio.create_task(run.execute(ExecRequest(argv=("yes", "x" * 5000))))
        with pytest.raises(Unavailable, match="did not end"):
            await run.execute(ExecRequest(argv=("yes",), timeout=0.5))
        endless.cancel()
        await asyncio.gather(endless, return_exceptions=True)
        result = await slow
        assert (result.exit_code, result.stdout) == (0, b"slow\n")
        async with asyncio.timeout(20):
            while "yes" in {process.command for process in await run.processes()}:
                await asyncio.sleep(0.1)
        waiting = asyncio.create_task(run.execute(ExecRequest(argv=("sleep", "60"))))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        await run.stop(2, 0.2)
        assert time.monotonic() - began < 8
        done, _ = await asyncio.wait((waiting,), timeout=10)
        assert done and (waiting.exception() is not None or waiting.result().exit_signal == 9)
        await launches.discard(wanted.machine)


async def test_an_end_that_cannot_be_written_down_is_told(state: Castoff) -> None:
    """The machine's directory is gone: its exit code is told all the same, and who waits does not wait for ever."""
    async with castoff.Host.open(state.state) as host:
        launches = HostLauncher(host, Logs(state.state / "agent" / "logs"))
        wanted = launch(state, "while [ ! -e /go ]; do sleep 0.1; done; exit 3")
        run = await launches.launch(wanted)
        await run.execute(ExecRequest(argv=("touch", "/go")))
        directory = host.machines.path(wanted.machine)
        shutil.rmtree(directory)
        async with asyncio.timeout(60):
            exit = await run.wait()
        assert exit.code == 3
        assert "written down" in exit.message
        await launches.discard(wanted.machine)


async def test_a_root_filesystem_that_nobody_knows_is_found(state: Castoff) -> None:
    """By the next reconciliation: after a crash it may be all that is left of a machine."""
    async with castoff.Host.open(state.state) as host:
        launches = HostLauncher(host, Logs(state.state / "agent" / "logs"))
        machine = new_machine_id()
        kept = host.store.root / "kept" / f"{machine}.ext4"
        kept.parent.mkdir(exist_ok=True)
        kept.touch()
        assert machine in await launches.machines()
        await launches.discard(machine)
        assert not kept.exists()


async def test_reconciliation_goes_on_after_a_failure(state: Castoff) -> None:
    """A disk that refuses once does not end it for good."""
    told: list[str] = []
    async with castoff.Host.open(state.state) as host, Database.open(state.state / "reconciled.db") as database:
        logs = Logs(state.state / "agent" / "logs")
        launches = HostLauncher(host, logs)
        async with Machines.open(database, launches, secrets=Secrets(), volumes=Volumes()) as machines:
            kept = host.store.root / "kept"
            shutil.rmtree(kept, ignore_errors=True)
            kept.touch()  # no directory: it cannot be listed
            going = asyncio.create_task(reconcile_forever(machines, launches, logs, host.sweep, told.append))
            async with asyncio.timeout(10):
                while not told:
                    await asyncio.sleep(0.01)
            kept.unlink()
            assert not going.done()
            assert "cannot be looked for" in told[0]
            going.cancel()
            await asyncio.gather(going, return_exceptions=True)
