"""Connections to machines' ports through the agent: over a world in memory, and by castoff machine proxy to a real machine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from tests.api_server import Api, running

from agents import agent
from castoff.api.client import ApiClient
from castoff.errors import Invalid, NotFound, Unauthorized, Unavailable
from castoff.fakes.launcher import World
from guests import MIB
from machines import Castoff, castoff_state


@pytest.fixture(name="api")
async def _api(tmp_path: Path) -> AsyncIterator[Api]:
    world = World()
    world.ports[7] = "it says what it is told"
    async with running(tmp_path, world=world) as found:
        yield found


@pytest.fixture(name="ports")
async def _ports(api: Api) -> str:
    """The path of the ports of a machine that runs."""
    machine = await api.ask("POST", "/v1/apps/mine/machines", {"config": {"image": "alpine"}})
    await api.ask("GET", f"/v1/apps/mine/machines/{machine['id']}/wait?state=started&timeout=10")
    return f"/v1/apps/mine/machines/{machine['id']}/ports"


async def test_bytes_go_both_ways_until_both_have_said_their_last(api: Api, ports: str) -> None:
    """Much of them, and the end of one direction, which is not that of the other."""
    data = os.urandom(3 * MIB)
    async with ApiClient.open(url=api.url, token="mine") as client, client.tunnel(f"{ports}/7") as tunnel:
        received = bytearray()

        async def receive() -> None:
            while piece := await tunnel.read():
                received.extend(piece)

        receiving = asyncio.create_task(receive())
        await tunnel.write(data)
        await tunnel.end()
        await asyncio.wait_for(receiving, 20)
        assert bytes(received) == data


async def test_who_may_not_and_what_is_not_there(api: Api, ports: str) -> None:
    """As any other request is refused; why a port cannot be connected is told."""
    for token, kind in (("reader", Unauthorized), ("other", Unauthorized), ("nobody", Unauthorized)):
        async with ApiClient.open(url=api.url, token=token) as client:
            with pytest.raises(kind):
                async with client.tunnel(f"{ports}/7"):
                    pass
    async with ApiClient.open(url=api.url, token="operator") as client:
        for path, error in ((f"{ports}/0", Invalid), (f"{ports}/65536", Invalid), ("/v1/apps/mine/machines/0/ports/7", NotFound)):
            with pytest.raises(error):
                async with client.tunnel(path):
                    pass
        with pytest.raises(Unavailable, match="connect to port 9: Connection refused"):
            async with client.tunnel(f"{ports}/9"):
                pass
    await api.ask("GET", f"{ports}/7", status=426)


async def test_a_client_that_breaks_the_protocol_or_goes_away_ends_its_connection_alone(api: Api, ports: str) -> None:
    """Text that is no end, bytes after the end, a message that is too long; the next connection is served."""
    headers = {"Authorization": "Bearer operator"}
    for words in (["what?"], ["end", b"more"], [bytes(2 * MIB)]):
        async with api.session.ws_connect(f"{api.url}{ports}/7", headers=headers) as client:
            assert await client.receive_str(timeout=10) == "connected"
            for word in words:
                await (client.send_bytes(word) if isinstance(word, bytes) else client.send_str(word))
            async with asyncio.timeout(10):
                while (await client.receive()).type not in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
                    pass
            assert client.close_code in (1000, 1009, 4400)
    async with api.session.ws_connect(f"{api.url}{ports}/7", headers=headers) as client:
        assert await client.receive_str(timeout=10) == "connected"
        await client.send_bytes(b"still there")
        assert await client.receive_bytes(timeout=10) == b"still there"


# --- a real machine ----------------------------------------------------------------------------------------------------


@pytest.fixture(name="state")
def _state(kernels: Path) -> Iterator[Castoff]:
    with castoff_state(kernels) as state:
        yield state


def free_ports(count: int) -> list[int]:
    """Ports at which nobody listens now."""
    with contextlib.ExitStack() as taken:
        sockets = [taken.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def said_by(port: int, request: bytes, *, seconds: float = 60) -> bytes:
    """What a server says to a request, until it ends; asked again while nobody listens there."""
    until = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                client.sendall(request)
                client.shutdown(socket.SHUT_WR)
                said = b"".join(iter(lambda: client.recv(65536), b""))
            if said:
                return said
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.1)


@contextlib.contextmanager
def proxying(state: Castoff, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """``castoff machine proxy``, ended by a signal as a person does it."""
    process = subprocess.Popen(state.command("machine", "proxy", *words), stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def test_a_machines_ports_are_reached_without_a_network(state: Castoff) -> None:
    """A web server's page, a stream of megabytes there and back, several at once; a port at which nobody listens ends a
    connection and is told of; a port of this host that is taken is refused."""
    script = "mkdir -p /srv/page; echo page > /srv/page/index.html; httpd -p 80 -h /srv/page; exec nc -ll -p 7 -e cat"
    web, echo, nobody = free_ports(3)
    with agent(state):
        words = ("--name", "web", "--memory", "192M", state.image, "sh", "-c", script)
        assert state("machine", "run", *words).returncode == 0
        with proxying(state, f"{web}:80", f"127.0.0.1:{echo}:7", f"{nobody}:9", "web") as process:
            assert said_by(web, b"GET / HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\npage\n")
            data = os.urandom(2 * MIB)
            assert hashlib.sha256(said_by(echo, data)).digest() == hashlib.sha256(data).digest()
            with contextlib.ExitStack() as opened:
                clients = [opened.enter_context(socket.create_connection(("127.0.0.1", echo), timeout=30)) for _ in range(5)]
                for number, client in enumerate(clients):
                    client.sendall(b"client %d" % number)
                assert [client.recv(100) for client in clients] == [b"client %d" % number for number in range(5)]
            with socket.create_connection(("127.0.0.1", nobody), timeout=30) as client, contextlib.suppress(ConnectionError):
                assert client.recv(1) == b""
            refused = state("machine", "proxy", f"{web}:80", "web")
            assert refused.returncode != 0 and b"cannot be listened at: Address already in use" in refused.stderr
            assert process.poll() is None and process.stderr is not None
            process.send_signal(signal.SIGINT)
            told = process.stderr.read().decode()
            assert f"127.0.0.1:{web} is port 80 of web" in told and "port 9: Connection refused" in told
            assert process.wait(30) == 130
        assert state("machine", "destroy", "--force", "web").returncode == 0
