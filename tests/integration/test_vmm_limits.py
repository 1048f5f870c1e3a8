"""Control groups of VMMs, on this host's own: entered before anything runs, held to, told of when they kill, left by nobody.

Where the host has none that may be written (a bare chroot, a container), the same tests show that machines run without, and
that whoever demands limits is refused.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import castoff
import cgroup_guest
from castoff.agent.launch.launcher import HostLauncher
from castoff.agent.launch.logs import Logs
from castoff.config import load
from castoff.errors import Unsupported
from castoff.lifecycle.config import parse_config
from castoff.lifecycle.launcher import Launch
from castoff.machine.model import new_machine_id
from castoff.vmm.cgroups import Group, Limits, Tree, find_tree
from castoff.vmm.kernel import find_kernel
from castoff.vmm.limits import (
    Entrance,
    all_usage,
    end_groups,
    entrance,
    group_of,
    machine_limits,
    missing_limits,
    open_tree,
    why_killed,
)
from castoff.vmm.process import MonitorProcess, spawn
from castoff.vmm.qemu import QemuVmm
from castoff.vmm.settings import LimitSettings, QemuSettings, VmmSettings
from castoff.vmm.vmm import MachineSpec
from guests import MIB, Guests, make_rootfs, transcript, until
from machines import Castoff, castoff_state, eventually
from python_guest import make_python_rootfs

SETTINGS = VmmSettings(qemu=QemuSettings(accelerator="tcg"))


@pytest.fixture(name="machines")
def _machines() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="castoff-limits.", dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture(name="tree")
def _tree(machines: Path) -> Iterator[Tree | None]:
    """This host's groups for machines there; None: it has none that we may use."""
    try:
        tree = find_tree(machines)
        tree.make("probe").remove()
    except Unsupported:
        yield None
        return
    yield tree
    for group in tree.groups():
        group.remove()


def specification(machines: Path, name: str = "00000000000001", *, memory: int = 32 * MIB) -> MachineSpec:
    """A machine that is never booted."""
    directory = machines / name
    directory.mkdir(exist_ok=True)
    return MachineSpec(name, directory, 1, memory, kernel=directory, initramfs=directory, drives=())


async def start(spec: MachineSpec, settings: LimitSettings, *command: str) -> tuple[MonitorProcess, Group | None]:
    """A process that stands in for a VMM, started as one."""
    async with entrance(spec, settings, emulated=False) as door:
        process = spawn(command, log=spec.directory / "vmm.log", owner=None, gate=door.gate)
        await door.admit(process)
    return process, door.group


def places(pid: int) -> dict[str, str]:
    """For each controller (v2: the empty one), the group of a process."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}


def kept(group: Group, controller: str, file: str) -> str:
    """A file of the group."""
    return Path(group.places[controller], file).read_text().strip()


async def test_a_vmm_is_in_its_group_and_has_no_way_out(kernels: Path, machines: Path, tree: Tree | None) -> None:
    """QEMU: limits by its guest and the settings, all of its threads inside; user, capabilities, new privileges, system calls."""
    guests = Guests(QemuVmm(SETTINGS), await find_kernel(SETTINGS, kernels), make_rootfs(machines / "rootfs.ext4"), machines)
    async with guests.boot("limited", "sh", "-c", "echo up; sleep 1000", cpus=2) as booted:
        await until(booted.channel, b"up\n")
        pid, group = booted.handle.pid, booted.handle.group
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0 and len(set(status["Uid"].split())) == 1
        if tree is None:
            assert group is None and "cgroup" not in booted.handle.state()
        else:
            assert group is not None
            assert group_of(msgspec.json.decode(msgspec.json.encode(booted.handle.state()))) == group
            where = places(pid)
            for controller in tree.bases:
                assert where["" if tree.unified else controller].endswith(f"/{group.name}"), where
            expected = machine_limits(SETTINGS.limits, cpus=2, memory=192 * MIB, emulated=True)
            assert group.memory_limit() == expected.memory == (192 + 256 + 256) * MIB
            if "pids" in tree.bases:
                assert int(kept(group, "pids", "pids.max")) == expected.pids == 258
            usage = group.usage()
            assert 32 * MIB < usage.memory <= usage.memory_peak < expected.memory
            assert usage.cpu_seconds > 0.1 and usage.pids >= 4 and usage.memory_kills == 0
            whole = all_usage(SETTINGS.limits, machines)
            assert whole is not None and whole.cpu_seconds >= usage.cpu_seconds and whole.pids >= usage.pids
    assert group is None or not group.exists()
    assert tree is None or tree.groups() == []


async def test_processors_are_limited(machines: Path, tree: Tree | None) -> None:
    """A process that never rests is held back; how much it has had is told."""
    if tree is None or "cpu" in tree.missing:
        return
    group = tree.make("busy")
    group.set_limits(Limits(cpus=0.1, weight=100, memory=64 * MIB, swap=0, pids=10))
    process = spawn(["sh", "-c", "while :; do :; done"], log=machines / "log", owner=None)
    group.add(process.pid)

    def held_back() -> bool:
        counts = dict(line.split() for line in kept(group, "cpu", "cpu.stat").splitlines())
        return int(counts["nr_throttled"]) > 0

    await asyncio.to_thread(eventually, "it is held back", held_back)
    assert group.usage().cpu_seconds > 0 and group.usage().throttled_seconds > 0
    group.remove()
    assert await process.wait() == -signal.SIGKILL


async def test_one_that_takes_too_much_memory_is_killed_and_told_of(machines: Path, tree: Tree | None) -> None:
    """And nobody else is; its group still tells after its end, and goes with it."""
    spec, settings = specification(machines), LimitSettings(memory=32 * MIB)
    hog = "x = bytearray(1 << 20)\nwhile len(x) < 256 << 20: x += bytes(1 << 20)\nprint('had it all')"
    process, group = await start(spec, settings, sys.executable, "-c", hog)
    status = await asyncio.wait_for(process.wait(), 60)
    if group is None:
        assert tree is None and status == 0
        return
    assert status == -signal.SIGKILL and (spec.directory / "vmm.log").read_text() == ""
    assert why_killed(group) == "the host's limit killed it: its VMM took more memory than 64 MiB"
    group.remove()
    assert why_killed(group) == "" and not group.exists()


async def test_a_fork_bomb_stops_at_its_limit(machines: Path, tree: Tree | None) -> None:
    """All that it made ends with its group."""
    spec, settings = specification(machines), LimitSettings(pids=64)
    script = """
