"""The agent as a process: it starts with no configuration, its machines outlive it, and only who may gets in."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from agents import agent, asked
from machines import Castoff, castoff_state, eventually


@pytest.fixture(name="state", scope="module")
def _state(kernels: Path) -> Iterator[Castoff]:
    with castoff_state(kernels) as state:
        directory = state.state.parent
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = directory / "agent.toml"
        config.write_text(f'[agent]\nlisten = "127.0.0.1:{port}"\n')
        yield Castoff(state.state, state.image, config)


async def test_a_machine_through_the_api_outlives_the_agent(state: Castoff) -> None:
    """Create, exec, logs; kill -9 of the agent; the next one has it all, stops it and removes every trace."""
    script = "echo hello $FLY_APP_NAME $SECRET; while read x; do :; done </dev/zero & wait; sleep 1000"
    config = {"image": state.image, "init": {"exec": ["sh", "-c", script]}, "stop_config": {"signal": "SIGTERM"}}
    with agent(state) as first:
        async with first.client() as api:
            await asked(api, "POST", "/v1/apps", {"name": "shop", "org_slug": "personal"}, status=201)
            await asked(api, "POST", "/v1/apps/shop/secrets", {"values": {"SECRET": "s3cret"}})
            machine = await asked(api, "POST", "/v1/apps/shop/machines", {"name": "web", "config": config})
            one = f"/v1/apps/shop/machines/{machine['id']}"
            await asked(api, "GET", f"{one}/wait?state=started&timeout=60")
            done = await asked(api, "POST", f"{one}/exec", {"cmd": "sh -c 'echo $SECRET; exit 3'"})
            assert (done["exit_code"], done["stdout"]) == (3, "s3cret\n")
            assert any(process["command"].startswith("sh -c echo hello") for process in await asked(api, "GET", f"{one}/ps"))
        first.kill()
        assert "s3cret" not in first.said
    with agent(state) as second:
        async with second.client() as api:
            listed = await asked(api, "GET", "/v1/apps/shop/machines")
            assert [(found["id"], found["state"]) for found in listed] == [(machine["id"], "started")]
            assert [event["type"] for event in listed[0]["events"]] == ["start", "start", "launch"]
            assert (await asked(api, "POST", f"{one}/exec", {"cmd": "echo again"}))["stdout"] == "again\n"
            async with api.get(f"{one}/logs") as log:
                assert [json.loads(line)["m"] async for line in log.content] == ["hello shop s3cret"]
            await asked(api, "POST", f"{one}/stop", {"timeout": "1s"})
            await asked(api, "GET", f"{one}/wait?state=stopped&timeout=60")
            events = await asked(api, "GET", f"{one}/events")
            assert events[0]["request"]["exit_event"]["requested_stop"] is True
            await asked(api, "DELETE", one)
            await asked(api, "GET", f"{one}/wait?state=destroyed&timeout=60")
            assert await asked(api, "GET", "/v1/apps/shop/machines") == []
            assert state.machines == []
            metrics = await (await api.get("http://127.0.0.1/metrics")).text()
            assert 'castoff_machines{state="started"} 0.0' in metrics


async def test_who_may(state: Castoff, tmp_path: Path) -> None:
    """Over TCP a token is needed; one for reading changes nothing; a revoked one is worthless at once."""
    assert state.config is not None
    base = "http://" + state.config.read_text().split('"')[1]
    reading = state.json("token", "create", "--name", "reader", "--read-only", "--ttl", "1h")
    writing = state.json("token", "create", "--name", "writer")
    with agent(state):
        async with aiohttp.ClientSession(base) as api:
            await asked(api, "GET", "/v1/apps", status=401)
            for scheme in ("Bearer", "FlyV1"):
                api.headers["Authorization"] = f"{scheme} {reading['token']}"
                await asked(api, "GET", "/v1/apps")
                await asked(api, "POST", "/v1/apps", {"name": "no", "org_slug": "personal"}, status=403)
            api.headers["Authorization"] = f"Bearer {writing['token']}"
            await asked(api, "POST", "/v1/apps", {"name": "yes", "org_slug": "personal"}, status=201)
            config = {"image": state.image}
            await asked(api, "POST", "/v1/apps/yes/machines", {"config": config}, status=400)  # an image of the host's disk
            assert state("token", "revoke", writing["id"]).returncode == 0
            await asked(api, "GET", "/v1/apps", status=401)
    listed = state.json("token", "list")
    names = {token["name"] for token in listed}
    assert "reader" in names
    assert "writer" not in names
    for secret in (reading["token"], writing["token"]):
        assert secret.encode() not in (state.state / "castoff.db").read_bytes()


async def test_a_machine_has_the_rates_that_it_asks_for_within_the_operators_bound(state: Castoff, tmp_path: Path) -> None:
    """Too much is refused before there is a machine, as is what cannot be limited; what is granted reaches the VMM."""
    config = tmp_path / "agent.toml"
    config.write_text('[agent]\nlisten = ""\n[vmm.rates]\ndisk_operations = 5000\n[vmm.rates.most]\ndisk_bytes = 50000000\n')
    with agent(Castoff(state.state, state.image, config)) as running:
        async with running.client() as api:
            await asked(api, "POST", "/v1/apps", {"name": "paced", "org_slug": "personal"}, status=201)
            wanted = {"image": state.image, "init": {"exec": ["sleep", "1000"]}}
            for rates, status in (({"disk_bytes": 60_000_000}, 400), ({"disk_bytes": 0}, 400), ({"network_bytes": 9000}, 501)):
                await asked(api, "POST", "/v1/apps/paced/machines", {"config": wanted | {"rates": rates}}, status=status)
            body = {"config": wanted | {"rates": {"disk_bytes": 40_000_000}}}
            machine = await asked(api, "POST", "/v1/apps/paced/machines", body)
            one = f"/v1/apps/paced/machines/{machine['id']}"
            await asked(api, "GET", f"{one}/wait?state=started&timeout=60")
            (record,) = [
                json.loads((path / "machine.json").read_bytes()) for path in state.state.glob(f"store/machines/{machine['id']}")
            ]
            assert record["hardware"]["rates"] == {
                "disk_bytes": 40_000_000,
                "disk_operations": 5000,
                "network_bytes": 0,
                "burst_seconds": 1.0,
            }
            assert b"throttle-group" in Path(f"/proc/{record['vmm_state']['pid']}/cmdline").read_bytes()
            await asked(api, "DELETE", f"{one}?force=true")
            await asked(api, "GET", f"{one}/wait?state=destroyed&timeout=60")
            assert await asked(api, "GET", "/v1/apps/paced/machines") == []


def test_what_a_host_cannot_hold_machines_to_is_said_once(state: Castoff, tmp_path: Path) -> None:
    """At the agent's start: no control groups, a network that has no limit."""
    config = tmp_path / "agent.toml"
    config.write_text(
        f'[agent]\nlisten = ""\n[vmm.limits]\nparent = "{tmp_path}/no-such-group"\n[vmm.rates]\nnetwork_bytes = 1000000\n'
    )
    with agent(Castoff(state.state, state.image, config)) as running:
        assert running.said.count("machines run without limits of CPU, memory and processes: ") == 1
        assert running.said.count("QEMU's user network cannot be limited") == 1


