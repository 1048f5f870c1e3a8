"""flyctl itself against `castoff agent`: its machines are stand-ins, its images come from a registry.

Runs where there is a flyctl (on PATH, or at CASTOFF_FLYCTL). With CASTOFF_RECORD=DIRECTORY it writes down what flyctl sent and
was content with; test_client_replay.py sends that again, without flyctl.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.client_agent import remove_machines, served
from tests.flyctl import Flyctl, flyctl
from tests.recorder import recording

from daemons import Registry
from machines import busybox_image
from oci_builder import write_layout

BINARY = flyctl()
pytestmark = [
    pytest.mark.flyctl,
    pytest.mark.skipif(BINARY is None, reason="no flyctl: put one on PATH, or its path in CASTOFF_FLYCTL"),
]
FLY_TOML = """
app = "web"
primary_region = "local"
[build]
  image = "{image}"
[env]
  GREETING = "hello"
[processes]
  app = "sh -c 'echo $GREETING of $FLY_APP_NAME; exec sleep 1000'"
[[mounts]]
  source = "data"
  destination = "/data"
  initial_size = "1"
[[vm]]
  size = "shared-cpu-1x"
"""


@pytest.fixture(name="image")
def _image(registry: Registry, tmp_path: Path) -> str:
    layout = write_layout(tmp_path / "layout", {"1": busybox_image()})
    command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:1", f"docker://{registry.host}/tiny:1"]
    subprocess.run(command, check=True, timeout=60)
    return f"{registry.host}/tiny:1"


@pytest.fixture(name="fly")
async def _fly(kernels: Path, registry: Registry, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Flyctl]:
    """flyctl, with an agent to talk to."""
    assert BINARY is not None
    home = tmp_path / "home"
    home.mkdir()
    with served(kernels) as (castoff, running, url):
        token = castoff.json("token", "create", "--name", "flyctl")["token"]
        async with recording(url) as recorder:
            try:
                yield Flyctl(BINARY, token, home, recorder)
            finally:
                await remove_machines(running)
            assert recorder.schemes == {"Bearer"}
            if directory := os.environ.get("CASTOFF_RECORD"):
                name = request.node.name.removeprefix("test_fly_")
                recorder.write(
                    Path(directory) / f"flyctl-{name}.jsonl", names={registry.host: "127.0.0.1:5000", str(home): "HOME"}
                )


async def machine(fly: Flyctl, app: str, name: str) -> str:
    """A machine's id."""
    return next(str(found["id"]) for found in await fly.json("machine", "list", "-a", app) if found["name"] == name)


async def test_fly_machine(fly: Flyctl, image: str) -> None:
    """Apps and machines: made, listed, shown, stopped, started, updated, cloned, leased, ended; what is refused says why."""
    assert "personal" in await fly("orgs", "list")
    assert "local" in await fly("platform", "regions")
    assert "local" in await fly("machine", "place", "--org", "personal", "--region", "local")
    assert "flyctl" in await fly("auth", "whoami")
    assert "shop" in await fly("apps", "create", "shop")
    assert "take another name" in await fly.refused("apps", "create", "shop")
    assert "shop" in await fly("apps", "list")
    flags = ("--name", "one", "-m", "role=web", "-e", "GREETING=hello", "--restart", "no")
    assert "successfully launched" in await fly("machine", "run", image, *flags, "-a", "shop", "sleep", "1000")
    one = await machine(fly, "shop", "one")
    on = ("-a", "shop", one)
    shown = await fly("machine", "status", *on, "--display-config")
    assert "started" in await fly("machine", "status", *on) and "GREETING" in shown and "@sha256:" in shown
    assert await fly("machine", "exec", *on, "echo from inside") == "from inside\n"
    assert "Exit code: 3" in await fly("machine", "exec", *on, "sh -c 'exit 3'")
    await fly("machine", "cordon", *on)
    await fly("machine", "uncordon", *on)
    assert "No leases" in await fly("machine", "leases", "view", *on)
    await fly("machine", "leases", "clear", *on)
    assert "updated successfully" in await fly("machine", "update", *on, "-y", "-e", "GREETING=bye", "--vm-memory", "512")
    assert "restarted successfully" in await fly("machine", "restart", *on)
    await fly("machine", "stop", *on, "--wait-timeout", "60s")
    assert "reached state" in await fly("machine", "wait", *on, "--state", "stopped")
    await fly("machine", "start", *on)
    await fly("machine", "wait", *on, "--state", "started")
    assert "successfully cloned" in await fly("machine", "clone", *on, "--name", "two")
    two = await machine(fly, "shop", "two")
    assert '"bye"' in await fly("machine", "status", "-a", "shop", two, "--display-config")
    assert "was not found" in await fly.refused("machine", "stop", "-a", "shop", "00000000000000")
    assert "currently started" in await fly.refused("machine", "destroy", *on)
    assert "machine exec" in await fly.refused("ssh", "console", "-a", "shop")
    assert "destroy them first" in await fly.refused("apps", "destroy", "shop", "-y")
    await fly("machine", "kill", *on)
    await fly("machine", "wait", *on, "--state", "stopped")
    await fly("machine", "destroy", *on)
    await fly("machine", "destroy", "--force", "-a", "shop", two)
    assert await fly.json("machine", "list", "-a", "shop") == []
    await fly("apps", "destroy", "shop", "-y")
    assert "shop" not in await fly("apps", "list")


