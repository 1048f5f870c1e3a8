"""The agent as its systemd unit runs it: told of its start and end, with the unit's capabilities and no more."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from agents import asked
from machines import ROOT, Castoff, castoff_state, eventually

UNIT = (ROOT / "packaging" / "castoff-agent.service").read_text()


@pytest.fixture(name="state")
def _state(kernels: Path, tmp_path: Path) -> Iterator[Castoff]:
    with castoff_state(kernels) as state:
        config = tmp_path / "config.toml"
        config.write_text('[agent]\nlisten = ""\n')
        yield Castoff(state.state, state.image, config)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and util-linux")
async def test_under_the_units_conditions(state: Castoff, tmp_path: Path) -> None:
    """It says READY=1 when it serves and STOPPING=1 at its end; a machine boots, is looked into, outlives it and is removed."""
    capabilities = [name for line in re.findall(r"^CapabilityBoundingSet=(.*)", UNIT, re.MULTILINE) for name in line.split()]
    bounding = ",".join(["-all", *("+" + name.removeprefix("CAP_").lower() for name in capabilities)])
    limits = ["setpriv", "--no-new-privs", f"--bounding-set={bounding}", "--inh-caps=-all"]
    env = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    log = tmp_path / "log"

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(60)
        for round_ in range(2):
            with log.open("wb") as output:
                journal = os.fstat(output.fileno())
                env["JOURNAL_STREAM"] = f"{journal.st_dev}:{journal.st_ino}"
                process = subprocess.Popen([*limits, *state.command("agent")], env=env, stdout=output, stderr=output)
            try:
                assert told.recv(100) == b"READY=1", log.read_text()
                connector = aiohttp.UnixConnector(path=str(state.state / "agent" / "agent.sock"))
                async with aiohttp.ClientSession("http://agent", connector=connector) as api:
                    if round_ == 0:
                        await asked(api, "POST", "/v1/apps", {"name": "shop", "org_slug": "personal"}, status=201)
                        body = {"config": {"image": state.image, "init": {"exec": ["sleep", "600"]}}}
                        machine = await asked(api, "POST", "/v1/apps/shop/machines", body)
                    one = f"/v1/apps/shop/machines/{machine['id']}"
                    waited = await asked(api, "GET", f"{one}/wait?state=started,failed&timeout=60")
                    assert waited["state"] == "started", log.read_text()
                    done = await asked(api, "POST", f"{one}/exec", {"cmd": "echo in"})
                    assert done["stdout"] == "in\n"
                    if round_ == 1:
                        await asked(api, "DELETE", f"{one}?force=true")
                        await asked(api, "GET", f"{one}/wait?state=destroyed&timeout=60")
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(60)
            assert told.recv(100) == b"STOPPING=1"
            assert "token" not in log.read_text()  # the journal is read by more people than may use the agent
    eventually("nothing is left", lambda: state.machines == [])
