"""Run in a guest, which has cgroup v2: castoff's own limits there, from entrance to removal. Ends with the line ``fine``."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

from castoff.errors import Unsupported
from castoff.vmm.cgroups import Group, find_tree
from castoff.vmm.limits import all_usage, entrance, why_killed
from castoff.vmm.process import MonitorProcess, spawn
from castoff.vmm.settings import LimitSettings
from castoff.vmm.vmm import MachineSpec

MACHINES = Path("/tmp/machines")
MIB = 1 << 20
HOG = "x = bytearray(1 << 20)\nwhile len(x) < 256 << 20: x += bytes(1 << 20)\nprint('had it all')"
BOMB = """
import os, sys, time
count = 0
try:
    while count < 200:
        if os.fork() == 0:
            time.sleep(1000)
        count += 1
except BlockingIOError:
    pass
open(sys.argv[1], "w").write(str(count))
time.sleep(1000)
"""


async def start(settings: LimitSettings, *command: str) -> tuple[MonitorProcess, Group]:
    """A process that stands in for a VMM."""
    directory = MACHINES / "00000000000001"
    directory.mkdir(parents=True, exist_ok=True)
    spec = MachineSpec(directory.name, directory, 2, 32 * MIB, kernel=directory, initramfs=directory, drives=())
    async with entrance(spec, settings, emulated=False) as door:
        assert door.group is not None
        process = spawn(command, log=directory / "log", owner=None, gate=door.gate)
        await door.admit(process)
    return process, door.group


async def limited() -> None:
    """Limits stand in the kernel's files, the process is inside, and another start of the same machine has another group."""
    process, group = await start(LimitSettings(mode="require", cpus=0.5, memory=32 * MIB, swap=0), "sleep", "1000")
    place = Path(group.places["cpu"])
    assert Path(f"/proc/{process.pid}/cgroup").read_text().endswith(f"0::/{place.parent.name}/{place.name}\n")
    for file, text in {
        "cpu.max": "250000 100000",
        "cpu.weight": "200",
        "memory.max": str(64 * MIB),
        "memory.oom.group": "1",
        "pids.max": "258",
        "cgroup.procs": str(process.pid),
    }.items():
        assert (place / file).read_text().strip() == text, file
    other, second = await start(LimitSettings(mode="require"), "sleep", "1000")
    assert second.name != group.name
    whole = all_usage(LimitSettings(), MACHINES)
    assert whole is not None and whole.pids == 2 and whole.memory > 0
    group.remove()
    assert await process.wait() == -signal.SIGKILL and [one.name for one in find_tree(MACHINES).groups()] == [second.name]
    second.remove()
    assert await other.wait() == -signal.SIGKILL and not place.parent.exists()
    assert all_usage(LimitSettings(), MACHINES) is None


async def killed() -> None:
    """Too much memory, and too many processes."""
    process, group = await start(LimitSettings(memory=32 * MIB), sys.executable, "-c", HOG)
    assert await process.wait() == -signal.SIGKILL
    assert why_killed(group) == "the host's limit killed it: its VMM took more memory than 64 MiB", why_killed(group)
    assert group.usage().memory_kills >= 1 and 48 * MIB < group.usage().memory_peak <= 64 * MIB, group.usage()
    group.remove()
    bomb = MACHINES / "bomb"
    process, group = await start(LimitSettings(pids=64), sys.executable, "-c", BOMB, str(bomb))
    while not bomb.exists() or not bomb.read_text():
        await asyncio.sleep(0.05)
    assert int(bomb.read_text()) == 65 and group.usage().pids == 66
    group.remove()
    assert await process.wait() == -signal.SIGKILL


def refused() -> None:
    """A group that has processes itself, one that is read only, and what was delegated."""
    root = find_tree(MACHINES).root
    busy = root / "busy"
    busy.mkdir()
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        (busy / "cgroup.procs").write_text(str(sleeper.pid))
        try:
            find_tree(MACHINES, parent=busy).make("one")
            raise AssertionError("a group with processes gave its controllers away")
        except Unsupported as error:
            assert os.strerror(errno.EBUSY) in error.what and "processes are in that group" in (error.hint or "")
        assert [entry.name for entry in busy.iterdir() if entry.is_dir()] == []
        sleeper.kill()
    delegated = find_tree(MACHINES, parent=busy).make("one")
    assert Path(delegated.places["pids"]).parent.parent == busy
    delegated.remove()
    busy.rmdir()
    subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
    try:
        find_tree(MACHINES).make("one")
        raise AssertionError("a group was made where nothing can be")
    except Unsupported as error:
        assert os.strerror(errno.EROFS) in error.what
    subprocess.run(["mount", "-o", "remount,rw", str(root)], check=True)


if __name__ == "__main__":
    asyncio.run(limited())
    asyncio.run(killed())
    refused()
    print("fine")
