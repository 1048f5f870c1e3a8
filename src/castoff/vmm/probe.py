"""Whether KVM is worth using: told by timing, never by /dev/kvm's existence.

Under a hypervisor that does not nest, /dev/kvm may exist, open and create machines, and yet run a stock kernel slower than
QEMU's own emulation, or not at all. So a kernel is booted by emulation and then under KVM, which must be faster. Booted
without an initramfs it panics when it looks for its root, and the panic ends QEMU: that is the finish line. The answer is
kept for this boot of the host, this QEMU and this kernel.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import time
from pathlib import Path
from typing import Final

import msgspec

from castoff.errors import CastoffError, Unavailable
from castoff.timeline import step
from castoff.vmm.process import Owner, last_lines, owner_for, spawn
from castoff.vmm.qemu_command import probe_command
from castoff.vmm.settings import VmmSettings

__all__ = ["KvmProbe", "kvm_runs", "with_kvm_group"]

_DEVICE: Final = Path("/dev/kvm")
_FINISH: Final = b"Kernel panic"


class KvmProbe(msgspec.Struct, frozen=True):
    """What a probe found."""

    usable: bool
    reason: str
    """For people: why, with the times."""
    key: str = ""


_known: dict[str, KvmProbe] = {}
_running = asyncio.Lock()


def with_kvm_group(owner: Owner | None) -> Owner | None:
    """The owner with the group that /dev/kvm belongs to."""
    if owner is None:
        return None
    return Owner(owner.uid, owner.gid, (_DEVICE.stat().st_gid,))


def _forbidden(owner: Owner | None) -> str:
    """Why a monitor may not open /dev/kvm; empty if it may."""
    try:
        status = _DEVICE.stat()
    except OSError:
        return "this host has no /dev/kvm"
    if owner is None:
        return "" if os.access(_DEVICE, os.R_OK | os.W_OK) else "/dev/kvm is not ours to open; join the group kvm"
    if status.st_mode & 0o006 == 0o006 or (status.st_mode & 0o060 == 0o060 and status.st_gid != 0):
        return ""
    return (
        f"/dev/kvm is root's alone ({stat.filemode(status.st_mode)}) and monitors run as users of their own; "
        "`chgrp kvm /dev/kvm && chmod 660 /dev/kvm` lets them"
    )


async def kvm_runs(settings: VmmSettings, kernel: Path, state: Path | None = None) -> KvmProbe:
    """Whether KVM runs ``kernel`` faster than emulation does.

    Args:
        settings: The machines' settings.
        kernel: The kernel that machines boot.
        state: Where the answer is kept; None: in this process only.

    Raises:
        Unsupported: QEMU is not installed.
        Unavailable: QEMU cannot even emulate.
    """
    owner = owner_for("kvm-probe", settings)
    if reason := _forbidden(owner):
        return KvmProbe(False, reason)
    key = _key(settings, kernel, owner)
    async with _running:
        found = _known.get(key) or _recall(state, key)
        if found is None:
            with step("vmm.probe") as current:
                found = msgspec.structs.replace(await _measure(settings, kernel), key=key)
                current.attributes["kvm"] = found.reason
            _remember(state, found)
        _known[key] = found
    return found


def _key(settings: VmmSettings, kernel: Path, owner: Owner | None) -> str:
    binary = Path(shutil.which(settings.qemu.binary) or settings.qemu.binary)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    marks = [boot, str(os.geteuid()), str(owner is not None)]
    for path in (binary, kernel, _DEVICE):
        try:
            status = path.stat()
            marks.append(f"{path}:{status.st_size}:{status.st_mtime_ns if path != _DEVICE else status.st_mode}")
        except OSError:
            marks.append(str(path))
    return " ".join(marks)


def _recall(state: Path | None, key: str) -> KvmProbe | None:
    if state is None:
        return None
    try:
        found = msgspec.json.decode((state / "kvm.json").read_bytes(), type=KvmProbe)
    except (OSError, msgspec.DecodeError):
        return None  # an answer that cannot be read is found again
    return found if found.key == key else None


def _remember(state: Path | None, found: KvmProbe) -> None:
    """Keeps the answer. It is a cache: where it cannot be written, the next process asks again."""
    if state is None:
        return
    fresh = state / f".kvm.json.{os.getpid()}"
    try:
        state.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(msgspec.json.encode(found))
        fresh.replace(state / "kvm.json")
    except OSError:
        fresh.unlink(missing_ok=True)


async def _measure(settings: VmmSettings, kernel: Path) -> KvmProbe:
    try:
        emulated = await _boot(settings, kernel, kvm=False, limit=settings.qemu.start_seconds)
    except TimeoutError as error:
        raise Unavailable("qemu does not boot the kernel by emulation either", hint="try another with --kernel") from error
    limit = min(settings.probe_seconds, emulated)
    try:
        real = await _boot(settings, kernel, kvm=True, limit=limit)
    except TimeoutError:
        return KvmProbe(False, f"KVM did not boot the kernel within {limit:.1f} s, emulation took {emulated:.1f} s")
    except CastoffError as error:
        return KvmProbe(False, f"KVM does not run: {error.what}")
    return KvmProbe(True, f"KVM boots the kernel in {real:.2f} s, emulation in {emulated:.2f} s")


async def _boot(settings: VmmSettings, kernel: Path, *, kvm: bool, limit: float) -> float:
    """Seconds from QEMU's start to the kernel's search for its root.

    Raises:
        TimeoutError: It took longer than ``limit``.
        Unavailable: QEMU ended without the kernel having come so far.
    """
    import tempfile

    owner = owner_for("kvm-probe", settings)
    with tempfile.TemporaryDirectory(prefix="castoff-probe-") as directory:
        log = Path(directory) / "log"
        descriptor = os.open(kernel, os.O_RDONLY | os.O_CLOEXEC)
        began = time.monotonic()
        try:
            binary = shutil.which(settings.qemu.binary) or settings.qemu.binary
            command = probe_command(binary=binary, kvm=kvm, kernel=descriptor)
            process = spawn(command, log=log, owner=with_kvm_group(owner) if kvm else owner, inherit=(descriptor,))
        finally:
            os.close(descriptor)
        try:
            async with asyncio.timeout(limit):
                status = await process.wait()
        finally:
            await asyncio.shield(process.kill())
        if _FINISH not in log.read_bytes():
            raise Unavailable(f"qemu ended with status {status}: {last_lines(log, 2)}")
        return time.monotonic() - began
