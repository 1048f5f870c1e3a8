"""Connections to a guest's ports through its channel, in a real machine, which needs no network for them."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from castoff.errors import Unavailable
from castoff.vmm.channel import GuestChannel
from castoff.vmm.guest import GuestFile
from castoff.vmm.guest_dial import GuestConnection, dialling
from castoff.vmm.guest_session import GuestSession
from castoff.vmm.kernel import find_kernel
from castoff.vmm.qemu import QemuVmm
from castoff.vmm.settings import QemuSettings, VmmSettings
from guests import MIB, Guests, make_rootfs, transcript

SETTINGS = VmmSettings(qemu=QemuSettings(accelerator="tcg"))


@pytest.fixture(scope="module")
def rootfs(daemon_directory: Path) -> Iterator[Path]:
    """The root filesystem of all."""
    path = make_rootfs(daemon_directory / "dial.ext4")
    yield path
    path.unlink()


@pytest.fixture
async def guests(rootfs: Path, kernels: Path) -> AsyncIterator[Guests]:
    """Boots guests in a directory of the test's own."""
    with tempfile.TemporaryDirectory(prefix="castoff-guests.", dir="/var/tmp") as name:
        yield Guests(QemuVmm(SETTINGS), await find_kernel(SETTINGS, kernels), rootfs, Path(name))


async def _dial(channel: GuestChannel, port: int) -> tuple[GuestSession, GuestConnection]:
    session = await channel.execute(dialling(port))
    return session, await GuestConnection.open(session)


async def _rest(connection: GuestConnection) -> bytes:
    said = bytearray()
    while data := await connection.read():
        said += data
    return bytes(said)


async def test_a_port_is_reached_without_a_network(guests: Guests) -> None:
    """A server answers; a port at which nobody listens says so; much goes both ways, past a reader that waits; a killed
    connection is one for the server."""
    script = "httpd -p 80 -h /srv/page; nc -ll -p 7 -e cat & nc -ll -p 9 -e sleep 1000 & wait"
    files = (GuestFile("/srv/page/index.html", b"page\n"),)
    async with asyncio.timeout(150), guests.boot("dial", "sh", "-c", script, files=files) as booted:
        channel = booted.channel
        await _until_it_listens(channel, 9)
        session, web = await _dial(channel, 80)
        await web.write(b"GET /index.html HTTP/1.0\r\n\r\n")
        answer = await _rest(web)
        assert b" 200 OK\r\n" in answer and answer.endswith(b"\r\npage\n")
        assert session.exit is not None and session.exit.code == 0

        with pytest.raises(Unavailable, match="connect to port 4: Connection refused"):
            await _dial(channel, 4)

        _, echo = await _dial(channel, 7)
        sent = os.urandom(3 * MIB)
        sending = asyncio.create_task(_send(echo, sent))
        others = [(await _dial(channel, 80))[1] for _ in range(5)]  # the full streams of one hold up no other
        for other in others:
            await other.write(b"GET /index.html HTTP/1.0\r\n\r\n")
            assert (await _rest(other)).endswith(b"page\n")
        assert await _rest(echo) == sent
        await sending

        session, _ = await _dial(channel, 9)
        await session.signal(9)
        assert (await transcript(session)).code == 137
        async with await GuestChannel.connect(booted.handle, 20, control=True) as control:
            while [process for process in await control.processes() if process.name == "init" and process.pid != 1]:
                pass  # they are just ending
            _, web = await _dial(control, 80)
            await web.write(b"GET / HTTP/1.0\r\n\r\n")
            assert b"page" in await _rest(web)


async def _send(connection: GuestConnection, data: bytes) -> None:
    await connection.write(data)
    await connection.end()


async def _until_it_listens(channel: GuestChannel, port: int) -> None:
    while True:
        try:
            await (await _dial(channel, port))[0].signal(9)
        except Unavailable:
            continue
        return
