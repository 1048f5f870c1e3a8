"""fly-admin, an npm package that others wrote, against `castoff agent`: every call that it has.

Runs where there are node and the module: CASTOFF_FLY_ADMIN is its directory (`npm install fly-admin@1.6.1`, then
node_modules/fly-admin). With CASTOFF_RECORD=DIRECTORY it writes down what was said, as test_client_flyctl.py does.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.client_agent import remove_machines, served
from tests.recorder import recording

MODULE = os.environ.get("CASTOFF_FLY_ADMIN")
NODE = shutil.which("node")
SCRIPT = Path(__file__).parents[1] / "clients" / "fly_admin.js"
pytestmark = [
    pytest.mark.fly_admin,
    pytest.mark.skipif(
        MODULE is None or NODE is None, reason="no fly-admin: its directory goes into CASTOFF_FLY_ADMIN, and node on PATH"
    ),
]
REFUSED = {
    "createAppAgain": "422",
    "allocateIpAddress": "no proxy",
    "startWithoutTheLease": "lease currently held by",
    "deleteVolume": "destroy the machine first",
    "deleteApp": "destroy them first",
}


async def said_to(url: str, token: str, image: str) -> dict[str, Any]:
    """What each call answered."""
    assert NODE is not None and MODULE is not None
    env = os.environ | {"CASTOFF_URL": url, "CASTOFF_TOKEN": token, "CASTOFF_IMAGE": image}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(NODE, str(SCRIPT), env=env, stdout=pipe, stderr=pipe)
    output, errors = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, errors.decode()
    found: dict[str, Any] = json.loads(output)
    return found


async def test_fly_admin(kernels: Path) -> None:
    """What it asks for it gets, in the shape of its types; what castoff refuses is an error with a text."""
    with served(kernels) as (castoff, running, url):
        token = castoff.json("token", "create", "--name", "fly-admin")["token"]
        async with recording(url) as recorder:
            try:
                said = await said_to(recorder.url, token, castoff.image)
            finally:
                await remove_machines(running)
        if directory := os.environ.get("CASTOFF_RECORD"):
            recorder.write(Path(directory) / "fly-admin.jsonl", names={castoff.image: "127.0.0.1:5000/tiny:1"})
    failed = {name: answer["failed"] for name, answer in said.items() if isinstance(answer, dict) and "failed" in answer}
    assert failed.keys() == REFUSED.keys(), failed
    for name, text in REFUSED.items():
        assert text in failed[name]
    assert said["getAppDetailed"] == {
        "name": "admin",
        "status": "pending",
        "organization": {"name": "personal", "slug": "personal"},
        "ipAddresses": [],
    }
    assert said["getRegions"]["platform"]["requestRegion"] == "local"
    assert said["setSecrets"] == {"setSecrets": {"release": None}}
    volume, machine = said["createVolume"]["id"], said["createMachine"]["id"]
    assert said["extendVolume"]["volume"]["size_gb"] == 2
    assert said["getMachine"]["config"]["mounts"] == [
        {"volume": volume, "path": "/data", "name": "data", "size_gb": 2, "encrypted": False}
    ]
    assert said["getMachine"]["state"] == "started"
    assert [found["user_config"]["env"]["GREETING"] for found in said["listVersions"]] == ["hello"]
    assert said["waitUpdated"]["version"] == said["updateMachine"]["instance_id"]
    assert {event["type"] for event in said["listEvents"]} >= {"launch", "start", "exit"}
    assert said["getLease"]["data"]["nonce"] == said["acquireLease"]["data"]["nonce"]
    assert {found["state"] for found in said["listWithDeleted"]} == {"stopped", "destroyed"}
    assert machine in {found["id"] for found in said["listMachines"]}
