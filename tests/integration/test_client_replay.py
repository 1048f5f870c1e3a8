"""What real clients sent, sent again: the answers have the status, the fields and the types with which they were content.

tests/clients/*.jsonl were recorded by test_client_flyctl.py and test_client_fly_admin.py, with flyctl of August 2026 and
fly-admin 1.6.1. So this protects them where they are not installed. How flyctl reads answers (fly-go): what it decodes must not
be empty; absent fields and null are zero values, a wrong type fails the command; times must be RFC 3339, and ``compressedSize`` a
decimal string; GraphQL answers with any other status than 200 are failures, and ``errors[0].message`` is shown; of a lease
``data`` is read without a look whether it is there. fly-admin reads whatever is JSON, and fails at statuses above 299 and at
``errors``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.api_server import Api, running
from tests.recorder import NONCE, Exchange, Replay, missing, read

from castoff.agent.applogs import app_log_routes
from castoff.agent.launch.logs import Logs

RECORDINGS = sorted((Path(__file__).parents[1] / "clients").glob("*.jsonl"))


def test_every_recorded_command_is_there() -> None:
    """A recording that lost its commands would pass."""
    commands = {" ".join(exchange.command.split()[:2]) for file in RECORDINGS for exchange in read(file)}
    machine = (
        "run",
        "list",
        "status",
        "stop",
        "start",
        "restart",
        "update",
        "destroy",
        "exec",
        "clone",
        "wait",
        "cordon",
        "kill",
    )
    assert {f"machine {word}" for word in machine} <= commands
    assert {"apps create", "apps destroy", "volumes fork", "secrets set", "scale count", "machine leases"} <= commands
    assert any(command.startswith("deploy ") for command in commands)


async def again(api: Api, replay: Replay, exchange: Exchange) -> tuple[int, Any]:
    """A request, with this server's ids; its status and its answer."""
    headers = {"Authorization": f"Bearer {api.token}", **({NONCE: replay.text(exchange.nonce)} if exchange.nonce else {})}
    body = replay.text(exchange.body).encode() or None
    url = f"{api.url}{replay.text(exchange.path)}"
    async with api.session.request(exchange.method, url, data=body, headers=headers) as answer:
        return answer.status, await answer.json() if await answer.read() else None


@pytest.mark.parametrize("file", RECORDINGS, ids=lambda file: file.stem)
async def test_replay(scratch_xfs: Path, file: Path) -> None:
    """In the order in which they were sent; volumes are snapshotted while they are mounted, for which reflinks are needed."""
    replay = Replay()
    async with running(scratch_xfs, [app_log_routes(Logs(scratch_xfs / "logs"))]) as api:
        for exchange in read(file):
            status, answer = await again(api, replay, exchange)
            what = f"{file.stem} {exchange.command}: {exchange.method} {exchange.path} {exchange.body}"
            assert status == exchange.status, f"{what}: {status} {answer}"
            assert not missing(exchange.answer, answer), f"{what}: {answer}"
            replay.learn(exchange.answer, answer)