import os, time
count = 0
try:
    while count < 200:
        if os.fork() == 0:
            time.sleep(1000)
        count += 1
except BlockingIOError:
    pass
open("bomb", "w").write(str(count))
time.sleep(1000)
"""
    async with entrance(spec, settings, emulated=False) as door:
        command = [sys.executable, "-c", script]
        process = spawn(command, log=spec.directory / "log", owner=None, gate=door.gate, directory=spec.directory)
        await door.admit(process)
    bomb = spec.directory / "bomb"
    await asyncio.to_thread(eventually, "it forks no more", lambda: bomb.exists() and bomb.read_text() != "")
    count = int(bomb.read_text())
    if door.group is None:
        assert tree is None and count == 200
        os.killpg(process.pid, signal.SIGKILL)
    else:
        assert count == 64  # of 65, one is it itself
        assert door.group.usage().pids == 65
        door.group.remove()
        assert not door.group.exists()
    assert await process.wait() == -signal.SIGKILL


async def test_nothing_runs_before_it_is_admitted(machines: Path, tree: Tree | None) -> None:
    """Whoever starts a VMM and is killed before it was moved leaves neither a VMM nor, after a sweep, a group."""
    spec = specification(machines)
    script = """
import asyncio, os, signal, sys
from pathlib import Path
from castoff.vmm.limits import entrance
from castoff.vmm.process import spawn
from castoff.vmm.settings import LimitSettings
from castoff.vmm.vmm import MachineSpec
directory = Path(sys.argv[1])
async def main():
    spec = MachineSpec(directory.name, directory, 1, 32 << 20, kernel=directory, initramfs=directory, drives=())
    async with entrance(spec, LimitSettings(), emulated=False) as door:
        process = spawn(["touch", str(directory / "ran")], log=directory / "log", owner=None, gate=door.gate)
        print(process.pid, process.started, door.gate is not None, flush=True)
        if door.gate is None:
            await process.wait()
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script, str(spec.directory)], stdout=subprocess.PIPE, check=False, timeout=60
    )
    pid, started, gated = done.stdout.split()
    left = MonitorProcess.find(int(pid), int(started))
    if left is not None:
        await asyncio.wait_for(left.wait(), 30)
    assert (spec.directory / "ran").exists() == (gated == b"False") == (tree is None)
    if tree is not None:
        assert [group.name.partition("-")[0] for group in tree.groups()] == [spec.id]
    end_groups("00000000000002", machines, LimitSettings())
    assert tree is None or len(tree.groups()) == 1
    end_groups(spec.id, machines, LimitSettings())
    assert tree is None or tree.groups() == []


async def test_limits_that_are_demanded(machines: Path, tree: Tree | None) -> None:
    """Without control groups a machine starts where they are not demanded, and is refused where they are."""
    nowhere = LimitSettings(parent=machines / "no-such-group")
    process, group = await start(specification(machines), nowhere, "true")
    assert group is None and await process.wait() == 0
    process, group = await start(specification(machines), LimitSettings(mode="off"), "true")
    assert group is None and await process.wait() == 0
    demanded = LimitSettings(mode="require", parent=nowhere.parent)
    assert missing_limits(nowhere, machines).startswith("machines run without limits of CPU, memory and processes: ")
    assert missing_limits(demanded, machines).startswith("every start is refused: ")
    assert missing_limits(LimitSettings(mode="off"), machines) == ""
    if tree is not None:
        said = missing_limits(LimitSettings(), machines)
        assert all(name in said for name in tree.missing) and bool(said) == bool(tree.missing)
        assert tree.groups() == []
    with pytest.raises(Unsupported, match="cannot be used: No such file"):
        await start(specification(machines), demanded, "true")
    if tree is None:
        with pytest.raises(Unsupported):
            await start(specification(machines), LimitSettings(mode="require"), "true")


