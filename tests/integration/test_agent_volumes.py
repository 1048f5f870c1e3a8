"""Volumes through the agent: what a machine writes to one, the next reads, also past a crash of both."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agents import agent, asked
from castoff.agent.launch.request import machine_request, mount_paths
from castoff.errors import Invalid
from castoff.lifecycle.config import parse_config
from castoff.lifecycle.launcher import Launch
from castoff.machine.model import VolumeDrive, new_machine_id
from machines import Castoff, castoff_state

APP = "/v1/apps/shop"


@pytest.fixture(name="state", scope="module")
def _state(kernels: Path) -> Iterator[Castoff]:
    with castoff_state(kernels) as state:
        yield state


def config(state: Castoff, volume: str) -> dict[str, Any]:
    """Of a machine that has a volume at /data."""
    return {
        "image": state.image,
        "init": {"exec": ["sh", "-c", "trap exit TERM; while :; do sleep 1; done"]},
        "mounts": [{"volume": volume, "path": "/data"}],
        "restart": {"policy": "no"},
    }


async def run(api: aiohttp.ClientSession, state: Castoff, volume: str) -> str:
    """A machine that runs and has a volume; the path of its routes."""
    machine = await asked(api, "POST", f"{APP}/machines", {"config": config(state, volume)})
    one = f"{APP}/machines/{machine['id']}"
    await asked(api, "GET", f"{one}/wait?state=started&timeout=60")
    return one


async def said(api: aiohttp.ClientSession, machine: str, script: str) -> str:
    done = await asked(api, "POST", f"{machine}/exec", {"command": ["sh", "-c", script]})
    assert done["exit_code"] == 0, done
    return str(done["stdout"])


async def test_a_volume_outlives_its_machines(state: Castoff) -> None:
    """Written by one, read by the next, snapshotted and extended meanwhile; never two at once; whole at the end."""
    with agent(state) as first:
        async with first.client() as api:
            await asked(api, "POST", "/v1/apps", {"name": "shop", "org_slug": "personal"}, status=201)
            volume = await asked(api, "POST", f"{APP}/volumes", {"name": "data", "size_gb": 1})
            one = f"{APP}/volumes/{volume['id']}"
            writer = await run(api, state, volume["id"])
            assert (await asked(api, "GET", one))["attached_machine_id"] == writer.rpartition("/")[2]
            await said(api, writer, "echo kept > /data/file")
            refused = await asked(api, "POST", f"{APP}/machines", {"config": config(state, volume["id"])}, status=409)
            assert "attached to machine" in refused["error"]
            await asked(api, "POST", f"{APP}/machines", {"config": config(state, "vol_0")}, status=404)
            await asked(api, "DELETE", one, status=409)
            snapshot = await asked(api, "POST", f"{one}/snapshots")
            extended = await asked(api, "PUT", f"{one}/extend", {"size_gb": 2})
            assert extended["needs_restart"] is False and extended["volume"]["size_gb"] == 2
            megabytes = int((await said(api, writer, "df -m /data | awk 'END {print $2}'")).strip())
            assert 1800 < megabytes < 2048
            await said(api, writer, "fallocate -l 1200M /data/large && rm /data/large")
            last = "dd if=/dev/zero of=/data/last bs=1M seek=1100 count=1 conv=fsync"  # a block past the old end of the drive
            await said(api, writer, f"fallocate -l 1100M /data/last && {last} && rm /data/last")
            await said(api, writer, "echo later > /data/later; sync")
            first.kill()
    with agent(state) as second:
        async with second.client() as api:
            await asked(api, "DELETE", f"{writer}?force=true")
            await asked(api, "GET", f"{writer}/wait?state=destroyed&timeout=60")
            assert "attached_machine_id" not in await asked(api, "GET", one)
            reader = await run(api, state, volume["id"])
            assert await said(api, reader, "cat /data/file /data/later") == "kept\nlater\n"
            megabytes = int((await said(api, reader, "df -m /data | awk 'END {print $2}'")).strip())
            assert 1800 < megabytes < 2048
            await asked(api, "POST", f"{reader}/stop")
            await asked(api, "GET", f"{reader}/wait?state=stopped&timeout=60")
            image = state.state / "store" / "volumes" / volume["id"] / "data.ext4"
            subprocess.run(["e2fsck", "-fn", str(image)], check=True, capture_output=True)
            await asked(api, "DELETE", reader)
            await asked(api, "GET", f"{reader}/wait?state=destroyed&timeout=60")
            back = await asked(api, "POST", f"{APP}/volumes", {"name": "back", "snapshot_id": snapshot["id"]})
            restored = state.state / "store" / "volumes" / back["id"] / "data.ext4"
            subprocess.run(["e2fsck", "-fy", "-E", "journal_only", str(restored)], check=False, capture_output=True)
            subprocess.run(["e2fsck", "-fn", str(restored)], check=True, capture_output=True)
            listed = subprocess.run(["debugfs", "-R", "ls -p /", str(restored)], check=True, capture_output=True).stdout
            assert b"/file/" in listed and b"/later/" not in listed
            for id in (volume["id"], back["id"]):
                await asked(api, "DELETE", f"{APP}/volumes/{id}")
            assert await asked(api, "GET", f"{APP}/volumes") == []
            assert list((state.state / "store" / "volumes").iterdir()) == []


def _mounts(*mounts: tuple[str, str]) -> Any:
    return parse_config({"image": "a", "mounts": [{"volume": volume, "path": path} for volume, path in mounts]})


def test_where_volumes_go() -> None:
    """In the order of the configuration; no place that the machine needs itself, none twice, not too many."""
    config = _mounts(("vol_1", "/data"), ("vol_2", "/var//lib/./x/"))
    launch = Launch(machine=new_machine_id(), name="web", app="shop", version="01A", config=config, volumes=("/v/1", "/v/2"))
    assert machine_request(launch, (), None).volumes == (
        VolumeDrive(Path("/v/1"), "/data"),
        VolumeDrive(Path("/v/2"), "/var/lib/x"),
    )
    for path in (
        "",
        "data",
        "/",
        "//",
        "/./",
        "/..",
        "/data/../etc",
        "/proc",
        "/proc/x",
        "/sys",
        "/dev/shm",
        "/a\0b",
        "/" + "x" * 2000,
    ):
        with pytest.raises(Invalid, match="mounts"):
            mount_paths(_mounts(("vol_1", path)))
    for mounts in (
        (("vol_1", "/a"), ("vol_2", "/a/")),
        (("vol_1", "/a"), ("vol_1", "/b")),
        (("", "/a"),),
        tuple((f"vol_{n}", f"/{n}") for n in range(9)),
    ):
        with pytest.raises(Invalid, match="mounts"):
            mount_paths(_mounts(*mounts))
