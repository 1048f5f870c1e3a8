"""What the agent logs: which app and machine a line is about, and never what is nobody else's business."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agents import AgentProcess, asked
from client_agent import remove_machines, served
from machines import Castoff

APP = "/v1/apps/shop"
WORDS = ("zq-secret-value", "zq-env-value", "zq-process-value", "zq-file-content", "zq-exec-stdin", "zq-token", "zq-query")
"""Each is given to the agent in the place of which it is named, in requests that succeed and in such that fail."""


@pytest.fixture(name="served", scope="module")
def _served(kernels: Path) -> Iterator[tuple[Castoff, AgentProcess, str]]:
    with served(kernels) as found:
        yield found


def configuration(image: str) -> dict[str, Any]:
    """A machine's, with something private in each place that takes it."""
    return {
        "image": image,
        "env": {"PRIVATE": "zq-env-value"},
        "files": [
            {"guest_path": "/etc/private", "raw_value": base64.b64encode(b"zq-file-content").decode()},
            {"guest_path": "/etc/secret", "secret_name": "SECRET"},
        ],
        "processes": [{"exec": ["sleep", "1000"], "env": {"PRIVATE": "zq-process-value"}}],
    }


async def spoil(api: aiohttp.ClientSession, image: str) -> None:
    """Requests with private words that fail, each in its own way."""
    good = configuration(image)
    for config in (
        {**good, "image": "127.0.0.1:1/nothing:here"},
        {**good, "files": [{"guest_path": "/x", "raw_value": "zq-file-content"}]},
        {**good, "files": [{"guest_path": "relative", "raw_value": base64.b64encode(b"zq-file-content").decode()}]},
        {**good, "env": {"A=B": "zq-env-value"}},
        {**good, "env": {"PRIVATE": ["zq-env-value"]}},
        {**good, "mounts": [{"volume": "vol_nothing", "path": "/data"}]},
    ):
        async with api.post(f"{APP}/machines", json={"config": config}) as answer:
            assert 400 <= answer.status < 600, config
    async with api.post(f"{APP}/machines", data=b'{"config": {"env": {"A": "zq-env-value"}, broken') as answer:
        assert answer.status == 400
    async with api.post(f"{APP}/secrets", json={"values": {"NO GOOD": "zq-secret-value"}}) as answer:
        assert answer.status == 400


async def test_nothing_private_is_logged_and_lines_say_what_they_are_about(
    served: tuple[Castoff, AgentProcess, str],
) -> None:
    """Secrets, variables, files, standard input, tokens and queries are in no line of the agent's and no program's arguments."""
    castoff, running, url = served
    told = castoff.json("token", "create", "--name", "logs")["token"]
    async with aiohttp.ClientSession(url, headers={"Authorization": "Bearer zq-token"}) as stranger:
        await asked(stranger, "GET", f"{APP}/machines?why=zq-query", status=401)
    async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {told}"}) as api:
        await asked(api, "POST", "/v1/apps", {"name": "shop", "org_slug": "personal"}, status=201)
        await asked(api, "POST", f"{APP}/secrets", {"values": {"SECRET": base64.b64encode(b"zq-secret-value").decode()}})
        machine = await asked(api, "POST", f"{APP}/machines", {"config": configuration(castoff.image)})
        one = f"{APP}/machines/{machine['id']}"
        await asked(api, "GET", f"{one}/wait?state=started&timeout=60&zq-query=zq-query")
        arguments = b"".join(_command_lines())
        async with api.post(f"{one}/exec", json={"cmd": "cat", "stdin": "zq-exec-stdin"}) as answer:
            await answer.read()
        await spoil(api, castoff.image)
    await remove_machines(running)

    private = [*WORDS, told, *(base64.b64encode(word.encode()).decode() for word in WORDS)]
    assert [word for word in private if word in running.said] == []
    assert [word for word in private if word.encode() in arguments] == []
    lines = [json.loads(line) for line in running.said.splitlines() if line.startswith("{")]
    about = {(line["message"].split()[0], line.get("app"), line.get("machine")) for line in lines}
    assert ("POST", "shop", machine["id"]) in about
    assert ("GET", "shop", machine["id"]) in about
    assert ("DELETE", "shop", machine["id"]) in about
    assert any(line["message"].startswith("POST /v1/apps ") and "app" not in line for line in lines)


def _command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            yield path.read_bytes()
