"""A machine's disk rates in real QEMU machines: held to by all drives together, and by what goes on from a suspended one."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from castoff.disk.clone import Drive, Role, volume_role
from castoff.errors import Conflict
from castoff.machine.hardware import hardware, specification
from castoff.machine.model import parse_machine_id
from castoff.vmm.channel import GuestChannel
from castoff.vmm.guest import GuestMount, GuestSettings
from castoff.vmm.kernel import find_kernel
from castoff.vmm.qemu import QemuVmm
from castoff.vmm.rates import Rates
from castoff.vmm.settings import QemuSettings, VmmSettings
from castoff.vmm.vmm import GrowingDrives, SnapshotHandle
from guests import MIB, Booted, Guests, make_empty_ext4, make_rootfs, transcript, until

SETTINGS = VmmSettings(qemu=QemuSettings(accelerator="tcg"))
RATES = Rates(disk_bytes=4 * MIB, disk_operations=10_000)


@pytest.fixture(name="guests")
async def _guests(kernels: Path) -> AsyncIterator[Guests]:
    with tempfile.TemporaryDirectory(prefix="castoff-rates.", dir="/var/tmp") as name:
        directory = Path(name)
        yield Guests(QemuVmm(SETTINGS), await find_kernel(SETTINGS, kernels), make_rootfs(directory / "rootfs.ext4"), directory)


def reading(device: str, megabytes: int) -> GuestSettings:
    """Reads the device's first megabytes from the disk, whatever was read before."""
    script = f"echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/{device} of=/dev/null bs=1M count={megabytes} 2>/dev/null"
    return GuestSettings(argv=("sh", "-c", script), env=("PATH=/bin",))


async def seconds(channel: GuestChannel, *commands: GuestSettings) -> float:
    """How long commands take that run at once."""
    begin = time.monotonic()
    sessions = [await channel.execute(command) for command in commands]
    said = await asyncio.gather(*(transcript(session) for session in sessions))
    assert [one.code for one in said] == [0] * len(commands), said
    return time.monotonic() - begin


async def grown(booted: Booted, volume: Path) -> int:
    """Megabytes of /dev/vdb after its file grew to 96 MiB."""
    with volume.open("r+b") as file:
        file.truncate(96 * MIB)
    assert isinstance(booted.handle, GrowingDrives)
    await booted.handle.grow_drive(volume_role(0), 96 * MIB)
    return int((await booted.run("cat", "/sys/block/vdb/size")).lines[0]) * 512 // MIB


async def test_all_drives_together_are_held_to_their_rate(guests: Guests) -> None:
    """Two drives read at once take as long as one that reads as much; volumes still grow, and still give back what is freed."""
    took = {}
    for name, rates in (("free", Rates()), ("limited", RATES)):
        volume = make_empty_ext4(guests.directory / f"{name}.ext4")
        root = guests.directory / f"{name}-root.ext4"
        root.write_bytes(guests.rootfs.read_bytes())
        drives = (Drive(Role.ROOT, root, False, True), Drive(volume_role(0), volume, False, True))
        mounts = (GuestMount(volume_role(0), "/data"),)
        async with guests.boot(name, "sh", "-c", "echo up; sleep 1000", drives=drives, mounts=mounts, rates=rates) as booted:
            await until(booted.channel, b"up\n")
            await asyncio.sleep(1)  # the bucket is full again
            took[name] = await seconds(booted.channel, reading("vda", 10), reading("vdb", 10))
            assert await grown(booted, volume) == 96
            assert (await booted.run("sh", "-c", "head -c 3000000 /dev/urandom > /data/file; sync")).code == 0
            full = volume.stat().st_blocks
            assert (await booted.run("sh", "-c", "rm /data/file; sync; fstrim /data")).code == 0
            assert volume.stat().st_blocks <= full - 5000, "discards do not come through"
    assert took["limited"] >= 3.5, took  # 20 MiB, 4 of them at once
    assert took["limited"] >= 4 * took["free"], took


async def test_operations_are_limited_too(guests: Guests) -> None:
    """By requests that read next to nothing."""
    async with guests.boot("requests", "sh", "-c", "echo up; sleep 1000", rates=Rates(disk_operations=100)) as booted:
        await until(booted.channel, b"up\n")
        read = "dd if=/dev/vda of=/dev/null bs=4k count=1 skip=$((at * 47)) iflag=direct 2>/dev/null"
        script = f"for at in $(seq 1 300); do {read} || exit 1; done"
        assert await seconds(booted.channel, GuestSettings(argv=("sh", "-c", script), env=("PATH=/bin",))) >= 1.8


async def test_what_goes_on_from_a_suspended_machine_is_held_to_it(guests: Guests) -> None:
    """By what the machine's record keeps of its hardware."""
    machine = parse_machine_id("0123456789abcd")
    spec = guests.spec(machine, GuestSettings(argv=("sh", "-c", "echo up; sleep 1000"), env=("PATH=/bin",)), rates=RATES)
    handle = await guests.vmm.start(spec)
    try:
        async with await GuestChannel.connect(handle, 40) as channel:
            await until(channel, b"up\n")
        memory = spec.directory / "memory"
        memory.mkdir()
        assert isinstance(handle, SnapshotHandle)
        snapshot = await handle.snapshot(memory)
    finally:
        await handle.kill()
    kept = specification(hardware(spec), machine, None, spec.directory)
    assert kept.rates == RATES and isinstance(guests.vmm, QemuVmm)
    with pytest.raises(Conflict, match="suspended by QEMU"):  # one with other rates is another machine
        await guests.vmm.restore(replace(kept, rates=Rates()), memory, snapshot)
    handle = await guests.vmm.restore(kept, memory, snapshot)
    try:
        await handle.go_on()
        async with await GuestChannel.connect(handle, 40) as channel:
            assert await seconds(channel, reading("vda", 16)) >= 2.5
    finally:
        await handle.kill()
