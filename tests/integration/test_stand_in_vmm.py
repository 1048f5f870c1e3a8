"""castoff.fakes.vmm: a stand-in keeps the promises of a VMM, and its guest those of the guest init."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from castoff.conformance.vmm import check_vmm
from castoff.errors import Invalid, Unavailable
from castoff.fakes.vmm import StandInHandle, StandInVmm
from castoff.machine.drivers import open_vmm
from castoff.vmm.channel import GuestChannel
from castoff.vmm.guest import GuestSettings, encode_settings
from castoff.vmm.guest_dial import GuestConnection, dialling
from castoff.vmm.guest_session import Exit, GuestSession
from castoff.vmm.initramfs import Entry, cpio
from castoff.vmm.settings import VmmSettings
from castoff.vmm.vmm import MachineSpec
from guests import transcript, until
from machines import eventually, is_running

Specify = Callable[[str, GuestSettings], MachineSpec]


@pytest.fixture
def specify(tmp_path: Path) -> Specify:
    """Specifications whose initramfs holds settings and nothing else."""

    def make(name: str, guest: GuestSettings) -> MachineSpec:
        directory = tmp_path / name
        directory.mkdir()
        initramfs = directory / "initramfs"
        initramfs.write_bytes(cpio([Entry("init", b"")]) + cpio([Entry("castoff/settings", encode_settings(guest), 0o600)]))
        return MachineSpec(name, directory, 1, 64 << 20, kernel=initramfs, initramfs=initramfs, drives=())

    return make


@asynccontextmanager
async def running(
    specify: Specify, name: str, *argv: str, **settings: object
) -> AsyncIterator[tuple[StandInHandle, GuestChannel]]:
    """A stand-in and its main channel."""
    handle = await StandInVmm(VmmSettings()).start(specify(name, GuestSettings(argv=argv, **settings)))  # type: ignore[arg-type]
    try:
        async with await GuestChannel.connect(handle, 20) as channel:
            yield handle, channel
    finally:
        await handle.kill()


async def feed(session: GuestSession, data: bytes) -> None:
    """All of its input."""
    await session.send_stdin(data)
    await session.close_stdin()


async def test_a_stand_in_keeps_every_promise_of_a_vmm(specify: Specify) -> None:
    """The conformance suite that QEMU and Firecracker pass."""
    await check_vmm(StandInVmm(VmmSettings()), specify)


async def test_commands_without_a_process_end_as_real_ones_do(specify: Specify) -> None:
    """``exit``, ``echo``, ``true``, ``sleep``: exit codes, output, signals."""
    async with running(specify, "none", "sleep", "infinity") as (_, channel):
        for argv, code, stdout in (
            (("exit", "7"), 7, b""),
            (("echo", "a", "b"), 0, b"a b\n"),
            (("true",), 0, b""),
            (("sleep", "0.01"), 0, b""),
        ):
            said = await transcript(await channel.execute(GuestSettings(argv=argv)))
            assert (said.code, said.stdout) == (code, stdout)
        await channel.signal(signal.SIGTERM)
        said = await transcript(channel)
        assert said.exit == Exit(143, 15, False, "")


async def test_commands_of_the_host_get_input_environment_and_directory(specify: Specify, tmp_path: Path) -> None:
    """What is executed beside the machine's command: megabytes through it, both streams, a program that is not there."""
    data = os.urandom(3 << 20)
    async with running(specify, "sh", "sleep", "infinity") as (handle, _):
        control = await GuestChannel.connect(handle, 20, control=True)
        async with control:
            copy = await control.execute(GuestSettings(argv=("cat",), stdin=True))
            said, _ = await asyncio.gather(transcript(copy), feed(copy, data))
            assert said.stdout == data
            shell = GuestSettings(argv=("sh", "-c", 'echo "$X $PWD"; echo no >&2; exit 4'), env=("X=1",), cwd="/proc")
            said = await transcript(await control.execute(shell))
            assert (said.stdout, said.stderr, said.code) == (b"1 /proc\n", b"no\n", 4)
            assert [(process.pid, process.name) for process in await control.processes()] == [(handle.pid, "sh")]
            said = await transcript(await control.execute(GuestSettings(argv=("/no/such",))))
            assert said.code == 127
            assert "/no/such" in (said.exit.message if said.exit else "")


