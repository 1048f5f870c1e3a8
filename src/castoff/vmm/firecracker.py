"""Firecracker: needs a KVM that really runs. Configured over HTTP on its unix socket, jailed where castoff is root.

Its API has no user network: a machine has a card where its specification has a tap, loopback alone otherwise. Drives have a
serial that nobody can choose, so the guest init finds them by the order in which they are given.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from castoff.errors import Invalid, Unavailable, Unsupported
from castoff.store.builds import uninterrupted
from castoff.timeline import step
from castoff.vmm.cgroups import Group
from castoff.vmm.firecracker_jail import Jail
from castoff.vmm.limits import entrance, group_of, leave, state_of
from castoff.vmm.process import MonitorProcess, last_lines, owner_for, spawn
from castoff.vmm.rates import Rates, token_bucket
from castoff.vmm.settings import VmmSettings
from castoff.vmm.tap import Tap, persist_tap, remove_tap
from castoff.vmm.vmm import MachineSpec

__all__ = ["FirecrackerHandle", "FirecrackerVmm"]

_CONSOLE: Final = "console.log"
_LOG: Final = "vmm.log"
_GUEST_CID: Final = 3
_CHANNEL_PORT: Final = 1024
_CONTROL_PORT: Final = 1025
_MAX_CPUS: Final = 32
_MAX_BOOT_ARGS: Final = 2048
# No "nomodule" here, which Firecracker's own default has: without modules the guest has no disks.
_KERNEL_ARGS: Final = ("console=ttyS0", "reboot=k", "panic=-1", "quiet", "cryptomgr.notests", "i8042.noaux", "i8042.nomux")


class FirecrackerHandle:
    """A running Firecracker."""

    channel_port: int | None = _CHANNEL_PORT
    control_port: int | None = _CONTROL_PORT

    def __init__(self, process: MonitorProcess, directory: Path, vsock: Path, group: Group | None, tap: str = "") -> None:
        self._process = process
        self._tap = tap
        self.group = group
        self._directory = directory
        self.pid = process.pid
        self.channel = vsock
        self.control = vsock
        self.console = directory / _CONSOLE

    def state(self) -> dict[str, Any]:
        """What :meth:`FirecrackerVmm.reattach` needs."""
        return {
            "vmm": "firecracker",
            "pid": self.pid,
            "started": self._process.started,
            "directory": str(self._directory),
            "vsock": str(self.channel),
            "tap": self._tap,
        } | state_of(self.group)

    async def wait(self) -> int:
        """Waits for its end; 0 when the guest powered off, ``STATUS_UNKNOWN`` when an earlier process started it."""
        return await self._process.wait()

    async def stop(self, timeout: float) -> None:
        """Asks the guest to end its command and to power off; kills Firecracker when ``timeout`` seconds have passed."""
        from castoff.vmm.stopping import ask_to_stop

        await ask_to_stop(self, timeout)

    async def kill(self) -> None:
        """Ends Firecracker now, and gives its control group and its tap back."""
        await self._process.kill()
        if self._tap:
            await asyncio.to_thread(remove_tap, self._tap)
        await leave(self.group)


class FirecrackerVmm:
    """Starts machines with Firecracker.

    Args:
        settings: The machines' settings.
        state: Unused; drivers are made alike.
    """

    name = "firecracker"

    def __init__(self, settings: VmmSettings, *, state: Path | None = None) -> None:
        self._settings = settings

    async def start(self, spec: MachineSpec) -> FirecrackerHandle:
        """Starts a machine; see :class:`castoff.vmm.vmm.Vmm`."""
        with step("vmm.firecracker", machine=spec.id):
            _check(spec)
            jail, command = self._jail(spec)
            try:
                requests = configuration(spec, jail, extra=self._settings.kernel_args)
            except OSError as error:
                raise Unavailable(
                    f"machine {spec.id} cannot be prepared: {error.filename or ''} {error.strerror}",
                    hint="kernel, drives and the machine's directory must be readable",
                ) from error
            log, directory = spec.directory / _CONSOLE, spec.directory
            tap = await self._tap(spec)
            try:
                async with entrance(spec, self._settings.limits, emulated=False) as door:
                    process = spawn(command, log=log, owner=None, directory=directory, inherit=spec.inherit, gate=door.gate)
                    try:
                        await door.admit(process)
                        await self._configure(spec, process, jail.host("api.sock"), requests)
                    except BaseException:
                        await asyncio.shield(process.kill())
                        raise
            except BaseException:
                if tap:
                    await uninterrupted(remove_tap, tap)
                raise
            return FirecrackerHandle(process, spec.directory, jail.host("vsock.sock"), door.group, tap)

    async def _tap(self, spec: MachineSpec) -> str:
        """The name of its tap, which is there then; empty: it has none."""
        if spec.tap is None or not spec.network:
            return ""
        owner = owner_for(spec.id, self._settings, spec.user)
        try:
            await uninterrupted(persist_tap, spec.tap, os.geteuid() if owner is None else owner.uid)
        except BaseException:
            await uninterrupted(remove_tap, spec.tap.device)
            raise
        return spec.tap.device

    async def reattach(self, state: Mapping[str, Any]) -> FirecrackerHandle | None:
        """The handle of a Firecracker that an earlier process started; None when it has ended."""
        process = MonitorProcess.find(int(state["pid"]), int(state["started"]))
        if process is None:
            return None
        vsock, tap = Path(state["vsock"]), str(state.get("tap", ""))
        return FirecrackerHandle(process, Path(state["directory"]), vsock, group_of(state), tap)

    def _jail(self, spec: MachineSpec) -> tuple[Jail, list[str]]:
        """Where the machine's files are, and the command that starts it there."""
        settings = self._settings.firecracker
        binary = _find(settings.binary)
        name = f"castoff-{spec.id}"
        if len(name) > 64 or not all(letter.isalnum() or letter == "-" for letter in name):
            raise Invalid(f"{spec.id!r} cannot name a Firecracker", hint="letters, digits and hyphens, at most 56 of them")
        owner = owner_for(spec.id, self._settings, spec.user)
        if owner is None:
            jail = Jail(spec.directory, None)
            return jail, [binary, "--id", name, "--api-sock", jail.socket("api.sock")]
        base = spec.directory / "jail"
        # The jailer itself makes this path of the base, the program's name and the id (its docs/jailer.md).
        jail = Jail(base / Path(binary).resolve().name / name / "root", owner)
        command = [_find(settings.jailer), "--id", name, "--exec-file", str(Path(binary).resolve())]
        command += ["--uid", str(owner.uid), "--gid", str(owner.gid), "--chroot-base-dir", str(base)]
        return jail, [*command, "--", "--api-sock", jail.socket("api.sock")]

    async def _configure(
        self, spec: MachineSpec, process: MonitorProcess, socket: Path, requests: list[tuple[str, dict[str, Any]]]
    ) -> None:
        from castoff.vmm.firecracker_api import FirecrackerApi  # aiohttp, 100 ms to import

        sent = asyncio.create_task(FirecrackerApi(socket).put_all(requests))
        ended = asyncio.create_task(process.wait())
        try:
            async with asyncio.timeout(self._settings.firecracker.start_seconds):
                await asyncio.wait((sent, ended), return_when=asyncio.FIRST_COMPLETED)
                if sent.done():
                    await sent
                    return
        except TimeoutError as error:
            raise Unavailable(
                f"firecracker does not answer: {_said(spec)}", hint="`castoff doctor` tells whether KVM is usable here"
            ) from error
        finally:
            for task in (sent, ended):
                task.cancel()
            await asyncio.gather(sent, ended, return_exceptions=True)
        raise Unavailable(
            f"firecracker ended at its start (status {await process.wait()}): {_said(spec)}",
            hint="`castoff doctor` tells whether KVM is usable here",
        )


