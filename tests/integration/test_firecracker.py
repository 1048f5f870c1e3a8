"""Firecracker's driver against a server made from Firecracker's own API description, and against the real one where it is."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

import firecracker_server
from castoff.conformance.vmm import check_vmm
from castoff.disk.clone import Drive, Role
from castoff.errors import Invalid, Unavailable, Unsupported
from castoff.vmm.channel import GuestChannel
from castoff.vmm.firecracker import FirecrackerVmm
from castoff.vmm.guest import GuestSettings
from castoff.vmm.guest_session import Output, Ready
from castoff.vmm.kernel import find_kernel
from castoff.vmm.probe import kvm_runs
from castoff.vmm.rates import Rates
from castoff.vmm.settings import FirecrackerSettings, VmmSettings
from castoff.vmm.tap import Tap
from castoff.vmm.vmm import MachineSpec, PortForward
from guests import Guests, make_rootfs


@pytest.fixture(name="programs", scope="module")
def _programs(daemon_directory: Path) -> Path:
    """A directory with ``firecracker`` and ``jailer`` in it: the server, called by either name."""
    assert firecracker_server.SPECIFICATION.exists(), (
        f"Firecracker's API description is not at {firecracker_server.SPECIFICATION}"
    )
    directory = daemon_directory / "firecracker-programs"
    directory.mkdir()
    for name in ("firecracker", "jailer", "firecracker-fails"):
        (directory / name).write_text(f'#!/bin/sh\nexec {sys.executable} {firecracker_server.__file__} {name} "$@"\n')
        (directory / name).chmod(0o755)
    return directory


@pytest.fixture(name="spec")
def _spec() -> Iterator[MachineSpec]:
    """An overlay's machine, on one filesystem with its store, in directories of a depth that real ones have."""
    with tempfile.TemporaryDirectory(prefix="castoff-firecracker.", dir="/var/tmp") as top:
        yield _overlay_machine(Path(top))


def _overlay_machine(top: Path) -> MachineSpec:
    store, directory = top / ("store" * 10), top / ("machines" * 10) / "m-1"
    store.mkdir()
    directory.mkdir(parents=True)
    for path in (store / "vmlinux", store / "base", directory / "upper", directory / "initramfs"):
        path.write_bytes(os.urandom(8192))
        path.chmod(0o600)
    drives = (Drive(Role.BASE, store / "base", True, False), Drive(Role.UPPER, directory / "upper", False, True))
    return MachineSpec(
        id="m-1",
        directory=directory,
        cpus=2,
        memory=256 << 20,
        kernel=store / "vmlinux",
        initramfs=directory / "initramfs",
        drives=drives,
    )


def driver(programs: Path, *, own_user: bool, name: str = "firecracker") -> FirecrackerVmm:
    binaries = FirecrackerSettings(binary=str(programs / name), jailer=str(programs / "jailer"), start_seconds=20)
    return FirecrackerVmm(VmmSettings(own_user=own_user, firecracker=binaries, kernel_args=("from=settings",)))


TAP = Tap(
    device=f"tap{os.getpid()}",
    bridge="",
    mac="06:00:00:00:00:01",
    address="10.9.8.7/24",
    gateway="10.9.8.1",
    nameserver="9.9.9.9",
)


@pytest.fixture(name="bridge")
def _bridge() -> Iterator[str]:
    name = f"br{os.getpid()}"
    subprocess.run(["ip", "link", "add", "name", name, "type", "bridge"], check=True)
    subprocess.run(["ip", "link", "set", "dev", name, "up"], check=True)
    yield name
    subprocess.run(["ip", "link", "delete", "dev", name], check=True)


def requests(record: Path) -> list[tuple[str, dict[str, Any]]]:
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["problem"] for line in lines] == [""] * len(lines)
    return [(line["path"], json.loads(line["body"])) for line in lines]


