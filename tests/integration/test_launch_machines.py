"""The agent's launcher on this host: real machines that outlive who launched them, their logs, commands beside theirs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import castoff
from castoff.agent.launch.launcher import HostLauncher
from castoff.agent.launch.logs import Logs
from castoff.errors import Conflict, Invalid, Unavailable, Unsupported
from castoff.lifecycle.config import parse_config
from castoff.lifecycle.launcher import ExecRequest, Launch
from castoff.machine.model import MachineId, new_machine_id
from castoff.vmm.guest import GuestFile
from machines import Castoff, castoff_state


@pytest.fixture(name="state", scope="module")
def _state(kernels: Path) -> Iterator[Castoff]:
    with castoff_state(kernels) as state:
        yield state


@contextlib.asynccontextmanager
async def launcher(state: Castoff) -> AsyncIterator[HostLauncher]:
    """A launcher, as an agent has one while it lives."""
    async with castoff.Host.open(state.state) as host:
        yield HostLauncher(host, Logs(state.state / "agent" / "logs"))


def launch(state: Castoff, script: str, *, machine: MachineId | None = None, fresh: bool = True, **more: Any) -> Launch:
    """A launch of a shell script."""
    config = parse_config({"image": state.image, "init": {"exec": ["sh", "-c", script]}, **more.pop("config", {})})
    return Launch(machine=machine or new_machine_id(), name="web", app="shop", version="01A", config=config, fresh=fresh, **more)


async def logged(state: Castoff, machine: str) -> list[tuple[int, str]]:
    """Stream and text of a machine's log."""
    return [(line.stream, line.message) async for line in Logs(state.state / "agent" / "logs").read(machine)]


async def says(state: Castoff, machine: str, word: str, times: int) -> None:
    """Until a machine has said a word so often."""
    async with asyncio.timeout(30):
        while [message for _, message in await logged(state, machine)].count(word) < times:
            await asyncio.sleep(0.05)


async def test_a_machine_outlives_its_launcher(state: Castoff) -> None:
    """Environment, files and exec while it runs; the next launcher has what it wrote meanwhile, and its exit code."""
    script = "echo $A $B $FROM_IMAGE; cat /etc/greeting; echo oops >&2; read x </tmp/go; echo late; exit 3"
    wanted = launch(
        state,
        f"mkfifo /tmp/go; {script}",
        env={"A": "launch", "B": "launch"},
        files=(GuestFile("/etc/greeting", b"from a file\n"),),
        config={"env": {"B": "config"}},
    )
    async with launcher(state) as first:
        assert (await first.resolve(state.image)).startswith("sha256:")
        run = await first.launch(wanted)
        result = await run.execute(
            ExecRequest(argv=("sh", "-c", "cat; hostname; echo $A; exit 4"), stdin=b"in\n", env={"A": "x"})
        )
        assert (result.exit_code, result.exit_signal, result.stdout) == (4, 0, b"in\nweb\nx\n")
        with pytest.raises(Unavailable, match="did not end within"):
            await run.execute(ExecRequest(argv=("sleep", "60"), timeout=0.5))
        with pytest.raises(Invalid, match="cannot be executed"):
            await run.execute(ExecRequest(argv=("/no/such",)))
        processes = {process.command for process in await run.processes()}
        assert [command for command in processes if command.startswith("sh -c mkfifo /tmp/go")]
        await run.execute(ExecRequest(argv=("sh", "-c", "(sleep 0.5; echo go >/tmp/go) >/dev/null 2>&1 &")))
        await run.detach()
    await asyncio.sleep(1)
    async with launcher(state) as second:
        with pytest.raises(Conflict, match="the agent's"):
            async with castoff.Host.open(state.state) as host:
                await host.remove(wanted.machine)
        run_again = await second.reattach(wanted)
        assert run_again is not None
        exit = await run_again.wait()
        assert (exit.code, exit.signal) == (3, 0)
        assert await second.reattach(wanted) is None
        assert await second.machines() == [wanted.machine]
        await second.discard(wanted.machine)
        assert await second.machines() == []
        await second.discard(wanted.machine)
    assert sorted(await logged(state, wanted.machine), key=lambda line: line[0]) == [
        (1, "launch config yes"),
        (1, "from a file"),
        (1, "late"),
        (2, "oops"),
    ]
    assert state.machines == []


