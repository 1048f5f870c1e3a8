"""QEMU's driver: its promises, who it runs as, how it fails, and that it needs no root."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from castoff.conformance.vmm import check_vmm
from castoff.errors import Unavailable, Unsupported
from castoff.vmm import qmp
from castoff.vmm.channel import GuestChannel
from castoff.vmm.guest import GuestSettings
from castoff.vmm.kernel import find_kernel
from castoff.vmm.probe import KvmProbe, kvm_runs
from castoff.vmm.process import STATUS_UNKNOWN
from castoff.vmm.qemu import QemuVmm
from castoff.vmm.settings import QemuSettings, VmmSettings
from guests import MIB, Guests, make_rootfs, transcript, until

SETTINGS = VmmSettings(qemu=QemuSettings(accelerator="tcg"))


@pytest.fixture(name="guests")
async def _guests(kernels: Path) -> AsyncIterator[Guests]:
    with tempfile.TemporaryDirectory(prefix="castoff-qemu.", dir="/var/tmp") as name:
        directory = Path(name)
        yield Guests(QemuVmm(SETTINGS), await find_kernel(SETTINGS, kernels), make_rootfs(directory / "rootfs.ext4"), directory)


async def test_qemu_keeps_the_drivers_promises(guests: Guests) -> None:
    """castoff.conformance.vmm."""
    await check_vmm(guests.vmm, lambda name, guest: guests.spec(name, replace(guest, env=("PATH=/bin",))))


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


async def test_qemu_is_nobody_and_its_files_are_bounded(guests: Guests) -> None:
    """A user of the machine's own without a group, a capability or a terminal; system calls filtered; drives still root's."""
    assert os.geteuid() == 0, "only root can give it a user of its own"
    async with guests.boot("nobody", "sh", "-c", "echo up; sleep 1000") as booted:
        await until(booted.channel, b"up\n")
        status = _status(booted.handle.pid)
        assert {int(uid) for uid in status["Uid"].split()} == {int(gid) for gid in status["Gid"].split()}
        assert 2_000_000_000 <= int(status["Uid"].split()[0]) < 2_000_065_536
        assert status["Groups"] == "" and int(status["CapEff"], 16) == 0 and status["Seccomp"] == "2"
        assert os.getsid(booted.handle.pid) == booted.handle.pid
        root = booted.drives[0].path
        assert root.stat().st_uid == 0
        limits = Path(f"/proc/{booted.handle.pid}/limits").read_text().splitlines()
        assert [line.split()[3:5] for line in limits if line.startswith("Max file size")] == [[str(64 * MIB)] * 2]
        flags = [
            (entry / "flags").read_text() if entry.is_dir() else entry.read_text().split("flags:")[1].split()[0]
            for entry in Path(f"/proc/{booted.handle.pid}/fdinfo").iterdir()
            if (Path(f"/proc/{booted.handle.pid}/fd") / entry.name).readlink() == root
        ]
        assert any(int(flag, 8) & os.O_DIRECT for flag in flags), "the root drive is cached twice"
        version = await qmp.greet(guests.directory / "nobody" / "qmp.sock")
        assert version.count(".") == 2
        with pytest.raises(Unavailable, match="refused no-such-command"):
            await qmp.execute(guests.directory / "nobody" / "qmp.sock", "no-such-command")


async def test_a_monitor_of_another_process_is_found_again(guests: Guests) -> None:
    """By what JSON kept of it: served, waited for (its status is its parent's to know), and gone when it is gone."""
    spec = guests.spec("adopted", GuestSettings(argv=("sh", "-c", "echo up; read line; exit 2"), env=("PATH=/bin",), stdin=True))
    script = """
import asyncio, json, pickle, sys, os
from castoff.vmm.qemu import QemuVmm
from castoff.vmm.settings import QemuSettings, VmmSettings
spec = pickle.load(sys.stdin.buffer)
handle = asyncio.run(QemuVmm(VmmSettings(qemu=QemuSettings(accelerator="tcg"))).start(spec))
print(json.dumps(handle.state()), flush=True)
os._exit(0)
"""
    import pickle

    started = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], input=pickle.dumps(spec), capture_output=True, check=True
    )
    state = json.loads(started.stdout)
    handle = await guests.vmm.reattach(state)
    assert handle is not None
    try:
        async with await GuestChannel.connect(handle, 40) as channel:
            await until(channel, b"up\n")
            await channel.send_stdin(b"\n")
            said = await transcript(channel)
            assert said.code == 2
            assert await asyncio.wait_for(handle.wait(), 15) == STATUS_UNKNOWN
        assert await guests.vmm.reattach(state) is None
        assert await guests.vmm.reattach({**state, "pid": os.getpid()}) is None
    finally:
        await handle.kill()