def configuration(spec: MachineSpec, jail: Jail, *, extra: tuple[str, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """What Firecracker is told, in the order in which it is told: (path, JSON).

    Raises:
        Invalid: The kernel command line is too long.
        OSError: A file cannot be put where Firecracker sees it.
    """
    tap = spec.tap if spec.network else None
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/logger", {"log_path": jail.new_file(_LOG), "level": "Warning"}),
        ("/machine-config", {"vcpu_count": spec.cpus, "mem_size_mib": spec.memory >> 20}),
        (
            "/boot-source",
            {
                "kernel_image_path": jail.shared("vmlinux", spec.kernel),
                "initrd_path": jail.own("initramfs", spec.initramfs),
                "boot_args": _boot_args(spec, tap, extra),
            },
        ),
    ]
    for drive in spec.drives:
        place = jail.shared if drive.read_only else jail.own
        body = {
            "drive_id": drive.role.value,
            "path_on_host": place(f"{drive.role.value}.drive", drive.path),
            "is_root_device": False,  # the initramfs mounts the root; Firecracker would add a root= of its own
            "is_read_only": drive.read_only,
            "cache_type": "Unsafe" if drive.read_only else "Writeback",
        } | _disk_limiter(spec.rates)
        requests.append((f"/drives/{drive.role.value}", body))
    if tap is not None:
        card = {"iface_id": "eth0", "host_dev_name": tap.device, "guest_mac": tap.mac}
        requests.append(("/network-interfaces/eth0", card | _network_limiters(spec.rates)))
    requests.append(("/vsock", {"guest_cid": _GUEST_CID, "uds_path": jail.socket("vsock.sock")}))
    requests.append(("/actions", {"action_type": "InstanceStart"}))
    return requests


def _disk_limiter(rates: Rates) -> dict[str, Any]:
    """The limiter of each drive: Firecracker has none for several."""
    buckets = {"bandwidth": rates.disk_bytes, "ops": rates.disk_operations}
    limiter = {name: token_bucket(rate, rates.burst_seconds) for name, rate in buckets.items() if rate}
    return {"rate_limiter": limiter} if limiter else {}


def _network_limiters(rates: Rates) -> dict[str, Any]:
    if not rates.network_bytes:
        return {}
    limiter = {"bandwidth": token_bucket(rates.network_bytes, rates.burst_seconds)}
    return {"rx_rate_limiter": limiter, "tx_rate_limiter": limiter}


def _boot_args(spec: MachineSpec, tap: Tap | None, extra: tuple[str, ...]) -> str:
    words = [*_KERNEL_ARGS, "castoff.channel=vsock", f"castoff.drives={','.join(drive.role.value for drive in spec.drives)}"]
    if tap is not None:
        words.append(tap.argument)
    text = " ".join([*words, *extra, *spec.kernel_args])
    if len(text) > _MAX_BOOT_ARGS:
        raise Invalid(f"the kernel command line has {len(text)} bytes", hint=f"Firecracker takes at most {_MAX_BOOT_ARGS}")
    return text


def _check(spec: MachineSpec) -> None:
    if spec.ports:
        raise Unsupported(
            "Firecracker has no user network to publish ports on", hint="use --vmm qemu, or give the machine a tap device"
        )
    if not 1 <= spec.cpus <= _MAX_CPUS:
        raise Unsupported(f"Firecracker cannot give {spec.cpus} CPUs", hint=f"ask for 1 to {_MAX_CPUS}")


def _find(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise Unsupported(
            f"{program} is not installed",
            hint="get it from github.com/firecracker-microvm/firecracker/releases, or use --vmm qemu",
        )
    return found


def _said(spec: MachineSpec) -> str:
    return last_lines(spec.directory / _LOG) or last_lines(spec.directory / _CONSOLE) or "it said nothing"
