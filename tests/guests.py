"""Boots guests for the tests of castoff.vmm: a small root filesystem, and what came over its channel."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from castoff.disk.clone import Drive, Role
from castoff.vmm.channel import GuestChannel
from castoff.vmm.guest import GuestSettings
from castoff.vmm.guest_session import Exit, GuestSession, Output, Ready
from castoff.vmm.initramfs import assemble
from castoff.vmm.kernel import Kernel
from castoff.vmm.vmm import MachineSpec, Vmm, VmmHandle
from machines import busybox_layer

MIB = 1 << 20


def make_rootfs(path: Path, *, size: int = 64 * MIB) -> Path:
    """An ext4 image with a busybox, two users and some odd files in it."""
    tree = path.with_suffix(".tree")
    tree.mkdir()
    subprocess.run(["tar", "-x", "-p", "-C", str(tree)], input=busybox_layer(), check=True, capture_output=True)
    for name in ("proc", "sys", "dev", "etc", "home/app", "srv", "tmp"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:An App:/home/app:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\nbroken line\naudio:x:29:other,app\napp:x:1001:\nwheel:x:10:root\n")
    (tree / "srv/not-executable").write_text("#!/bin/sh\necho no\n")
    (tree / "srv/no-interpreter").write_text("#!/no/such/interpreter\n")
    (tree / "srv/no-interpreter").chmod(0o755)
    (tree / "srv/other-format").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(64))
    (tree / "srv/other-format").chmod(0o755)
    (tree / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(path)], check=True, capture_output=True)
    shutil.rmtree(tree)
    return path


def make_empty_ext4(path: Path, *, size: int = 64 * MIB) -> Path:
    """An empty ext4 image: an overlay's upper half."""
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(path)], check=True, capture_output=True)
    return path


def assert_clean(image: Path) -> None:
    """e2fsck has nothing to say but its passes. Not of times either: a guest's clock and the host's are two."""
    later = os.environ | {"E2FSCK_TIME": str(int(time.time()) + 3600)}
    done = subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, text=True, check=False, env=later)
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith("Pass ")]
    assert done.returncode == 0, done.stdout
    assert len(lines) == 1, done.stdout


@dataclass(slots=True)
class Transcript:
    """All that a command said."""

    stdout: bytes = b""
    stderr: bytes = b""
    ready: Ready | None = None
    exit: Exit | None = None

    @property
    def code(self) -> int:
        assert self.exit is not None, "it has not ended"
        return self.exit.code

    @property
    def lines(self) -> list[str]:
        return self.stdout.decode().splitlines()


async def transcript(source: GuestChannel | GuestSession, timeout: float = 60) -> Transcript:
    """Listens until the command has ended."""
    said, streams, expected = Transcript(), {1: io.BytesIO(), 2: io.BytesIO()}, dict[int, int]()
    async with asyncio.timeout(timeout):
        async for event in source.events():
            match event:
                case Output():
                    assert event.offset == expected.setdefault(event.stream, event.offset), "bytes are missing or come twice"
                    expected[event.stream] += len(event.data)
                    streams[event.stream].write(event.data)
                case Ready():
                    said.ready = event
                case Exit():
                    said.exit = event
    said.stdout, said.stderr = streams[1].getvalue(), streams[2].getvalue()
    return said


async def until(source: GuestChannel | GuestSession, text: bytes, timeout: float = 30) -> bytes:
    """Listens until the command has written ``text`` to its stdout; what it wrote so far."""
    said = b""
    async with asyncio.timeout(timeout):
        events = source.events()
        async for event in events:
            assert not isinstance(event, Exit), f"it ended: {event}"
            if isinstance(event, Output):
                said += event.data
            if text in said:
                break
    return said


@dataclass(frozen=True, slots=True)
class Booted:
    """A running guest."""

    handle: VmmHandle
    channel: GuestChannel
    drives: tuple[Drive, ...]

    async def ended(self, timeout: float = 15) -> int:
        """The monitor's exit status, once the guest has powered off."""
        async with asyncio.timeout(timeout):
            return await self.handle.wait()

    async def run(self, *argv: str, **settings: Any) -> Transcript:
        """Executes a command beside the machine's own."""
        session = await self.channel.execute(GuestSettings(argv=argv, **({"env": ("PATH=/bin",)} | settings)))
        return await transcript(session)


@dataclass(frozen=True, slots=True)
class Guests:
    """Where guests are booted.

    Attributes:
        vmm: The driver.
        kernel: The kernel.
        rootfs: Root filesystem that is copied for each.
        directory: An empty directory for the machines.
    """

    vmm: Vmm
    kernel: Kernel
    rootfs: Path
    directory: Path

    def spec(self, name: str, guest: GuestSettings, drives: tuple[Drive, ...] | None = None, **options: Any) -> MachineSpec:
        """The specification of a machine, its files made."""
        directory = self.directory / name
        directory.mkdir()
        if drives is None:
            shutil.copyfile(self.rootfs, directory / "root.ext4")
            drives = (Drive(Role.ROOT, directory / "root.ext4", False, True),)
        initramfs = assemble(self.kernel, guest, directory / "initramfs")
        settings: dict[str, Any] = {"cpus": 1, "memory": 192 * MIB, "network": False} | options
        return MachineSpec(id=name, directory=directory, kernel=self.kernel.path, initramfs=initramfs, drives=drives, **settings)

    @asynccontextmanager
    async def boot(
        self, name: str, *argv: str, drives: tuple[Drive, ...] | None = None, **settings: Any
    ) -> AsyncIterator[Booted]:
        """A guest that runs ``argv``, ended with the block. Settings are GuestSettings' and MachineSpec's."""
        machine = {key: settings.pop(key) for key in ("cpus", "memory", "network", "ports", "rates") if key in settings}
        guest = GuestSettings(argv=argv, **({"env": ("PATH=/bin",)} | settings))
        spec = self.spec(name, guest, drives, **machine)
        handle = await self.vmm.start(spec)
        try:
            async with await GuestChannel.connect(handle, 40) as channel:
                yield Booted(handle, channel, spec.drives)
        finally:
            await handle.kill()
            if os.environ.get("CASTOFF_SHOW_CONSOLE"):
                print(handle.console.read_text(errors="replace"))
