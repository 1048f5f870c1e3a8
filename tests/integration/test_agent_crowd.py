"""`castoff agent` with 10,000 clients that connect and then do nothing, or next to nothing, while others work."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from agents import AgentProcess, agent, asked
from machines import Castoff, castoff_state

CROWD = 10_000
SOURCES = 4
"""Addresses that they come from: one has 28,000 ports, less what others use."""
PATIENCE = 25
"""client_timeout, seconds."""
MACHINES = "/v1/apps/crowd/machines"
SENT = (b"", b"GET /v1/apps HTT", b"GET /v1/apps HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"POST /v1/apps HTTP/1.1\r\n")
"""What they send: nothing, or a part of a request's head."""


@pytest.fixture(name="descriptors", autouse=True)
def _descriptors() -> Iterator[None]:
    """Enough of them here, and by that in the agent."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= CROWD + 2000, f"this host allows {hard} open files"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def served(kernels: Path, connections: int) -> Iterator[tuple[Castoff, AgentProcess, int]]:
    """An agent of stand-in machines that has room for so many connections, and its port."""
    with castoff_state(kernels) as state:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        config = state.state.parent / "agent.toml"
        config.write_text(
            f'[vmm]\norder = ["stand-in"]\n[agent]\nlisten = "127.0.0.1:{port}"\n'
            f"connections = {connections}\nclient_timeout = {PATIENCE}\n"
        )
        castoff = Castoff(state.state, state.image, config)
        with agent(castoff) as running:
            yield castoff, running, port


@contextlib.asynccontextmanager
async def crowd(port: int) -> AsyncIterator[list[socket.socket]]:
    """Clients that have connected, each with its few bytes sent."""
    loop = asyncio.get_running_loop()
    clients = [socket.socket() for _ in range(CROWD)]

    async def connect(number: int) -> None:
        client = clients[number]
        client.setblocking(False)
        client.bind((f"127.0.0.{2 + number % SOURCES}", 0))
        await loop.sock_connect(client, ("127.0.0.1", port))
        with contextlib.suppress(ConnectionError):  # it may have been refused already
            await loop.sock_sendall(client, SENT[number % len(SENT)])

    try:
        for first in range(0, CROWD, 500):  # the backlog is 1024
            await asyncio.gather(*(connect(number) for number in range(first, first + 500)))
        yield clients
    finally:
        for client in clients:
            client.close()


def answered(clients: list[socket.socket]) -> list[bytes]:
    """What those were told that were told something, or were let go (nothing then)."""
    found = []
    for client in clients:
        with contextlib.suppress(BlockingIOError):
            try:
                found.append(client.recv(4096))
            except ConnectionResetError:
                found.append(b"")
    return found


async def work(castoff: Castoff, api: aiohttp.ClientSession) -> list[float]:
    """Machines made, looked at and destroyed; seconds that each request took."""
    config = {"image": castoff.image, "init": {"exec": ["sleep", "60"]}}
    took = []
    for _ in range(20):
        for method, path, body in (("POST", MACHINES, {"config": config}), ("GET", MACHINES, None)):
            begun = time.perf_counter()
            answer = await asked(api, method, path, body)
            took.append(time.perf_counter() - begun)
            if method == "POST":
                made = answer["id"]
        await asked(api, "GET", f"{MACHINES}/{made}/wait?state=started&timeout=60")
        await asked(api, "DELETE", f"{MACHINES}/{made}?force=true")
    return took


def descriptors(running: AgentProcess) -> int:
    """Open ones of the agent."""
    return len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))


async def test_ten_thousand_idle_connections(kernels: Path) -> None:
    """Where there is room for them, others hardly notice; they are let go when their time is over, and nothing of them stays."""
    with served(kernels, CROWD + 1000) as (castoff, running, port):
        async with running.client() as api:
            await asked(api, "POST", "/v1/apps", {"name": "crowd", "org_slug": "personal"}, status=201)
            await work(castoff, api)
            before = descriptors(running)
            async with crowd(port) as clients:
                full = time.monotonic()
                async with asyncio.timeout(10):  # the last are connected by the kernel, and wait to be accepted
                    while descriptors(running) < before + CROWD - 100:
                        await asyncio.sleep(0.05)
                took = await work(castoff, api)
                assert time.monotonic() - full < PATIENCE, "the crowd was let go meanwhile: this says nothing"
                assert statistics.median(took) < 0.5
                async with asyncio.timeout(3 * PATIENCE):
                    while descriptors(running) > before + 10:
                        await asyncio.sleep(0.2)
                told = answered(clients)
                assert len(told) == CROWD
                assert not any(told)


async def test_more_connections_than_there_is_room_for(kernels: Path) -> None:
    """They are told so and closed; who has a connection goes on, and the unix socket has room of its own."""
    room = 500
    with served(kernels, room) as (castoff, running, port):
        async with running.client() as api:
            await asked(api, "POST", "/v1/apps", {"name": "crowd", "org_slug": "personal"}, status=201)
            before = descriptors(running)
            async with crowd(port) as clients:
                async with running.client() as newcomer:
                    await work(castoff, newcomer)
                await work(castoff, api)
                assert descriptors(running) <= before + room + 20
                told = answered(clients)
                refused = sum(b"503 Service Unavailable" in one for one in told)
                reset = told.count(b"")  # those whose own bytes crossed the answer
                assert refused + reset >= CROWD - room
                assert refused > 0
