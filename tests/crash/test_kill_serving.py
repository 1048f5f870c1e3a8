"""The hydrator that castoff runs is killed, at any instant, while a guest reads and writes: it only waits.

A real registry, a real keeper, a guest's process with four threads. CASTOFF_CRASH_KILLS=50 for a long run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import clone_guest
import daemons
from castoff.disk.overlay import UPPER
from castoff.hydrate import client
from castoff.hydrate.keeper_client import connect
from castoff.hydrate.record import CLONE, EVENTS, PRESENT, STATE, FrontKind, read_record
from hydrator_host import Host, eventually
from packed_layer import random_files

KILLS = int(os.environ.get("CASTOFF_CRASH_KILLS", "5"))
MOST = 5
"""Kills of one machine's hydrator: the pause before a successor grows."""
pytestmark = pytest.mark.timeout(300 + 10 * KILLS)


def push(registry: daemons.Registry, host: Host) -> str:
    """Puts the packs into a repository; its name."""
    for layer in host.layers:
        start = urllib.request.Request(f"http://{registry.host}/v2/lazy/blobs/uploads/", method="POST")
        with urllib.request.urlopen(start) as answer:
            place = answer.headers["Location"]
        end = urllib.request.Request(f"{place}&digest={layer.digest}", data=layer.pack, method="PUT")
        end.add_header("Content-Type", "application/octet-stream")
        urllib.request.urlopen(end).close()
    return f"{registry.host}/lazy"


@asynccontextmanager
async def a_host(directory: Path, registry: daemons.Registry) -> AsyncIterator[Host]:
    directory.mkdir(exist_ok=True)
    host = await Host.make(directory, [random_files(1, chunks=60), random_files(2, chunks=30)])
    host.repository = push(registry, host)
    try:
        yield host
    finally:
        for pid in processes("clone_guest", host.store.state):
            end(pid)
        for machine in sorted(host.store.machines.iterdir()):
            await client.detach(host.store.state, machine.name)
        for word in ("hydrate --state", "hydrate.keeper"):
            for pid in processes(word, host.store.state):
                end(pid)


@pytest.fixture(name="host")
async def _host(scratch_xfs: Path, registry: daemons.Registry) -> AsyncIterator[Host]:
    async with a_host(scratch_xfs, registry) as host:
        yield host


def processes(word: str, state: Path) -> list[int]:
    """Those whose command line has the word and the state directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode()
            if word in line and str(state) in line:
                found.append(int(path.parent.name))
    return found


def end(pid: int) -> None:
    """Kills it, and waits until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        # Readable when its last thread is gone, and its sockets with it: a leader is a zombie before that.
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        assert waiting.poll(30_000)
        os.close(descriptor)


def end_both(state: Path) -> None:
    """Kills keeper and hydrator so that neither can start the other again."""
    pids = [*processes("hydrate.keeper", state), *processes("castoff.hydrate --state", state)]
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        end(pid)


async def start_guest(host: Host, directory: Path, inherit: tuple[int, ...], operations: int) -> subprocess.Popen[bytes]:
    guest = subprocess.Popen(
        [
            *(sys.executable, clone_guest.__file__, str(directory / CLONE), str(host.store.state.parent / "whole.ext4")),
            *("7", str(operations)),
        ],
        stdout=subprocess.PIPE,
        pass_fds=inherit,
    )
    assert guest.stdout is not None
    assert await asyncio.to_thread(guest.stdout.readline) == b"begun\n"
    return guest


async def test_a_hydrator_that_is_killed_has_a_successor_that_goes_on(scratch_xfs: Path, registry: daemons.Registry) -> None:
    """Killed with -9 as it fills: the guest waits, and every byte that it sees is right, its own writes too."""
    dice = random.Random(os.environ.get("CASTOFF_CRASH_SEED", "1"))
    killed = number = 0
    while killed < KILLS:
        async with a_host(scratch_xfs / str(number), registry) as host:
            killed += await killed_as_it_fills(host, dice, min(KILLS - killed, MOST))
        number += 1
        assert number <= KILLS  # each machine had one at least


