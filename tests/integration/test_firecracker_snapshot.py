"""Firecracker's guests on disk: written down and read back by a server made from Firecracker's own API description."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import firecracker_server
from castoff.disk.clone import Drive, Role
from castoff.errors import Conflict, Invalid, Unavailable, Unsupported
from castoff.vmm.channel import GuestChannel
from castoff.vmm.firecracker import FirecrackerHandle, FirecrackerVmm
from castoff.vmm.firecracker_api import FirecrackerApi
from castoff.vmm.guest_session import Output
from castoff.vmm.settings import FirecrackerSettings, VmmSettings
from castoff.vmm.vmm import MachineSpec, Snapshot, SnapshotHandle, SnapshotVmm

MEMORY = 16 << 20


@pytest.fixture(name="top")
def _top() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="castoff-firecracker.", dir="/var/tmp") as top:
        yield Path(top)


@pytest.fixture(name="spec")
def _spec(top: Path) -> MachineSpec:
    directory = top / "m-1"
    directory.mkdir()
    for name in ("vmlinux", "root", "initramfs"):
        (directory / name).write_bytes(os.urandom(8192))
    return MachineSpec(
        id="m-1",
        directory=directory,
        cpus=1,
        memory=MEMORY,
        kernel=directory / "vmlinux",
        initramfs=directory / "initramfs",
        drives=(Drive(Role.ROOT, directory / "root", False, True),),
    )


@pytest.fixture(name="vmm", params=[False, True], ids=["unjailed", "jailed"])
def _vmm(daemon_directory: Path, request: pytest.FixtureRequest) -> FirecrackerVmm:
    return driver(daemon_directory / f"firecracker-of-snapshots-{request.param}", own_user=request.param)


def driver(programs: Path, *, own_user: bool, version: str = "1.15.0") -> FirecrackerVmm:
    """The driver with the server as ``firecracker`` and ``jailer``, of some version."""
    programs.mkdir(exist_ok=True)
    for name in ("firecracker", "jailer"):
        line = f'{sys.executable} {firecracker_server.__file__} {name} "$@"'
        (programs / name).write_text(f"#!/bin/sh\nexport FIRECRACKER_SERVER_VERSION={version}\nexec {line}\n")
        (programs / name).chmod(0o755)
    binaries = FirecrackerSettings(binary=str(programs / "firecracker"), jailer=str(programs / "jailer"), start_seconds=20)
    return FirecrackerVmm(VmmSettings(own_user=own_user, firecracker=binaries))


def told(handle: FirecrackerHandle) -> list[tuple[str, Any]]:
    """What Firecracker was asked to do, all of it allowed by the description."""
    lines = [json.loads(line) for line in (handle.channel.parent / "requests.jsonl").read_text().splitlines()]
    assert [line["problem"] for line in lines] == [""] * len(lines)
    return [(line["path"], json.loads(line["body"])) for line in lines if line["body"]]


async def said(handle: FirecrackerHandle) -> str:
    """What the guest says to somebody who connects; it counts them in its memory."""
    async with await GuestChannel.connect(handle, 10) as channel:
        async for event in channel.events():
            if isinstance(event, Output):
                return event.data.decode()
    raise AssertionError("it said nothing")


async def suspended(vmm: FirecrackerVmm, spec: MachineSpec) -> tuple[Path, Snapshot]:
    """A guest that was asked twice, written down; its Firecracker is gone."""
    memory = spec.directory / "memory"
    memory.mkdir(mode=0o700)
    handle = await vmm.start(spec)
    try:
        await said(handle)
        await said(handle)
        again = await vmm.reattach(json.loads(json.dumps(handle.state())))  # as an agent does that was started again
        assert isinstance(again, SnapshotHandle)
        snapshot = await again.snapshot(memory)
        assert [path for path, _ in told(handle)][-2:] == ["/vm", "/snapshot/create"]
    finally:
        await handle.kill()
    return memory, snapshot


async def test_a_guest_goes_on_where_it_was(vmm: FirecrackerVmm, spec: MachineSpec) -> None:
    """In a new Firecracker, jailed where the old one was, with drives and sockets where they were. What was written is root's
    alone; it runs only when it is told to, and can be written down again."""
    memory, snapshot = await suspended(vmm, spec)
    assert isinstance(vmm, SnapshotVmm)
    files = sorted(memory.iterdir())
    assert [path.name for path in files] == ["devices", "guest"]
    assert all(path.stat().st_mode & 0o777 == 0o600 and path.stat().st_uid == os.geteuid() for path in files)
    assert all(path.stat().st_nlink == 1 for path in files), "the jail keeps a name of it"
    assert snapshot.size == sum(path.stat().st_size for path in files) > MEMORY
    handle = await vmm.restore(spec, memory, snapshot)
    try:
        assert [path for path, _ in told(handle)][-2:] == ["/logger", "/snapshot/load"]
        async with FirecrackerApi(handle.channel.parent / "api.sock").connected() as api:
            assert (await api.get("/"))["state"] == "Paused"
        with pytest.raises(Unavailable):
            await GuestChannel.connect(handle, 0.2)
        for path in files:
            path.unlink()  # as the machine does before it lets the guest run
        await handle.go_on()
        await handle.go_on()
        assert [body for path, body in told(handle) if path == "/vm"][-1:] == [{"state": "Resumed"}]
        assert await said(handle) == "/drives/root 3"
        again = await handle.snapshot(memory)
        assert again.made_by == snapshot.made_by
        await handle.go_on()
        assert await said(handle) == "/drives/root 4"
    finally:
        await handle.kill()


async def test_what_does_not_belong_together_never_runs(vmm: FirecrackerVmm, spec: MachineSpec, top: Path) -> None:
    """Bytes that are others, another Firecracker, another machine: refused, nothing left running; the machine boots then."""
    memory, snapshot = await suspended(vmm, spec)
    other = driver(top / "other", own_user=vmm._settings.own_user, version="1.16.0")
    with pytest.raises(Conflict, match=r"suspended by Firecracker 1\.15\.0 .*this is 1\.16\.0"):
        await other.restore(spec, memory, snapshot)
    with pytest.raises(Conflict, match="suspended by Firecracker"):
        await vmm.restore(replace(spec, cpus=2), memory, snapshot)
    with (memory / "guest").open("r+b") as file:
        file.seek(MEMORY - 1)
        file.write(b"x")
    with pytest.raises(Invalid, match="not what was written"):
        await vmm.restore(spec, memory, snapshot)
    (memory / "devices").unlink()
    with pytest.raises(Invalid, match="cannot be read"):
        await vmm.restore(spec, memory, snapshot)
    handle = await vmm.start(spec)
    try:
        assert await said(handle) == "/drives/root"
    finally:
        await handle.kill()


async def test_a_guest_that_cannot_be_written_down_goes_on(vmm: FirecrackerVmm, spec: MachineSpec) -> None:
    """Where a file is in the way, and where whoever asked goes away; a Firecracker that has ended is told of."""
    memory = spec.directory / "memory"
    memory.mkdir()
    handle = await vmm.start(spec)
    try:
        (memory / "devices").touch()
        with pytest.raises(Unavailable, match="cannot be written"):
            await handle.snapshot(memory)
        assert await said(handle) == "/drives/root"
        for path in memory.iterdir():
            path.unlink()
        asked = asyncio.create_task(handle.snapshot(memory))
        async with asyncio.timeout(20):
            while told(handle)[-1][1].get("state") != "Paused":
                await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert await said(handle) == "/drives/root 2"
        state = {**handle.state(), "shape": ""}
        older = await vmm.reattach(state)
        assert older is not None
        with pytest.raises(Unsupported, match="older castoff"):
            await older.snapshot(memory)
    finally:
        await handle.kill()
    with pytest.raises(Unavailable):
        await handle.go_on()


async def test_a_hostile_jail_is_not_followed(daemon_directory: Path, spec: MachineSpec) -> None:
    """Names that a jailed Firecracker put where files are lent to it are replaced, not written through."""
    vmm = driver(daemon_directory / "firecracker-of-snapshots-True", own_user=True)
    memory, precious = spec.directory / "memory", spec.directory / "precious"
    memory.mkdir(mode=0o700)
    precious.write_text("precious")
    handle = await vmm.start(spec)
    try:
        for name in ("snapshot.guest", "snapshot.devices"):
            (handle.channel.parent / name).symlink_to(precious)
        await handle.snapshot(memory)
    finally:
        await handle.kill()
    assert precious.read_text() == "precious" and precious.stat().st_uid == os.geteuid()
    assert not any(path.name.startswith("snapshot.") for path in handle.channel.parent.iterdir())
