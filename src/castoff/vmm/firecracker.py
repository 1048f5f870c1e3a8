"""Firecracker: needs a KVM that really runs. Configured over HTTP on its unix socket, jailed where castoff is root.

Its API has no user network: a machine has a card where its specification has a tap, loopback alone otherwise. Drives have a
serial that nobody can choose, so the guest init finds them by the order in which they are given.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from castoff.errors import Invalid, Unavailable, Unsupported
from castoff.store.builds import uninterrupted
from castoff.timeline import step
from castoff.vmm.cgroups import Group
from castoff.vmm.firecracker_jail import Jail
from castoff.vmm.limits import entrance, group_of, leave, state_of
from castoff.vmm.process import MonitorProcess, Owner, last_lines, owner_for, spawn
from castoff.vmm.rates import Rates, token_bucket
from castoff.vmm.settings import VmmSettings
from castoff.vmm.tap import Tap, persist_tap, remove_tap
from castoff.vmm.vmm import MachineSpec, Snapshot

if TYPE_CHECKING:
    from castoff.vmm.firecracker_api import FirecrackerApi

__all__ = ["FirecrackerHandle", "FirecrackerVmm"]

_CONSOLE: Final = "console.log"
_LOG: Final = "vmm.log"
_API: Final = "api.sock"
_VSOCK: Final = "vsock.sock"
_JAIL: Final = "jail"
_GUEST_CID: Final = 3
_CHANNEL_PORT: Final = 1024
_CONTROL_PORT: Final = 1025
_MAX_CPUS: Final = 32
_MAX_BOOT_ARGS: Final = 2048
# No "nomodule" here, which Firecracker's own default has: without modules the guest has no disks.
_KERNEL_ARGS: Final = ("console=ttyS0", "reboot=k", "panic=-1", "quiet", "cryptomgr.notests", "i8042.noaux", "i8042.nomux")


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a Firecracker must have in common with the one that goes on from its guest.

    Attributes:
        told: See castoff.vmm.firecracker_snapshot; empty: an older castoff started it.
        memory: Bytes that its guest has.
    """

    told: str
    memory: int