async def test_want_of_memory_is_told(state: Castoff) -> None:
    """By the exit, and to an agent that was not there."""
    wanted = launch(state, "exec tail /dev/zero", config={"guest": {"cpus": 1, "memory_mb": 128}})
    async with launcher(state) as launches:
        exit = await (await launches.launch(wanted)).wait()
        assert (exit.code, exit.signal, exit.out_of_memory) == (137, 9, True)
        assert await launches.last_exit(wanted.machine) == exit
        await launches.discard(wanted.machine)


async def test_a_rootfs_that_is_kept(state: Castoff) -> None:
    """Fresh begins anew, otherwise it goes on; a start that fails keeps it; stop asks with its signal, then forces."""
    script = "trap 'exit 7' USR1; cat /state; date +%s%N >>/state; echo up; while :; do sleep 0.1; done"
    wanted = launch(state, script)
    async with launcher(state) as launches:
        run = await launches.launch(wanted)
        await says(state, wanted.machine, "up", 1)
        await run.stop(10, 30.0)
        assert (await run.wait()).code == 7
        bad = launch(state, script, machine=wanted.machine, fresh=False, config={"image": "oci:/no/such/layout"})
        with pytest.raises(castoff.CastoffError):
            await launches.launch(bad)
        again = launch(state, f"wc -l </state; {script.replace('exit 7', '')}", machine=wanted.machine, fresh=False)
        run = await launches.launch(again)
        await says(state, wanted.machine, "up", 2)
        await run.stop(10, 0.2)
        exit = await run.wait()
        assert exit.code in (137, 143)
        fresh = launch(state, "cat /state", machine=wanted.machine)
        run = await launches.launch(fresh)
        assert (await run.wait()).code == 1
        await launches.discard(wanted.machine)
    lines = [message for stream, message in await logged(state, wanted.machine) if stream == 1]
    assert lines[:2] == ["up", "1"]
    assert not list((state.state / "store" / "kept").iterdir())


@pytest.mark.parametrize("clone", ["overlay", "reflink"])
async def test_a_rootfs_persists_however_the_host_clones(state: Castoff, tmp_path: Path, clone: str) -> None:
    """Also where its machines are overlays, or lazy, unless they persist: a persistent one is a file that can be kept."""
    (tmp_path / "config.toml").write_text(f'[rootfs]\nclone = "{clone}"\n')
    config = castoff.load_config(tmp_path / "config.toml", state=state.state)
    script = "echo x >>/state; grep -c x /state"
    wanted = launch(state, script, config={"rootfs": {"persist": "always"}})
    async with castoff.Host.open(config=config) as host:
        launches = HostLauncher(host, Logs(state.state / "agent" / "logs"))
        for fresh in (True, False, False):
            run = await launches.launch(
                launch(state, script, machine=wanted.machine, fresh=fresh, config={"rootfs": {"persist": 3}})
            )
            assert (await run.wait()).code == 0
        await launches.discard(wanted.machine)
    assert [message for _, message in await logged(state, wanted.machine)] == ["1", "2", "3"]


async def test_what_cannot_be_booted_is_refused(state: Castoff, tmp_path: Path) -> None:
    """GPUs, too many processes or one terminal for several, a rootfs file that is not allowed, also behind a link."""
    allowed, secret = tmp_path / "allowed", tmp_path / "secret.ext4"
    allowed.mkdir()
    secret.touch()
    (allowed / "link.ext4").symlink_to(secret)
    async with castoff.Host.open(state.state) as host:
        launches = HostLauncher(host, Logs(tmp_path), (allowed,))
        for config, error in (
            ({"guest": {"gpus": 1}}, Unsupported),
            ({"processes": [{"cmd": ["a"]}] * 18}, Invalid),
            ({"processes": [{"cmd": ["a"]}, {"cmd": ["b"]}], "init": {"tty": True}}, Invalid),
            ({"rootfs": {"file": str(secret)}}, Invalid),
            ({"rootfs": {"file": str(allowed / "link.ext4")}}, Invalid),
            ({"rootfs": {"file": f"{allowed}/../secret.ext4"}}, Invalid),
            ({"size": "huge"}, Invalid),
            ({"rootfs": {"persist": "always", "clone": "overlay"}}, Unsupported),
            ({"rootfs": {"persist": 2, "lazy": "always"}}, Unsupported),
        ):
            with pytest.raises(error):
                launches.check(parse_config({"image": "alpine", **config}))
        launches.check(parse_config({"image": "alpine", "size": "shared-cpu-2x", "rootfs": {"file": str(allowed / "a.ext4")}}))
