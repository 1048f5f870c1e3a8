"""Processes of a guest: listed by its init, and several of them as one machine's command."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from castoff.vmm.channel import GuestChannel
from castoff.vmm.guest import GuestCommand, GuestSettings
from castoff.vmm.guest_processes import GuestSocket
from castoff.vmm.guest_session import Output, Ready
from castoff.vmm.kernel import find_kernel
from castoff.vmm.qemu import QemuVmm
from castoff.vmm.settings import QemuSettings, VmmSettings
from guests import Guests, make_rootfs, transcript, until

SETTINGS = VmmSettings(qemu=QemuSettings(accelerator="tcg"))
PATH = ("PATH=/bin",)


@pytest.fixture(scope="module")
def rootfs(daemon_directory: Path) -> Iterator[Path]:
    """The root filesystem of all."""
    path = make_rootfs(daemon_directory / "processes.ext4")
    yield path
    path.unlink()


@pytest.fixture
async def guests(rootfs: Path, kernels: Path) -> AsyncIterator[Guests]:
    """Boots guests in a directory of the test's own."""
    with tempfile.TemporaryDirectory(prefix="castoff-guests.", dir="/var/tmp") as name:
        yield Guests(QemuVmm(SETTINGS), await find_kernel(SETTINGS, kernels), rootfs, Path(name))


async def test_processes_are_listed_without_a_program_of_the_image(guests: Guests) -> None:
    """Command line, CPU time, memory, directory, parent, where they listen; no kernel threads; on either channel."""
    script = "cd /srv; httpd -p 0.0.0.0:8080 -h /; httpd -p 8081 -h /; sleep 1111 & i=0; "
    script += "while [ $i -lt 20000 ]; do i=$((i+1)); done; echo up; wait"
    async with guests.boot("listed", "sh", "-c", script) as booted:
        await until(booted.channel, b"up\n")
        async with await GuestChannel.connect(booted.handle, 20, control=True) as control:
            found = {process.command or process.name: process for process in await control.processes()}
        shell = next(process for command, process in found.items() if command.startswith("sh -c cd /srv"))
        sleeper = found["sleep 1111"]
        assert sleeper.parent == shell.pid and sleeper.directory == shell.directory == "/srv"
        assert shell.parent == 1 and shell.name == "sh" and shell.user_seconds + shell.system_seconds > 0
        assert found["httpd -p 0.0.0.0:8080 -h /"].sockets == (GuestSocket("tcp", "0.0.0.0:8080"),)
        assert found["httpd -p 8081 -h /"].sockets == (GuestSocket("tcp", "[::]:8081"),) and shell.sockets == ()
        assert 0 < shell.rss < 64 << 20 and 0 < shell.started_seconds < 600
        assert not [command for command in found if "kthread" in command or "kworker" in command]
        assert found.keys() == {process.command or process.name for process in await booted.channel.processes()}


async def test_a_killed_command_leaves_nothing_running(guests: Guests) -> None:
    """All that it has started ends with it, also what job control put into groups of their own; the machine's command goes on."""
    async with guests.boot("killed", "sh", "-c", "sleep 1111 & wait") as booted:
        script = "trap '' HUP; set -m; sleep 2222 & (sleep 3333 & sleep 4444) & echo up; wait"
        for tty in (False, True):
            session = await booted.channel.execute(GuestSettings(argv=("sh", "-c", script), env=PATH, tty=tty))
            await until(session, b"up")
            assert {"sleep 2222", "sleep 3333", "sleep 4444"} <= set(await _commands(booted.channel))
            await session.signal(9)
            said = await transcript(session)
            assert said.exit is not None and said.exit.signal == 9
            async with asyncio.timeout(30):
                while {"sleep 2222", "sleep 3333", "sleep 4444"} & set(await _commands(booted.channel)):
                    pass
        assert "sleep 1111" in await _commands(booted.channel)


async def _commands(channel: GuestChannel) -> list[str]:
    return [process.command for process in await channel.processes()]


async def test_the_end_of_input_comes_alone(guests: Guests) -> None:
    """Long after what was read before it."""
    async with guests.boot("input", "sleep", "1000") as booted:
        session = await booted.channel.execute(GuestSettings(argv=("cat",), env=PATH, stdin=True))
        await session.send_stdin(b"first\n")
        async for event in session.events():
            if isinstance(event, Output) and event.data == b"first\n":
                await session.close_stdin()
        assert session.exit is not None and session.exit.code == 0


async def test_several_processes_are_one_command(guests: Guests) -> None:
    """Each has its environment, user and directory, all share the output and get signals; whoever ends first ends the machine,
    and the others are asked to."""
    beside = (
        GuestCommand(
            ("sh", "-c", "trap 'echo asked; exit 9' TERM; echo web $A $(pwd) $(id -u); while :; do sleep 0.1; done"),
            env=(*PATH, "A=1"),
            cwd="/srv",
            user="app",
        ),
        GuestCommand(("sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.1; done; echo ends; exit 5"), env=PATH),
    )
    async with guests.boot(
        "several", "sh", "-c", "trap '' USR1; echo first; while :; do sleep 0.1; done", beside=beside
    ) as booted:
        said = await until(booted.channel, b"web 1 /srv 1000")
        assert b"first" in said or await until(booted.channel, b"first")
        async with await GuestChannel.connect(booted.handle, 20, control=True) as control:
            assert sum(process.parent == 1 for process in await control.processes()) == 3
            await transcript(await control.execute(GuestSettings(argv=("touch", "/tmp/go"), env=PATH)))
            rest = await transcript(booted.channel)
        assert rest.code == 5 and rest.exit is not None and not rest.exit.message
        assert {"ends", "asked"} <= set(rest.lines)
        assert await booted.ended() == 0


async def test_a_process_that_cannot_be_executed_ends_the_machine(guests: Guests) -> None:
    """With the reason, as a single one does; the others do not run on."""
    async with guests.boot("missing", "sleep", "1000", beside=(GuestCommand(("/no/such",), env=PATH),)) as booted:
        events = [event async for event in booted.channel.events()]
        assert not any(isinstance(event, Ready) for event in events)
        assert booted.channel.command.exit is not None
        assert booted.channel.command.exit.code == 127 and "/no/such" in booted.channel.command.exit.message
        assert await booted.ended() == 0