@pytest.mark.parametrize("jailed", [False, True])
async def test_every_request_is_what_the_description_allows_and_in_order(
    programs: Path, spec: MachineSpec, bridge: str, jailed: bool
) -> None:
    """Unjailed, and as root in a jail with every file linked into it, readable by the jail's user and by name inside."""
    assert os.geteuid() == 0, "the jail needs root"
    spec = replace(spec, tap=msgspec.structs.replace(TAP, bridge=bridge))
    handle = await driver(programs, own_user=jailed).start(spec)
    assert Path("/sys/class/net", bridge, "brif", TAP.device).exists()
    owner = int(Path("/sys/class/net", TAP.device, "owner").read_text())
    assert owner == Path("/proc", str(handle.pid)).stat().st_uid
    try:
        root = spec.directory / "jail/firecracker/castoff-m-1/root" if jailed else spec.directory
        told = requests(root / "requests.jsonl")
        assert [path for path, _ in told] == [
            "/logger",
            "/machine-config",
            "/boot-source",
            "/drives/base",
            "/drives/upper",
            "/network-interfaces/eth0",
            "/vsock",
            "/actions",
        ]
        bodies = dict(told)
        assert bodies["/machine-config"] == {"vcpu_count": 2, "mem_size_mib": 256}
        arguments = bodies["/boot-source"]["boot_args"].split()
        assert {"castoff.channel=vsock", "castoff.drives=base,upper", "from=settings", "reboot=k"} <= set(arguments)
        assert "castoff.net=10.9.8.7/24,10.9.8.1,9.9.9.9" in arguments
        assert bodies["/network-interfaces/eth0"]["host_dev_name"] == TAP.device
        assert bodies["/drives/base"]["path_on_host"] == ("/base.drive" if jailed else str(spec.drives[0].path))
        assert [bodies[f"/drives/{name}"]["is_read_only"] for name in ("base", "upper")] == [True, False]
        assert not any(body.get("is_root_device") for body in bodies.values())
        assert not any("limiter" in name for body in bodies.values() for name in body)
        if jailed:
            owner = Path(f"/proc/{handle.pid}").stat().st_uid
            assert 2_000_000_000 <= owner < 2_000_065_536
            assert (root / "upper.drive").samefile(spec.drives[1].path)
            assert spec.drives[1].path.stat().st_uid == owner and spec.drives[0].path.stat().st_uid == 0
        assert handle.console.read_text() == "kernel says hello\n"
        async with await GuestChannel.connect(handle, 10) as channel:
            events = channel.events()
            assert isinstance(await anext(events), Ready)
            assert await anext(events) == Output(1, b"/drives/base /drives/upper", 0)
            again = await driver(programs, own_user=jailed).reattach(json.loads(json.dumps(handle.state())))
            assert again is not None and again.pid == handle.pid
            await again.stop(5)
        assert await asyncio.wait_for(handle.wait(), 5) == 0
    finally:
        await handle.kill()
    assert not Path("/sys/class/net", TAP.device).exists()


async def test_a_machine_without_a_tap_has_loopback_alone(programs: Path, spec: MachineSpec) -> None:
    """No network card, nothing on the kernel command line."""
    handle = await driver(programs, own_user=False).start(spec)
    try:
        told = dict(requests(spec.directory / "requests.jsonl"))
        assert not any(path.startswith("/network") for path in told)
        assert "castoff.net" not in told["/boot-source"]["boot_args"]
    finally:
        await handle.kill()


async def test_rates_are_given_to_every_drive_and_to_the_card(programs: Path, spec: MachineSpec, bridge: str) -> None:
    """In the description's form; none where nothing is limited."""
    rates = Rates(disk_bytes=10 << 20, disk_operations=500, network_bytes=1 << 20, burst_seconds=2)
    handle = await driver(programs, own_user=False).start(
        replace(spec, rates=rates, tap=msgspec.structs.replace(TAP, bridge=bridge))
    )
    try:
        told = dict(requests(spec.directory / "requests.jsonl"))
        disk = {"bandwidth": {"size": 20 << 20, "refill_time": 2000}, "ops": {"size": 1000, "refill_time": 2000}}
        assert told["/drives/base"]["rate_limiter"] == told["/drives/upper"]["rate_limiter"] == disk
        card, network = told["/network-interfaces/eth0"], {"bandwidth": {"size": 2 << 20, "refill_time": 2000}}
        assert card["rx_rate_limiter"] == card["tx_rate_limiter"] == network
    finally:
        await handle.kill()


