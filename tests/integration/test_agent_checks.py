"""Health checks by the agent: of stand-ins, which answer with what a file holds, and of real servers in a real machine."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agents import agent, asked
from machines import Castoff, castoff_state

MACHINES = "/v1/apps/shop/machines"


def _configured(kernels: Path, vmm: str) -> Iterator[Castoff]:
    with castoff_state(kernels) as state:
        config = state.state.parent / "agent.toml"
        config.write_text(f'[agent]\nlisten = ""\n{vmm}')
        yield Castoff(state.state, state.image, config)


@pytest.fixture(name="state")
def _state(kernels: Path) -> Iterator[Castoff]:
    yield from _configured(kernels, '[vmm]\norder = ["stand-in"]\n')


@pytest.fixture(name="real")
def _real(kernels: Path) -> Iterator[Castoff]:
    yield from _configured(kernels, "")


@pytest.fixture(name="answer")
def _answer() -> Iterator[Path]:
    """What servers answer; a stand-in is a user of its own."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory) / "answer"


async def _until(api: aiohttp.ClientSession, machine: str, *statuses: str) -> dict[str, Any]:
    """The machine once its checks are so."""
    async with asyncio.timeout(60):
        while True:
            found = await asked(api, "GET", f"{MACHINES}/{machine}")
            if tuple(check["status"] for check in found["checks"]) == statuses:
                assert isinstance(found, dict)
                return found
            await asyncio.sleep(0.05)


async def test_checks_follow_a_server_and_outlive_the_agent(state: Castoff, answer: Path) -> None:
    """As Fly's clients expect them: listed at once, passing and critical with the reason, events, metrics; the next agent asks
    on; a stopped machine is not asked."""
    config = {
        "image": state.image,
        "init": {"exec": ["serve", "8080", str(answer)]},
        "checks": {"up": {"type": "tcp", "port": 8080, "interval": "1s", "grace_period": "0s"}},
        "services": [
            {
                "protocol": "tcp",
                "internal_port": 8080,
                "checks": [{"type": "http", "path": "/healthz", "interval": "1s", "grace_period": "0s"}],
            }
        ],
    }
    answer.write_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    with agent(state) as first:
        async with first.client() as api:
            await asked(api, "POST", "/v1/apps", {"name": "shop", "org_slug": "personal"}, status=201)
            machine = await asked(api, "POST", MACHINES, {"config": config})
            names = ["up", "servicecheck-00-http-8080"]
            assert [(check["name"], check["status"]) for check in machine["checks"]] == [(name, "warning") for name in names]
            one = machine["id"]
            found = await _until(api, one, "passing", "passing")
            assert found["checks"][1]["output"] == "HTTP GET http://localhost:8080/healthz: 200 OK"
            events = await asked(api, "GET", f"{MACHINES}/{one}/events")
            assert {event["status"] for event in events if event["type"] == "check"} == {"passing"}
            metrics = await (await api.get("http://127.0.0.1/metrics")).text()
            assert 'castoff_checks{status="passing"} 2.0' in metrics
            assert 'castoff_check_seconds_count{outcome="passed",type="http"}' in metrics
        first.kill()
    answer.write_bytes(b"HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\nno db")
    with agent(state) as second:
        async with second.client() as api:
            found = await _until(api, one, "passing", "critical")
            assert found["checks"][1]["output"].endswith(': 503 Service Unavailable Output: "no db"')
            answer.unlink()
            found = await _until(api, one, "critical", "critical")
            assert found["state"] == "started", "no check ends a machine"
            assert found["checks"][0]["output"] == "connect to port 8080: Connection refused"
            assert (await asked(api, "POST", f"{MACHINES}/{one}/exec", {"cmd": "echo on"}))["stdout"] == "on\n"
            await asked(api, "POST", f"{MACHINES}/{one}/stop", {"timeout": "1s"})
            await asked(api, "GET", f"{MACHINES}/{one}/wait?state=stopped&timeout=60")
            found = await _until(api, one, "warning", "warning")
            assert found["checks"][0]["output"] == "the machine is stopped"
            bad = {**config, "checks": {"up": {"type": "tcp"}}}
            refused = await asked(api, "POST", MACHINES, {"config": bad}, status=400)
            assert "check 'up': it names no port" in refused["error"]


async def test_checks_of_a_real_machine(real: Castoff) -> None:
    """At the address where others would reach it: a server on the loopback alone is not up."""
    script = "mkdir -p /www; echo up > /www/up; httpd -p 80 -h /www; httpd -p 127.0.0.1:81 -h /www; sleep 1000"
    quick = {"interval": "1s", "grace_period": "0s"}
    config = {
        "image": real.image,
        "init": {"exec": ["sh", "-c", script]},
        "checks": {
            "a": {"type": "http", "port": 80, "path": "/up", **quick},
            "b": {"type": "http", "port": 80, "path": "/missing", **quick},
            "c": {"type": "tcp", "port": 81, **quick},
        },
    }
    with agent(real) as running:
        async with running.client() as api:
            await asked(api, "POST", "/v1/apps", {"name": "shop", "org_slug": "personal"}, status=201)
            machine = await asked(api, "POST", MACHINES, {"config": config})
            await asked(api, "GET", f"{MACHINES}/{machine['id']}/wait?state=started&timeout=60")
            found = await _until(api, machine["id"], "passing", "critical", "critical")
            assert found["checks"][2]["output"] == "connect to port 81: Connection refused"
            async with asyncio.timeout(60):  # it may have been asked before the server listened
                while ": 404 Not Found" not in found["checks"][1]["output"]:
                    found = await asked(api, "GET", f"{MACHINES}/{machine['id']}")
            await asked(api, "DELETE", f"{MACHINES}/{machine['id']}?force=true")
            await asked(api, "GET", f"{MACHINES}/{machine['id']}/wait?state=destroyed&timeout=60")
