"""`import castoff`: machines from a Python program, and the documented example."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import castoff
from castoff.machine.machine import MachineLost
from machines import ROOT, Castoff, castoff_state, environment, is_running


@pytest.fixture(name="state", scope="module")
def _state(kernels: Path) -> Iterator[Castoff]:
    with castoff_state(kernels) as state:
        yield state
        gc.collect()  # as below: a store that is in use is not unmounted


def test_the_example_runs(state: Castoff) -> None:
    """As docs/api.md says."""
    words = [sys.executable, "examples/hello.py", state.image, "sh", "-c", "echo hello; exit 3"]
    done = subprocess.run(
        words, cwd=ROOT, env=environment(CASTOFF_STATE=str(state.state)), capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout == b"hello\n"
    assert b"s  vmm.qemu\n" in done.stderr


async def test_two_machines_of_one_host_talk_at_once(state: Castoff) -> None:
    """Input, output, signals and ends of two machines do not meet; both are gone after their blocks."""
    async with castoff.Host.open(state.state) as host:

        async def echo(word: bytes) -> tuple[bytes, int]:
            async with await host.run(state.image, command=["cat"], interactive=True) as machine:
                await machine.write(word * 1000)
                await machine.close_input()
                said = b"".join([output.data async for output in machine.output()])
                return said, await machine.wait()

        assert await asyncio.gather(echo(b"one "), echo(b"two ")) == [(b"one " * 1000, 0), (b"two " * 1000, 0)]
        assert list(host.machines) == []


async def test_a_machine_is_stopped_killed_and_tells_how_it_ended(state: Castoff) -> None:
    """stop asks and waits; kill does not; output that nobody takes does not hold the end up."""
    async with castoff.Host.open(state.state) as host:
        script = "trap 'echo bye; exit 5' TERM; echo up; yes | head -c 3000000; while :; do sleep 0.1; done"
        async with await host.run(state.image, command=["sh", "-c", script]) as machine:
            first = await anext(machine.output())
            assert first.data.startswith(b"up\n")
            assert await machine.stop(20) == 5
            assert machine.exit is not None and machine.exit.signal == 0
        async with await host.run(state.image, command=["sleep", "1000"]) as machine:
            pid = int(machine.record.vmm_state["pid"])
            await machine.signal(signal.SIGWINCH)
            await machine.kill()
            assert await machine.wait() == 137
            assert not is_running(pid)
        assert list(host.machines) == []


async def test_a_lost_machine_raises_and_is_removed(state: Castoff) -> None:
    """The VMM is killed from outside: MachineLost, with what there is of a console, and nothing is left."""
    async with castoff.Host.open(state.state) as host:
        with pytest.raises(MachineLost):
            async with await host.run(state.image, command=["sleep", "1000"]) as machine:
                os.kill(int(machine.record.vmm_state["pid"]), signal.SIGKILL)
                await machine.wait()
        assert list(host.machines) == []
        assert state.machines == []


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.3, 1.0])
async def test_a_create_that_is_cancelled_leaves_nothing(state: Castoff, delay: float) -> None:
    """At whatever step: no directory, no VMM."""
    async with castoff.Host.open(state.state) as host:
        task = asyncio.create_task(host.run(state.image, command=["sleep", "1000"]))
        await asyncio.sleep(delay)
        task.cancel()
        begun = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - begun < 5
        assert state.machines == []
    assert str(state.state) not in _command_lines()


def _command_lines() -> str:
    """The command lines of all processes but this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return "\n".join(found)


async def test_an_image_is_inspected_and_built(state: Castoff, tmp_path: Path) -> None:
    """What the command line prints is what these answer."""
    async with castoff.Host.open(state.state) as host:
        built = await host.build_rootfs(state.image, size=1 << 30, output=tmp_path / "root.ext4")
        assert (built.path, built.size, built.provider) == (tmp_path / "root.ext4", 1 << 30, "layered")
        found = await host.inspect(state.image)
        assert found.image.digest == built.image.digest and found.present == (True, True)
        assert all(not verdict.problem for verdict in await host.verify())
        assert (await host.usage()).layers
        gc.collect()  # a cancelled create's traceback holds its rootfs, and what is held is not pruned
        await host.prune()
        assert not (await host.usage()).layers


async def test_failures_carry_a_code_and_a_hint(state: Castoff) -> None:
    """For programs and for people."""
    async with castoff.Host.open(state.state) as host:
        with pytest.raises(castoff.CastoffError) as caught:
            await host.run("oci:/nowhere")
        assert caught.value.code == "not_found"
        with pytest.raises(castoff.CastoffError) as caught:
            await host.run(state.image, command=["x"], vmm="hal9000")
        assert caught.value.code == "invalid" and "qemu" in caught.value.hint
        with pytest.raises(castoff.CastoffError):
            await host.remove("nobody")


def test_importing_castoff_costs_next_to_nothing() -> None:
    """Names are imported when they are used; every public name can be."""
    code = "import sys, castoff; print(sorted(m for m in sys.modules if m.startswith('castoff'))); "
    code += "[getattr(castoff, name) for name in castoff.__all__]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['castoff']\n"