async def test_refusals_and_failures_are_told(programs: Path, spec: MachineSpec) -> None:
    """Firecracker's own words, and nothing left running."""
    vmm = driver(programs, own_user=False)
    gone = replace(spec, kernel=spec.directory / "no-kernel")
    with pytest.raises(Unavailable, match=r"firecracker refused PUT /boot-source: .*no-kernel: No such file"):
        await vmm.start(gone)
    with pytest.raises(Unavailable, match=r"cannot be prepared: .*no-kernel No such file"):
        await driver(programs, own_user=True).start(gone)
    with pytest.raises(Unavailable, match=r"ended at its start \(status 1\): Error: KVM is not there"):
        await driver(programs, own_user=False, name="firecracker-fails").start(spec)
    with pytest.raises(Unavailable, match="does not answer"):
        await _silent(spec)
    with pytest.raises(Unsupported, match="no user network"):
        await vmm.start(replace(spec, ports=(PortForward(1, 1),)))
    with pytest.raises(Unsupported, match="33 CPUs"):
        await vmm.start(replace(spec, cpus=33))
    with pytest.raises(Invalid, match="cannot name"):
        await vmm.start(replace(spec, id="a/b"))
    with pytest.raises(Invalid, match="command line has"):
        await vmm.start(replace(spec, kernel_args=("x" * 2048,)))
    with pytest.raises(Unsupported, match="is not installed"):
        await driver(programs, own_user=False, name="nothing").start(spec)


async def _silent(spec: MachineSpec) -> None:
    """A program that starts and never answers."""
    program = spec.directory / "silent"
    program.write_text("#!/bin/sh\nexec sleep 100\n")
    program.chmod(0o755)
    settings = VmmSettings(own_user=False, firecracker=FirecrackerSettings(binary=str(program), start_seconds=0.3))
    await FirecrackerVmm(settings).start(spec)


def test_the_server_refuses_what_the_description_does_not_allow() -> None:
    """Or the tests above would prove nothing."""
    api = firecracker_server.Api(firecracker_server.SPECIFICATION)
    good = {"drive_id": "root", "is_root_device": False}
    assert api.problem("PUT", "/drives/root", json.dumps(good).encode()) == ""
    for method, path, body in (
        ("PUT", "/drives/root", {**good, "path": "x"}),
        ("PUT", "/drives/other", good),
        ("PUT", "/drives/root", {"drive_id": "root"}),
        ("PUT", "/drives/root", {**good, "cache_type": "None"}),
        ("PUT", "/machine-config", {"vcpu_count": 33, "mem_size_mib": 1}),
        ("PUT", "/machine-config", {"vcpu_count": "1", "mem_size_mib": 1}),
        ("PUT", "/vsock", {"guest_cid": 2, "uds_path": "x"}),
        ("PUT", "/actions", {"action_type": "Explode"}),
        ("POST", "/actions", {"action_type": "InstanceStart"}),
        ("PUT", "/nothing", {}),
    ):
        assert api.problem(method, path, json.dumps(body).encode()), (method, path, body)


@pytest.mark.firecracker
async def test_the_real_one_keeps_the_drivers_promises(kernels: Path, daemon_directory: Path) -> None:
    """Where its binary and a KVM that really runs are."""
    settings = VmmSettings()
    kernel = await find_kernel(settings, kernels)
    if shutil.which("firecracker") is None:
        pytest.skip("firecracker is not installed")
    probe = await kvm_runs(settings, kernel.path)
    if not probe.usable:
        pytest.skip(probe.reason)
    with tempfile.TemporaryDirectory(prefix="castoff-firecracker.", dir="/var/tmp") as name:
        directory = Path(name)
        guests = Guests(FirecrackerVmm(settings), kernel, make_rootfs(directory / "rootfs.ext4"), directory)
        await check_vmm(guests.vmm, lambda name, guest: guests.spec(name, _with_path(guest)))


def _with_path(guest: GuestSettings) -> GuestSettings:
    return replace(guest, env=("PATH=/bin",))