async def test_fly_volumes(fly: Flyctl, image: str) -> None:
    """Volumes: made, mounted by name, extended, snapshotted, forked; a clone gets one of its own; then they are gone."""
    await fly("apps", "create", "shop")
    made = await fly.json("volumes", "create", "data", "-a", "shop", "-s", "1", "-r", "local", "-y")
    volume = made["id"]
    assert made["size_gb"] == 1
    await fly("machine", "run", image, "-a", "shop", "--name", "one", "-v", "data:/data", "sleep", "1000")
    one = await machine(fly, "shop", "one")
    shown = await fly.json("volumes", "list", "-a", "shop")
    assert [(found["id"], found["attached_machine_id"]) for found in shown] == [(volume, one)]
    assert "stop and start" in await fly("volumes", "extend", volume, "-s", "2", "-a", "shop")
    await fly("volumes", "snapshots", "create", volume, "-a", "shop")
    assert len(await fly.json("volumes", "snapshots", "list", volume, "-a", "shop")) == 1
    await fly("volumes", "update", volume, "--snapshot-retention", "7", "-a", "shop")
    assert "7" in await fly("volumes", "show", volume, "-a", "shop")
    forked = (await fly.json("volumes", "fork", volume, "-a", "shop", "-n", "forked"))["id"]
    assert "successfully cloned" in await fly("machine", "clone", one, "-a", "shop", "--name", "two")
    assert sorted(found["name"] for found in await fly.json("volumes", "list", "-a", "shop")) == ["data", "data", "forked"]
    assert "destroy the machine first" in await fly.refused("volumes", "destroy", volume, "-a", "shop", "-y")
    await fly("machine", "destroy", "--force", one, "-a", "shop")
    for each in (volume, forked):
        await fly("volumes", "destroy", each, "-a", "shop", "-y")
    assert len(await fly.json("volumes", "list", "-a", "shop")) == 1


async def test_fly_deploy(fly: Flyctl, image: str) -> None:
    """`fly deploy` of an image, and what works on what it made: logs, status, releases, secrets, scale."""
    directory = fly.home / "web"
    directory.mkdir()
    (directory / "fly.toml").write_text(FLY_TOML.format(image=image))
    await fly("apps", "create", "web")
    await fly("secrets", "set", "-a", "web", "--stage", "A=1", "B=2")
    assert "Staged" in await fly("secrets", "list", "-a", "web")
    await fly("secrets", "unset", "-a", "web", "--stage", "B")
    assert "update finished: success" in await fly("deploy", str(directory), "--ha=false")
    assert "hello of web" in await fly("logs", "-a", "web", "--no-tail")
    assert "started" in await fly("status", "-a", "web")
    assert "complete" in await fly("releases", "-a", "web")
    assert json.loads(await fly("config", "show", "-a", "web"))["env"] == {"GREETING": "hello"}
    assert "tiny" in await fly("image", "show", "-a", "web")
    assert "Deployed" in await fly("secrets", "list", "-a", "web")
    await fly("scale", "memory", "512", "-a", "web")
    await fly("scale", "count", "2", "-a", "web", "-y")
    assert "512" in await fly("scale", "show", "-a", "web")
    await fly("ips", "list", "-a", "web")
    assert "no proxy" in await fly.refused("ips", "allocate-v6", "-a", "web")
    assert len(await fly.json("volumes", "list", "-a", "web")) == 2
    assert "update succeeded" in await fly("secrets", "set", "C=3", "-a", "web")
    assert {found["name"] for found in await fly.json("secrets", "list", "-a", "web")} == {"A", "C"}