async def test_failures_at_the_start_are_told_in_qemus_own_words(guests: Guests) -> None:
    """And leave no process."""
    spec = guests.spec("fails", GuestSettings(argv=("true",)))
    with pytest.raises(Unsupported, match="no-such-qemu is not installed"):
        await QemuVmm(VmmSettings(qemu=QemuSettings(binary="no-such-qemu", accelerator="tcg"))).start(spec)
    with pytest.raises(Unavailable, match=r"machine fails cannot be started: .*nothing.* No such file"):
        await guests.vmm.start(replace(spec, kernel=Path("/nothing")))
    text = guests.directory / "text"
    text.write_text("this is no kernel\n" * 1000)
    with pytest.raises(Unavailable, match=r"qemu ended at its start \(status 1\): .*"):
        await guests.vmm.start(replace(spec, kernel=text))
    silent = guests.directory / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 1000\n")
    silent.chmod(0o755)
    slow = VmmSettings(qemu=QemuSettings(binary=str(silent), accelerator="tcg", start_seconds=0.5), own_user=False)
    with pytest.raises(Unavailable, match="qemu does not answer"):
        await QemuVmm(slow).start(spec)
    silent.write_text("#!/bin/sh\nexit 0\n")  # as a QEMU whose guest is gone before we asked: no failure of QEMU's
    handle = await QemuVmm(slow).start(spec)
    with pytest.raises(Unavailable):
        await GuestChannel.connect(handle, 5)
    assert await handle.wait() == 0
    await handle.kill()
    assert not [line for line in _command_lines() if b"castoff-fails" in line]


def _command_lines() -> Iterator[bytes]:
    """Of every process that runs (not every Debian has pgrep)."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


async def test_a_kernel_that_panics_is_told_by_its_console(guests: Guests) -> None:
    """The channel ends, QEMU ends, the console log says why."""
    spec = replace(guests.spec("panics", GuestSettings(argv=("true",))), kernel_args=("rdinit=/nothing",))
    handle = await guests.vmm.start(spec)
    try:
        with pytest.raises(Unavailable, match="machine ended before its command did"):
            await GuestChannel.connect(handle, 40)
        assert await asyncio.wait_for(handle.wait(), 10) == 0
        assert "Kernel panic" in handle.console.read_text()
    finally:
        await handle.kill()


async def test_kvm_is_told_by_timing(guests: Guests, tmp_path: Path) -> None:
    """Whatever this host's KVM is worth, the probe says so with a reason, keeps the answer, and a machine starts with it."""
    settings = VmmSettings(own_user=False)
    probe = await kvm_runs(settings, guests.kernel.path, tmp_path)
    assert isinstance(probe, KvmProbe) and probe.reason
    if Path("/dev/kvm").exists():
        kept = json.loads((tmp_path / "kvm.json").read_bytes())
        assert kept["usable"] == probe.usable
        assert ("emulation" in probe.reason) or ("KVM does not run" in probe.reason)
    adaptive = replace(guests, vmm=QemuVmm(settings, state=tmp_path))
    async with adaptive.boot("adaptive", "echo", "hello") as booted:
        assert (await transcript(booted.channel)).stdout == b"hello\n"


async def test_no_root_is_needed(guests: Guests) -> None:
    """A user who owns nothing but the machine's directory."""
    assert os.geteuid() == 0, "only root can become another user"
    kernel = guests.directory / "vmlinux"
    shutil.copyfile(guests.kernel.path, kernel)
    spec = replace(guests.spec("rootless", GuestSettings(argv=("id", "-u"), env=("PATH=/bin",)), network=True), kernel=kernel)
    guests.directory.chmod(0o755)
    for path in (spec.directory, *spec.directory.iterdir()):
        os.chown(path, 65534, 65534)
    script = """
import asyncio, os, pickle, sys
import castoff.vmm.channel, castoff.vmm.probe, castoff.vmm.stopping, concurrent.futures.thread, encodings.idna, ipaddress
from castoff.vmm.qemu import QemuVmm
from castoff.vmm.settings import QemuSettings, VmmSettings
spec = pickle.load(sys.stdin.buffer)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
async def main():
    handle = await QemuVmm(VmmSettings(qemu=QemuSettings(accelerator="tcg"))).start(spec)
    async with await castoff.vmm.channel.GuestChannel.connect(handle, 60) as channel:
        async for event in channel.events():
            print(event)
    print("status", await handle.wait())
asyncio.run(main())
"""
    import pickle

    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], input=pickle.dumps(spec), capture_output=True, check=False, timeout=90
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"Output(stream=1, data=b'0\\n', offset=0)" in done.stdout and done.stdout.endswith(b"status 0\n")