class FirecrackerHandle:
    """A running Firecracker. Implements castoff.vmm.vmm.SnapshotHandle, too.

    Args:
        process: It.
        directory: The machine's own.
        jail: Where it sees files.
        group: Its control group.
        tap: Its card's device on the host; empty: none.
    """

    channel_port: int | None = _CHANNEL_PORT
    control_port: int | None = _CONTROL_PORT

    def __init__(
        self, process: MonitorProcess, directory: Path, jail: Jail, group: Group | None, tap: str, shape: _Shape
    ) -> None:
        self._process = process
        self._tap = tap
        self._jail = jail
        self._shape = shape
        self.group = group
        self._directory = directory
        self.pid = process.pid
        self.channel = self.control = jail.host(_VSOCK)
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
            "owner": None if self._jail.owner is None else [self._jail.owner.uid, self._jail.owner.gid],
            "shape": self._shape.told,
            "memory": self._shape.memory,
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

    async def snapshot(self, directory: Path) -> Snapshot:
        """Pauses the guest and writes it down; see castoff.vmm.vmm."""
        from castoff.vmm.firecracker_snapshot import write_guest

        if not self._shape.told:
            raise Unsupported("this machine was started by an older castoff, which did not foresee it", hint="restart it once")
        with step("vmm.firecracker_snapshot", machine=self._directory.name, total=self._shape.memory) as current:
            found = await write_guest(self._api(), self._jail, directory, shape=self._shape.told, memory=self._shape.memory)
            current.advance(found.size)
            return found

    async def go_on(self) -> None:
        """Lets a guest that was paused run; see castoff.vmm.vmm."""
        from castoff.vmm.firecracker_snapshot import go_on

        await go_on(self._api(), self._shape.memory)

    def _api(self) -> FirecrackerApi:
        from castoff.vmm.firecracker_api import FirecrackerApi  # aiohttp, 100 ms to import

        return FirecrackerApi(self._jail.host(_API))


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
            prepared = self._prepare(spec)

            async def told(api: FirecrackerApi) -> None:
                await api.put_all(prepared.requests)

            return await self._started(spec, prepared, told, self._settings.firecracker.start_seconds)

    async def restore(self, spec: MachineSpec, directory: Path, snapshot: Snapshot) -> FirecrackerHandle:
        """Starts one whose guest was written down; see :class:`castoff.vmm.vmm.SnapshotVmm`.

        Drives, card and vsock are where they were, so nothing of what Firecracker wrote has to be put right.
        """
        from castoff.vmm.firecracker_snapshot import load_seconds, read_guest

        with step("vmm.firecracker", machine=spec.id, restored=True):
            prepared = self._prepare(spec)
            logger = dict(prepared.requests)["/logger"]

            async def read(api: FirecrackerApi) -> None:
                async with api.connected(appears=True) as session:
                    shape = prepared.shape.told
                    await read_guest(session, prepared.jail, directory, snapshot, shape=shape, logger=logger)

            seconds = self._settings.firecracker.start_seconds + load_seconds(snapshot.size)
            return await self._started(spec, prepared, read, seconds)

    def _prepare(self, spec: MachineSpec) -> _Prepared:
        """All that must be there before Firecracker is."""
        from castoff.vmm.firecracker_snapshot import shape

        _check(spec)
        jail, command = self._jail(spec)
        try:
            jail.clear(spec.directory / _JAIL)
            requests = configuration(spec, jail, extra=self._settings.kernel_args)
        except OSError as error:
            raise Unavailable(
                f"machine {spec.id} cannot be prepared: {error.filename or ''} {error.strerror}",
                hint="kernel, drives and the machine's directory must be readable",
            ) from error
        return _Prepared(jail, command, requests, _Shape(shape(requests), spec.memory))

    async def _started(
        self, spec: MachineSpec, prepared: _Prepared, tell: Callable[[FirecrackerApi], Awaitable[None]], seconds: float
    ) -> FirecrackerHandle:
        """A Firecracker that was told what it needs."""
        log, directory = spec.directory / _CONSOLE, spec.directory
        tap = await self._tap(spec)
        try:
            async with entrance(spec, self._settings.limits, emulated=False) as door:
                process = spawn(prepared.command, log=log, owner=None, directory=directory, inherit=spec.inherit, gate=door.gate)
                try:
                    await door.admit(process)
                    await self._configure(spec, process, prepared.jail.host(_API), tell, seconds)
                except BaseException:
                    await asyncio.shield(process.kill())
                    raise
        except BaseException:
            if tap:
                await uninterrupted(remove_tap, tap)
            raise
        return FirecrackerHandle(process, spec.directory, prepared.jail, door.group, tap, prepared.shape)

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
        owner = state.get("owner")
        jail = Jail(Path(state["vsock"]).parent, None if owner is None else Owner(*owner))
        shape = _Shape(str(state.get("shape", "")), int(state.get("memory", 0)))
        return FirecrackerHandle(process, Path(state["directory"]), jail, group_of(state), str(state.get("tap", "")), shape)

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
            return jail, [binary, "--id", name, "--api-sock", jail.socket(_API)]
        base = spec.directory / _JAIL
        # The jailer itself makes this path of the base, the program's name and the id (its docs/jailer.md).
        jail = Jail(base / Path(binary).resolve().name / name / "root", owner)
        command = [_find(settings.jailer), "--id", name, "--exec-file", str(Path(binary).resolve())]
        command += ["--uid", str(owner.uid), "--gid", str(owner.gid), "--chroot-base-dir", str(base)]
        return jail, [*command, "--", "--api-sock", jail.socket(_API)]

    async def _configure(
        self,
        spec: MachineSpec,
        process: MonitorProcess,
        socket: Path,
        tell: Callable[[FirecrackerApi], Awaitable[None]],
        seconds: float,
    ) -> None:
        from castoff.vmm.firecracker_api import FirecrackerApi  # aiohttp, 100 ms to import

        sent = asyncio.ensure_future(tell(FirecrackerApi(socket)))
        ended = asyncio.create_task(process.wait())
        try:
            async with asyncio.timeout(seconds):
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


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A machine that can be started: where its files are, the command, what Firecracker is told, what it will be."""

    jail: Jail
    command: list[str]
    requests: list[tuple[str, dict[str, Any]]]
    shape: _Shape


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
    requests.append(("/vsock", {"guest_cid": _GUEST_CID, "uds_path": jail.socket(_VSOCK)}))
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
