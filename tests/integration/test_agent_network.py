"""The network of the agent's machines, with real guests: who reaches whom, under which name, and what outlives the agent.

Each test's host is a network namespace, and what is beyond it another.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agents import agent, asked
from client_agent import remove_machines
from machines import Castoff, castoff_state

HOST, BEYOND = (f"castoff-{name}-{os.getpid()}" for name in ("host", "beyond"))
OWN, FAR = "192.0.2.2", "192.0.2.1"
SERVES = "httpd -p 8000 -h /srv; while :; do sleep 1; done"


@dataclass(frozen=True, slots=True)
class OnHost(Castoff):
    """The command in the host's namespace."""

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", HOST, *Castoff.command(self, *words)]


def inside(namespace: str, *words: str) -> str:
    """What a command says in a namespace; empty where it fails."""
    command = ["ip", "netns", "exec", namespace, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout if done.returncode == 0 else ""


@contextlib.contextmanager
def serving(namespace: str, port: int, directory: Path) -> Iterator[None]:
    """A web server at all addresses of a namespace."""
    command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "http.server", str(port), "-d", str(directory)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.kill()
        server.wait(10)


@pytest.fixture(name="host")
def _host(kernels: Path, tmp_path: Path) -> Iterator[OnHost]:
    (tmp_path / "data").write_text("from beyond\n")
    for namespace in (HOST, BEYOND):
        subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)
    try:
        for words in (
            f"netns add {HOST}",
            f"netns add {BEYOND}",
            f"-n {HOST} link set lo up",
            f"-n {BEYOND} link set lo up",
            f"-n {HOST} link add up0 type veth peer name far netns {BEYOND}",
            f"-n {HOST} address add {OWN}/24 dev up0",
            f"-n {BEYOND} address add {FAR}/24 dev far",
            f"-n {HOST} link set up0 up",
            f"-n {BEYOND} link set far up",
        ):
            subprocess.run(["ip", *words.split()], check=True)
        with castoff_state(kernels) as state, serving(BEYOND, 8001, tmp_path), serving(HOST, 8002, tmp_path):
            config = state.state.parent / "agent.toml"
            config.write_text(f'[agent.network]\nmode = "bridge"\npublish = ["{OWN}", "127.0.0.1"]\n')
            host = OnHost(state.state, state.image, config)
            yield host
            end_machines(host)
    finally:
        for namespace in (HOST, BEYOND):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


def end_machines(host: OnHost) -> None:
    """Ends what a test that failed has left: machines outlive their agent."""
    for directory in host.machines:
        with contextlib.suppress(OSError, KeyError, ValueError):
            os.kill(json.loads((directory / "machine.json").read_bytes())["vmm_state"]["pid"], signal.SIGKILL)


class Guest:
    """A machine, and commands in it."""

    def __init__(self, api: aiohttp.ClientSession, machine: dict[str, Any], app: str) -> None:
        self.api = api
        self.id: str = machine["id"]
        self.address6: str = machine["private_ip"]
        self.path = f"/v1/apps/{app}/machines/{self.id}"
        self.address = f"10.211.0.{int(self.address6.rpartition(':')[2], 16)}"

    @classmethod
    async def make(cls, api: aiohttp.ClientSession, image: str, app: str, **more: Any) -> Guest:
        config = {"image": image, "init": {"exec": ["sh", "-c", SERVES]}, **more}
        return cls(api, await asked(api, "POST", f"/v1/apps/{app}/machines", {"config": config}), app)

    async def started(self) -> None:
        await asked(self.api, "GET", f"{self.path}/wait?state=started&timeout=60")

    async def says(self, command: str) -> str:
        """What a shell's line writes; empty where it fails."""
        done = await asked(self.api, "POST", f"{self.path}/exec", {"command": ["sh", "-c", command], "timeout": 30})
        return str(done.get("stdout") or "") if done["exit_code"] == 0 else ""

    async def fetches(self, host: str, port: int) -> str:
        """The file ``data`` of a web server; empty where there is none, or it has another."""
        said = await self.says(f"printf 'GET /data HTTP/1.0\\r\\n\\r\\n' | nc -w 4 {host} {port}")
        return said.partition("\r\n\r\n")[2].strip()

    async def eventually_fetches(self, host: str, port: int) -> str:
        """Its server may come a moment after its start."""
        deadline = time.monotonic() + 60
        while not (said := await self.fetches(host, port)):
            assert time.monotonic() < deadline, (host, port)
        return said

    async def finds(self, name: str) -> set[str]:
        """The addresses that a name has."""
        # One question a kind, and each twice: a guest on a busy host is slow to hear an answer.
        asking = [f"nslookup -type={kind} {name}" for kind in ("a", "aaaa") * 2]
        said = await self.says(f"{'; '.join(asking)}; true")
        return set(re.findall(r"Address: (\S+)$", said, re.MULTILINE))