def test_what_an_agent_refuses(state: Castoff, tmp_path: Path) -> None:
    """A second one over the same state; an address beyond loopback without TLS; settings that are none."""
    with agent(state):
        second = state("agent", timeout=30)
        assert second.returncode != 0
        assert b"an agent runs already" in second.stderr
    for text, error in (
        ('[agent]\nlisten = "0.0.0.0:4280"\n', b"beyond loopback"),
        ('[agent]\nlisten = "here"\n', b"ADDRESS:PORT"),
        ("[agent]\nlissen = 1\n", b"lissen"),
        ('[agent]\nrootfs_directories = ["/no/such"]\n', b"/no/such"),
        ('[agent]\ntls_certificate = "/no/such"\n', b"belong together"),
        ('[agent]\notlp_endpoint = "ftp://x"\n', b"otlp_endpoint"),
    ):
        config = tmp_path / "agent.toml"
        config.write_text(text)
        done = Castoff(state.state, state.image, config)("agent", "check-config")
        assert done.returncode != 0
        assert error in done.stderr


def test_what_stands_in_an_agents_way(state: Castoff, tmp_path: Path) -> None:
    """The port that another program has, a state that is no directory; one that runs already is told of."""
    config, file = tmp_path / "agent.toml", tmp_path / "file"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        config.write_text(f'[agent]\nlisten = "127.0.0.1:{other.getsockname()[1]}"\n')
        configured = Castoff(state.state, state.image, config)
        taken = configured("agent", "check-config")
        assert (taken.returncode != 0, b"is another program there?" in taken.stderr) == (True, True)
    answer = configured.json("agent", "check-config")
    assert (answer["tls"], answer["running"]) == (False, False)
    file.touch()
    done = Castoff(file / "state", state.image, config)("agent", "check-config")
    assert (done.returncode != 0, b"is no directory" in done.stderr) == (True, True)
    with agent(configured):
        assert configured.json("agent", "check-config")["running"] is True


