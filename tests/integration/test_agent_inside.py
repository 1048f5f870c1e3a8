"""What a machine of the agent has inside: several processes, their list."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents import agent, asked
from machines import Castoff, castoff_state


@pytest.fixture(name="state", scope="module")
def _state(kernels: Path) -> Iterator[Castoff]:
    with castoff_state(kernels) as state:
        yield state


async def test_several_processes_run_as_one_command(state: Castoff) -> None:
    """Each with its own variables and user; they are listed; the first to end gives the machine's exit code."""
    first = "echo first $KEY $ME; while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 6"
    second = "trap 'echo second ends; exit' TERM; echo second $OWN ${KEY:-none} $(id -u); while :; do sleep 0.1; done"
    processes = [
        {"exec": ["sh", "-c", first], "env_from": [{"env_var": "ME", "field_ref": "app_name"}]},
        {
            "exec": ["sh", "-c", second],
            "user": "app",
            "ignore_app_secrets": True,
            "secrets": [{"env_var": "OWN", "name": "KEY"}],
        },
    ]
    config = {
        "image": state.image,
        "processes": processes,
        "restart": {"policy": "no"},
        "stop_config": {"signal": "SIGTERM"},
    }
    with agent(state) as running:
        async with running.client() as api:
            await asked(api, "POST", "/v1/apps", {"name": "several", "org_slug": "personal"}, status=201)
            await asked(api, "POST", "/v1/apps/several/secrets", {"values": {"KEY": "k"}})
            machine = await asked(api, "POST", "/v1/apps/several/machines", {"config": config})
            one = f"/v1/apps/several/machines/{machine['id']}"
            await asked(api, "GET", f"{one}/wait?state=started&timeout=60")
            listed: list[str] = []
            async with asyncio.timeout(30):
                # A process has no command line for a moment within its execve, which is when it counts as started.
                while sum(command.startswith(("sh -c echo first", "sh -c trap")) for command in listed) < 2:
                    listed = [process["command"] for process in await asked(api, "GET", f"{one}/ps")]
            later = ["sh", "-c", "(sleep 0.5; touch /tmp/go) >/dev/null 2>&1 &"]  # its own answer is to be here by then
            await asked(api, "POST", f"{one}/exec", {"command": later})
            await asked(api, "GET", f"{one}/wait?state=stopped&timeout=60")
            events = await asked(api, "GET", f"{one}/events")
            assert events[0]["request"]["exit_event"]["exit_code"] == 6
            async with api.get(f"{one}/logs") as log:
                said = {json.loads(line)["m"] async for line in log.content}
            assert said == {"first k several", "second k none 1000", "second ends"}
            await asked(api, "DELETE", f"{one}?force=true")
            await asked(api, "GET", f"{one}/wait?state=destroyed&timeout=60")