async def killed_as_it_fills(host: Host, dice: random.Random, most: int) -> int:
    """Runs a machine and kills its hydrator, at shares of the chunks that are here; how often."""
    state = host.store.state
    directory = host.machine("m1", background=False)
    attached = await client.attach(state, directory)
    guest = await start_guest(host, directory, attached.descriptors, 80)
    attached.close()
    killed = 0
    for number in range(most):
        least = number / MOST * 0.7
        await eventually(lambda least=least: filled(directory) >= least or guest.poll() is not None)  # type: ignore[misc]
        await asyncio.sleep(dice.random() * 0.02)
        for pid in processes("castoff.hydrate --state", state) if guest.poll() is None else ():
            end(pid)
            killed += 1
        await eventually(lambda: bool(processes("castoff.hydrate --state", state)) or guest.poll() is not None)
    output = await asyncio.to_thread(guest.communicate, timeout=120)
    assert output[0] == b"right\n", ((directory / EVENTS).read_text(), (state / "hydrate" / "log").read_text())
    assert killed
    await eventually(lambda: read_record(directory).complete)
    assert "another hydrator goes on" in (directory / EVENTS).read_text()
    return killed


def filled(directory: Path) -> float:
    """The share of the machine's chunks that are here."""
    try:
        state = (directory / STATE).read_bytes()
    except FileNotFoundError:
        return 1.0  # it goes when all are
    return state.count(PRESENT) / len(state)


async def test_hydrator_and_keeper_both_killed_the_next_takes_back_from_the_vmm(host: Host) -> None:
    """Nobody holds the descriptors but the guest's own process, whose reads wait; the next command's hydrator goes on."""
    state = host.store.state
    directory = host.machine("m1", background=False)
    attached = await client.attach(state, directory)
    guest = await start_guest(host, directory, attached.descriptors, 80)
    attached.close()
    await asyncio.sleep(0.2)
    end_both(state)
    await asyncio.sleep(0.2)
    assert guest.poll() is None
    await client.wake(state)
    output = await asyncio.to_thread(guest.communicate, timeout=120)
    assert output[0] == b"right\n", ((directory / EVENTS).read_text(), (state / "hydrate" / "log").read_text())


async def test_hydrator_and_keeper_both_killed_and_nobody_holds_the_group(host: Host) -> None:
    """The guest's reads went through to holes: it is killed as soon as anybody looks, and its clone is thrown away."""
    state = host.store.state
    directory = host.machine("m1", background=False)
    attached = await client.attach(state, directory)
    guest = await start_guest(host, directory, (), 1_000_000)
    attached.close()
    await asyncio.sleep(0.2)
    end_both(state)
    await client.wake(state)
    await eventually(lambda: "thrown away" in (state / "hydrate" / "log").read_text())
    assert not (directory / CLONE).exists()
    await asyncio.to_thread(guest.communicate, timeout=60)
    assert guest.returncode == -signal.SIGKILL


async def test_hydrator_and_keeper_both_killed_and_nobody_holds_the_mount(host: Host) -> None:
    """With FUSE reads fail, so nothing wrong is read; the machine, whose VMM has the upper half open, ends all the same."""
    state = host.store.state
    directory = host.machine("m1", front=FrontKind.FUSE, background=False)
    (directory / UPPER).write_bytes(bytes(4096))
    (await client.attach(state, directory)).close()
    code = f"import time; file = open({str(directory / UPPER)!r}, 'r+b'); print('begun', flush=True); time.sleep(999)"
    vmm = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert vmm.stdout is not None
    assert await asyncio.to_thread(vmm.stdout.readline) == b"begun\n"
    end_both(state)
    await client.wake(state)
    try:
        await asyncio.to_thread(vmm.communicate, timeout=30)
    finally:
        vmm.kill()
    assert vmm.returncode == -signal.SIGKILL
    await eventually(lambda: "thrown away" in (state / "hydrate" / "log").read_text())


async def test_a_client_that_dies_does_not_end_anything(host: Host) -> None:
    """Who attached is killed: keeper and hydrator go on, and a ready told by another is heard."""
    state = host.store.state
    directory = host.machine("m1")
    code = (
        "import asyncio, sys, os, signal; from pathlib import Path; from castoff.hydrate import client\n"
        "asyncio.run(client.attach(Path(sys.argv[1]), Path(sys.argv[2]))); os.kill(os.getpid(), signal.SIGKILL)"
    )
    died = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(state), str(directory))
    assert await died.wait() == -signal.SIGKILL
    found = await client.progress(state, "m1")
    assert found is not None
    assert (found.present, found.complete) == (0, False)
    await client.ready(state, "m1")
    await eventually(lambda: read_record(directory).complete)
    assert (directory / CLONE).read_bytes() == host.whole
    keeper = connect(state)
    await eventually(lambda: not keeper.take())
    keeper.close()