async def test_machines_of_an_app_reach_one_another_and_nobody_else(host: OnHost) -> None:
    """Within the app, and out; not other apps, not the host; not under another's address. What is published, all others do."""
    services = [{"protocol": "tcp", "internal_port": 8000, "ports": [{"port": 18000}]}]
    with agent(host) as running:
        async with running.client() as api:
            for app in ("one", "two"):
                await asked(api, "POST", "/v1/apps", {"name": app, "org_slug": "personal"}, status=201)
            first = await Guest.make(api, host.image, "one", services=services)
            second = await Guest.make(api, host.image, "one")
            other = await Guest.make(api, host.image, "two")
            for guest in (first, second, other):
                await guest.started()

            assert (await first.says("echo $FLY_PRIVATE_IP")).strip() == first.address6
            for address in (first.address, first.address6):
                assert await second.eventually_fetches(address, 8000) == "from the image"
                assert await other.fetches(address, 8000) == ""
            assert await second.finds(f"{first.id}.vm.one.internal") == {first.address, first.address6}
            assert await other.finds(f"{first.id}.vm.one.internal") == set()
            assert await other.finds(f"{other.id}.vm.two.internal") == {other.address, other.address6}

            assert await first.fetches(FAR, 8001) == "from beyond"
            for address in (OWN, "10.211.0.1"):
                assert await first.fetches(address, 8002) == ""
            assert await other.fetches(OWN, 18000) == ""
            fetch = "import urllib.request, sys; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
            for namespace, address in ((BEYOND, OWN), (HOST, "127.0.0.1")):
                said = inside(namespace, sys.executable, "-c", fetch, f"http://{address}:18000/data")
                assert said.strip() == "from the image", (namespace, address)

            assert await second.says("ping -c 1 -W 3 10.211.0.1") != ""
            assert (
                await second.says(f"ip address add {other.address}/32 dev eth0; ping -c 1 -W 2 -I {other.address} 10.211.0.1")
                == ""
            )
            forged = other.address6
            assert await second.says("ping -6 -c 1 -W 3 fdca:57f0:ff::1") != ""
            assert (
                await second.says(f"ip -6 address add {forged}/128 dev eth0; ping -6 -c 1 -W 2 -I {forged} fdca:57f0:ff::1") == ""
            )
            other_card = "ip link set eth0 down; ip link set eth0 address 02:ca:0a:d3:00:77; ip link set eth0 up"
            route = "ip route add 10.211.0.1/32 dev eth0"
            assert await other.says(f"{other_card}; {route}; ping -c 1 -W 2 10.211.0.1") == ""

            taken = {"config": {"image": host.image, "services": services}}
            await asked(api, "POST", "/v1/apps/two/machines", taken, status=409)
        await remove_machines(running)
    ports = json.loads(inside(HOST, "ip", "-json", "link", "show", "master", "castoff0") or "[]")
    assert ports == []
    assert "elements" not in inside(HOST, "nft", "list", "ruleset")