async def test_a_second_client_is_told_what_the_first_did_not_take(specify: Specify) -> None:
    """Output and exit code wait for whoever comes."""
    async with running(specify, "twice", "sh", "-c", "echo first; read x </dev/null; echo second; exit 5") as (handle, channel):
        await until(channel, b"first")
        await channel.close()
        async with await GuestChannel.connect(handle, 20) as again:
            said = await transcript(again)
        assert said.stdout.endswith(b"second\n")
        assert said.code == 5
        assert await asyncio.wait_for(handle.wait(), 10) == 0


async def test_its_one_port_is_reached_through_the_channel(specify: Specify) -> None:
    """``serve PORT FILE`` answers with what the file holds; other ports, and one without a file, refuse as a guest's do."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        Path(directory).chmod(0o755)  # a stand-in is a user of its own
        file = Path(directory) / "answer"
        async with asyncio.timeout(30), running(specify, "port", "serve", "8080", str(file)) as (_, channel):
            for port in (8080, 9090):
                with pytest.raises(Unavailable, match=f"connect to port {port}: Connection refused"):
                    await GuestConnection.open(await channel.execute(dialling(port)))
            file.write_bytes(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 100_000)
            connection = await GuestConnection.open(await channel.execute(dialling(8080)))
            await connection.write(b"GET / HTTP/1.0\r\n")
            await connection.write(b"\r\n")
            said = bytearray()
            while data := await connection.read():
                said += data
            assert said == file.read_bytes()
            session = await channel.execute(dialling(8080))
            await GuestConnection.open(session)
            await session.signal(signal.SIGKILL)
            assert (await transcript(session)).code == 137


async def test_two_hundred_start_at_once(specify: Specify) -> None:
    """One warm process forks them all; each is its own process and ends by itself."""
    vmm = StandInVmm(VmmSettings())
    specs = [specify(f"many-{number}", GuestSettings(argv=("exit", str(number % 100)))) for number in range(200)]
    handles = await asyncio.gather(*(vmm.start(spec) for spec in specs))
    assert len({handle.pid for handle in handles}) == 200

    async def code(handle: StandInHandle) -> int:
        async with await GuestChannel.connect(handle, 60) as channel:
            code = (await transcript(channel)).code
        assert await asyncio.wait_for(handle.wait(), 60) == 0
        return code

    assert await asyncio.gather(*map(code, handles)) == [number % 100 for number in range(200)]


async def test_a_stand_in_outlives_its_starter(specify: Specify, tmp_path: Path) -> None:
    """It is found again by what its handle's state says, and a kill is told as unknown."""
    spec = specify("alone", GuestSettings(argv=("sleep", "infinity")))
    script = (
        "import asyncio, json, sys; from pathlib import Path; from castoff.fakes.vmm import StandInVmm;"
        "from castoff.vmm.settings import VmmSettings; from castoff.vmm.vmm import MachineSpec;"
        "d = Path(sys.argv[1]);"
        "s = MachineSpec('alone', d, 1, 1, kernel=d, initramfs=d / 'initramfs', drives=());"
        "print(json.dumps(asyncio.run(StandInVmm(VmmSettings()).start(s)).state()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(spec.directory)], capture_output=True, text=True, check=True, timeout=60
    )
    handle = await StandInVmm(VmmSettings()).reattach(json.loads(done.stdout))
    assert handle is not None
    async with await GuestChannel.connect(handle, 20) as channel:
        assert (await transcript(await channel.execute(GuestSettings(argv=("echo", "here"))))).stdout == b"here\n"
    await handle.kill()
    eventually("it is gone", lambda: not is_running(handle.pid))
    assert await StandInVmm(VmmSettings()).reattach(handle.state()) is None


async def test_an_initramfs_without_settings_is_told(specify: Specify) -> None:
    """What a machine cannot be started from fails its start, with the reason."""
    spec = specify("broken", GuestSettings(argv=("true",)))
    spec.initramfs.write_bytes(b"nothing")
    with pytest.raises(Unavailable, match="holds no settings"):
        await StandInVmm(VmmSettings()).start(spec)


def test_no_configuration_has_stand_ins_by_accident(tmp_path: Path) -> None:
    """Only where ``vmm.order`` names it; asking for it otherwise is a mistake."""
    with pytest.raises(Invalid, match="no VMM"):
        open_vmm("stand-in", VmmSettings(), tmp_path)
    assert isinstance(open_vmm("stand-in", VmmSettings(order=("stand-in",)), tmp_path), StandInVmm)