async def test_kills_under_load_lose_nothing_that_was_acknowledged(state: Castoff) -> None:
    """The agent dies at random instants while clients create, name and destroy: what was answered holds."""
    dice = random.Random(7)
    there: dict[str, str] = {}
    gone: set[str] = set()

    async def load(api: aiohttp.ClientSession) -> None:
        number = 0
        while True:
            number += 1
            config = {"image": state.image, "metadata": {"number": "0"}}
            made = await asked(api, "POST", "/v1/apps/load/machines", {"config": config, "skip_launch": True})
            there[made["id"]] = "0"
            one = f"/v1/apps/load/machines/{made['id']}"
            if number % 2:
                await asked(api, "POST", f"{one}/metadata/number", {"value": str(number)}, status=204)
                there[made["id"]] = str(number)
            if number % 3 == 0:
                del there[made["id"]]
                await asked(api, "DELETE", one)
                gone.add(made["id"])

    for round_ in range(4):
        with agent(state) as running:
            async with running.client() as api:
                if round_ == 0:
                    await asked(api, "POST", "/v1/apps", {"name": "load", "org_slug": "personal"}, status=201)
                listed = {found["id"]: found for found in await asked(api, "GET", "/v1/apps/load/machines")}
                assert not gone & set(listed)
                assert {id: listed[id]["config"]["metadata"]["number"] for id in there if there[id] != "0"} == {
                    id: number for id, number in there.items() if number != "0"
                }
                assert set(there) <= set(listed)
                clients = [asyncio.create_task(load(api)) for _ in range(4)]
                await asyncio.sleep(0.3 + dice.random())
                running.kill()
                await asyncio.gather(*clients, return_exceptions=True)
    assert len(there) > 20
    with agent(state) as last:
        async with last.client() as api:
            for id in {found["id"] for found in await asked(api, "GET", "/v1/apps/load/machines")}:
                await asked(api, "DELETE", f"/v1/apps/load/machines/{id}?force=true")
            eventually("nothing is left", lambda: state.machines == [])


async def test_a_lost_database_ends_no_machine(state: Castoff) -> None:
    """The agent does not start over machines that it does not know, unless it is told to remove them."""
    with agent(state) as running:
        async with running.client() as api:
            await asked(api, "POST", "/v1/apps", {"name": "lost", "org_slug": "personal"}, status=201)
            config = {"image": state.image, "init": {"exec": ["sleep", "600"]}}
            machine = await asked(api, "POST", "/v1/apps/lost/machines", {"config": config})
            await asked(api, "GET", f"/v1/apps/lost/machines/{machine['id']}/wait?state=started&timeout=60")
    database = state.state / "castoff.db"
    kept = {path: path.read_bytes() for path in state.state.glob("castoff.db*")}
    for path in kept:
        path.unlink()
    refused = state("agent", timeout=60)
    assert refused.returncode != 0
    assert machine["id"].encode() in refused.stderr
    for path in state.state.glob("castoff.db*"):
        path.unlink()
    for path, content in kept.items():  # the backup
        path.write_bytes(content)
    with agent(state) as running:
        async with running.client() as api:
            one = f"/v1/apps/lost/machines/{machine['id']}"
            assert (await asked(api, "POST", f"{one}/exec", {"cmd": "echo here"}))["stdout"] == "here\n"
    database.unlink()
    with agent(state, "--discard-unknown"):
        eventually("nothing is left", lambda: state.machines == [])


async def test_a_follower_that_goes_away_is_let_go_of(state: Castoff) -> None:
    """Of a log in which nothing happens, so that no write tells; of a machine that is destroyed, the follower ends."""
    with agent(state) as running:

        def connections() -> int:
            return sum(link.readlink().name.startswith("socket:") for link in fds.iterdir() if link.is_symlink())

        fds = Path(f"/proc/{running.process.pid}/fd")
        async with running.client() as api:
            await asked(api, "POST", "/v1/apps", {"name": "logs", "org_slug": "personal"}, status=201)
            body = {"config": {"image": state.image}, "skip_launch": True}
            machine = await asked(api, "POST", "/v1/apps/logs/machines", body)
            one = f"/v1/apps/logs/machines/{machine['id']}"
            for _ in range(20):
                async with running.client() as other, other.get(f"{one}/logs?follow=true") as log:
                    assert log.status == 200
            eventually("they are let go of", lambda: connections() <= 8)
            used = cpu_seconds(running.process.pid)
            await asyncio.sleep(2)
            assert cpu_seconds(running.process.pid) - used < 0.2  # none of them looks for lines any more
            async with api.get(f"{one}/logs?follow=true") as log:
                await asked(api, "DELETE", one)
                async with asyncio.timeout(10):
                    assert await log.read() == b""


def cpu_seconds(pid: int) -> float:
    """What a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