async def test_a_start_that_fails_leaves_no_group(machines: Path, tree: Tree | None) -> None:
    """Also one that is cancelled."""
    entered = asyncio.Event()

    async def begin() -> None:
        async with entrance(specification(machines), LimitSettings(), emulated=False) as door:
            assert (door.group is None) == (tree is None)
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(begin())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tree is None or tree.groups() == []
    assert Entrance(None, required=False).gate is None


@pytest.fixture(name="state")
def _state(kernels: Path) -> Iterator[Castoff]:
    with castoff_state(kernels) as state:
        yield state


async def test_an_exit_by_the_hosts_limit_is_told(state: Castoff, tree: Tree | None) -> None:
    """QEMU is given no memory but its guest's, which the guest then takes: the run ends as out of memory, and says whose."""
    vmm = replace_limits(LimitSettings(memory=0, translation=16 * MIB))
    config = msgspec.structs.replace(load(state=state.state), vmm=vmm)
    script = "mkdir -p /t; mount -t tmpfs -o size=100% t /t; cat /dev/zero >/t/full; sleep 1000"
    document = {"image": state.image, "init": {"exec": ["sh", "-c", script]}, "guest": {"cpus": 1, "memory_mb": 256}}
    launch = Launch(machine=new_machine_id(), name="web", app="shop", version="01A", config=parse_config(document))
    async with castoff.Host.open(config=config) as host:
        launcher = HostLauncher(host, Logs(state.state / "agent" / "logs"))
        run = await launcher.launch(launch)
        record = host.machines.get(launch.machine)
        group = group_of(record.vmm_state)
        if group is None:
            assert tree is None
            await run.kill()
        else:
            exit = await asyncio.wait_for(run.wait(), 60)
            assert (exit.code, exit.out_of_memory) == (-1, True)
            assert "the host's limit killed it: its VMM took more memory than 272 MiB" in exit.message
            assert not group.exists()
        await launcher.discard(launch.machine)


def replace_limits(limits: LimitSettings) -> VmmSettings:
    """The settings of these tests with others."""
    return msgspec.structs.replace(SETTINGS, limits=limits)


async def test_what_killed_processes_leave_is_swept(state: Castoff, tree: Tree | None) -> None:
    """`castoff run` is killed: its machine's VMM ends with its group. A group that nobody knows goes, a running one stays."""
    if tree is None:
        return
    file = state.state.parent / "config.toml"
    file.write_text('[vmm]\norder = ["stand-in"]\n[vmm.limits]\nmode = "require"\n')
    mine = Castoff(state.state, state.image, file)
    groups = open_tree(LimitSettings(), state.state / "store" / "machines")
    stranger = groups.make("ffffffffffffff")
    left = spawn(["sleep", "1000"], log=state.state.parent / "log", owner=None)
    stranger.add(left.pid)
    runs = [mine.start("sh", "-c", "echo up; sleep 1000") for _ in range(2)]
    try:
        for run in runs:
            assert run.stdout is not None and await asyncio.to_thread(run.stdout.readline) == b"up\n"
        assert await asyncio.wait_for(left.wait(), 30) == -signal.SIGKILL  # whoever starts a machine sweeps
        assert len(groups.groups()) == 2
        runs[0].kill()
        await asyncio.to_thread(runs[0].wait)
        async with castoff.Host.open(config=load(file, state=state.state)) as host:
            await host.sweep()
            (alive,) = groups.groups()
            (record,) = host.machines
            assert group_of(record.vmm_state) == alive and alive.usage().pids > 0
            assert await host.sweep() == 0 and alive.exists()
    finally:
        for run in runs:
            run.terminate()
            await asyncio.to_thread(run.communicate)
    assert groups.groups() == [] and not groups.whole().exists()


async def test_cgroup_v2_of_a_guests_kernel(kernels: Path, machines: Path) -> None:
    """tests/cgroup_guest.py, with this Python in a guest, whatever this host has."""
    rootfs = make_python_rootfs(machines / "python.ext4", Path(cgroup_guest.__file__))
    guests = Guests(QemuVmm(SETTINGS), await find_kernel(SETTINGS, kernels), rootfs, machines)
    words = ("/python", "-X", "frozen_modules=on", "/cgroup_guest.py")
    async with guests.boot("unified", *words, env=("PATH=/bin", "PYTHONPATH=/packages"), memory=512 * MIB) as booted:
        said = await transcript(booted.channel, 120)
    assert (said.code, said.lines) == (0, ["fine"]), said.stderr.decode()