async def test_what_a_stopped_machine_publishes_is_refused_at_once(host: OnHost) -> None:
    """From beyond and at the host itself, where a route to nobody would say something else, and late; open again with it."""
    services = [{"protocol": "tcp", "internal_port": 8000, "ports": [{"port": 18000}]}]
    connect = "import socket, sys; print(socket.socket().connect_ex((sys.argv[1], 18000)))"
    fetch = "import urllib.request, sys; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
    with agent(host) as running:
        async with running.client() as api:
            await asked(api, "POST", "/v1/apps", {"name": "one", "org_slug": "personal"}, status=201)
            guest = await Guest.make(api, host.image, "one", services=services)
            await guest.started()
            assert await guest.eventually_fetches("127.0.0.1", 8000) == "from the image"
            await asked(api, "POST", f"{guest.path}/stop", {})
            await asked(api, "GET", f"{guest.path}/wait?state=stopped&timeout=60")
            for namespace, address in ((BEYOND, OWN), (HOST, "127.0.0.1")):
                said = inside(namespace, sys.executable, "-c", connect, address)
                assert said.strip() == str(errno.ECONNREFUSED), (namespace, address)
            await asked(api, "POST", f"{guest.path}/start", {})
            await guest.started()
            assert await guest.eventually_fetches("127.0.0.1", 8000) == "from the image"
            for namespace, address in ((BEYOND, OWN), (HOST, "127.0.0.1")):
                said = inside(namespace, sys.executable, "-c", fetch, f"http://{address}:18000/data")
                assert said.strip() == "from the image", (namespace, address)
        await remove_machines(running)


async def test_a_machine_is_held_to_its_rate(host: OnHost, tmp_path: Path) -> None:
    """Both ways: a sixth of what there is comes at once, the rest at a rate at which it takes five seconds."""
    rate = 256 << 10
    (tmp_path / "big").write_bytes(bytes(6 * rate))
    with agent(host) as running:
        async with running.client() as api:
            await asked(api, "POST", "/v1/apps", {"name": "one", "org_slug": "personal"}, status=201)
            guest = await Guest.make(api, host.image, "one", rates={"network_bytes": rate})
            await guest.started()
            assert await guest.eventually_fetches(FAR, 8001) == "from beyond"
            began = time.monotonic()
            assert (await guest.says(f"wget -q -O - http://{FAR}:8001/big | wc -c")).strip() == str(6 * rate)
            taken = time.monotonic() - began
            await guest.says("dd if=/dev/zero of=/srv/big bs=65536 count=24")
            began = time.monotonic()
            fetch = "import urllib.request, sys; print(len(urllib.request.urlopen(sys.argv[1], timeout=60).read()))"
            assert inside(HOST, sys.executable, "-c", fetch, f"http://{guest.address}:8000/big").strip() == str(6 * rate)
            given = time.monotonic() - began
        await remove_machines(running)
    assert min(taken, given) > 3.5
    assert "limit t" not in inside(HOST, "nft", "list", "ruleset")


async def test_addresses_outlive_restarts_and_the_network_its_agent(host: OnHost) -> None:
    """A machine keeps its addresses; traffic goes on while no agent runs; who is cordoned is not among its app's addresses."""
    with agent(host) as running:
        async with running.client() as api:
            await asked(api, "POST", "/v1/apps", {"name": "one", "org_slug": "personal"}, status=201)
            first = await Guest.make(api, host.image, "one")
            second = await Guest.make(api, host.image, "one")
            for guest in (first, second):
                await guest.started()
            await asked(api, "POST", f"{first.path}/restart", {})
            await first.started()
            assert (await asked(api, "GET", first.path))["private_ip"] == first.address6
            assert await second.eventually_fetches(first.address, 8000) == "from the image"

            assert await second.finds("one.internal") == {
                one for guest in (first, second) for one in (guest.address, guest.address6)
            }
            await asked(api, "POST", f"{first.path}/cordon", {})
            assert await second.finds("one.internal") == {second.address, second.address6}

            asking = f"nc -w 2 {first.address} 8000 </dev/null >/dev/null && touch /tmp/asked || touch /tmp/failed"
            loop = f"(while :; do {asking}; sleep 0.1; done) >/dev/null 2>&1 &"
            await second.says(loop)
            running.kill()
    time.sleep(1)
    with agent(host) as running:
        async with running.client() as api:
            second.api = first.api = api
            assert await second.says("[ ! -e /tmp/failed ] && [ -e /tmp/asked ] && echo whole") == "whole\n"
            assert await second.finds(f"{first.id}.vm.one.internal") == {first.address, first.address6}
            third = await Guest.make(api, host.image, "one")
            assert third.address not in (first.address, second.address)
            await third.started()
            assert await third.eventually_fetches(first.address, 8000) == "from the image"
        await remove_machines(running)
