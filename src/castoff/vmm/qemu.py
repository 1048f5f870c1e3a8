"""QEMU's microvm: the driver that works on any Linux box, with KVM where it is real and by emulation where not.

QEMU opens nothing by itself: drives, sockets and logs reach it as descriptors, so it can run as a user without any
rights, in its own seccomp sandbox, whoever owns the files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from castoff.disk.clone import MAX_VOLUMES, volume_role
from castoff.errors import CastoffError, Unauthorized, Unavailable, Unsupported
from castoff.store.builds import uninterrupted
from castoff.timeline import Step, step
from castoff.vmm import qmp
from castoff.vmm.cgroups import Group
from castoff.vmm.limits import Entrance, entrance, group_of, leave, state_of
from castoff.vmm.process import MonitorProcess, Owner, last_lines, owner_for, spawn
from castoff.vmm.qemu_command import WAITING, OpenDrive, qemu_command, shape
from castoff.vmm.settings import VmmSettings
from castoff.vmm.sockets import listen_unix
from castoff.vmm.tap import open_tap
from castoff.vmm.vmm import MachineSpec, PortForward, Snapshot

__all__ = ["QemuHandle", "QemuVmm"]

_QMP: Final = "qmp.sock"
_CONSOLE: Final = "console.log"
_APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND
_LOG: Final = "vmm.log"
_LAST_WORDS_SECONDS: Final = 0.5
_QMP_SECONDS: Final = 10.0
_CONSOLE_LIMIT: Final = 64 << 20
_GROWTH: Final = 4
"""How often larger a volume may become while its machine runs, where we may not change a running process's limits."""
_VOLUMES: Final = frozenset(volume_role(number) for number in range(MAX_VOLUMES))


class QemuHandle:
    """A running QEMU. Implements castoff.vmm.vmm.SnapshotHandle, too.

    Args:
        process: It.
        directory: The machine's own.
        shape: What its command line has in common with that of the QEMU that goes on from its guest.
    """

    channel_port: int | None = None
    control_port: int | None = None

    def __init__(self, process: MonitorProcess, directory: Path, group: Group | None, shape: str) -> None:
        self._process = process
        self._directory = directory
        self.group = group
        self.shape = shape
        self.pid = process.pid
        self.channel = directory / "channel.sock"
        self.control = directory / "control.sock"
        self.console = directory / _CONSOLE

    def state(self) -> dict[str, Any]:
        """What :meth:`QemuVmm.reattach` needs."""
        found = {"vmm": "qemu", "pid": self.pid, "started": self._process.started, "directory": str(self._directory)}
        return found | {"shape": self.shape} | state_of(self.group)

    async def wait(self) -> int:
        """Waits for QEMU's end; 0 when the guest powered off, ``STATUS_UNKNOWN`` when an earlier process started it."""
        return await self._process.wait()

    async def stop(self, timeout: float) -> None:
        """Asks the guest to end its command and to power off; kills QEMU when ``timeout`` seconds have passed."""
        from castoff.vmm.stopping import ask_to_stop

        await ask_to_stop(self, timeout)

    async def grow_drive(self, role: str, size: int) -> None:
        """See castoff.vmm.vmm.GrowingDrives. The drive's number is that of the descriptors which carry its role."""
        socket = self._directory / _QMP
        async with asyncio.timeout(_QMP_SECONDS):
            sets = await qmp.execute(socket, "query-fdsets")
            numbers = [one["fdset-id"] for one in sets if any(each.get("opaque") == role for each in one["fds"])]
            if not numbers:
                raise Unavailable(f"qemu knows no drive {role!r}")
            self._process.allow_files(size)
            await qmp.execute(socket, "block_resize", **{"node-name": f"drive{numbers[0]}", "size": size})

    async def kill(self) -> None:
        """Ends QEMU now, and gives its control group back."""
        await self._process.kill()
        await leave(self.group)

    async def snapshot(self, directory: Path) -> Snapshot:
        """Stops the guest and writes it down; see castoff.vmm.vmm."""
        from castoff.vmm.qemu_snapshot import write_guest

        with step("vmm.qemu_snapshot", machine=self._directory.name) as current:
            snapshot = await write_guest(self._directory / _QMP, directory, self.shape)
            current.advance(snapshot.size)
            return snapshot

    async def go_on(self) -> None:
        """Lets a guest that was stopped run; see castoff.vmm.vmm."""
        from castoff.vmm.qemu_snapshot import go_on

        await go_on(self._directory / _QMP)


class QemuVmm:
    """Starts machines with QEMU.

    Args:
        settings: The machines' settings.
        state: Where the answer of the KVM probe is kept.
    """

    name = "qemu"

    def __init__(self, settings: VmmSettings, *, state: Path | None = None) -> None:
        self._settings = settings
        self._state = state

    def binary(self) -> str:
        """QEMU's program.

        Raises:
            Unsupported: It is not installed.
        """
        found = shutil.which(self._settings.qemu.binary)
        if found is None:
            raise Unsupported(
                f"{self._settings.qemu.binary} is not installed",
                hint="Debian's package is qemu-system-x86 (apt-get install qemu-system-x86)",
            )
        return found

    async def start(self, spec: MachineSpec) -> QemuHandle:
        """Starts a machine; see :class:`castoff.vmm.vmm.Vmm`."""
        with step("vmm.qemu", machine=spec.id) as current:
            return await self._started(spec, current)

    async def restore(self, spec: MachineSpec, directory: Path, snapshot: Snapshot) -> QemuHandle:
        """Starts one whose guest was written down; see :class:`castoff.vmm.vmm.SnapshotVmm`."""
        from castoff.vmm.qemu_snapshot import read_guest

        with step("vmm.qemu", machine=spec.id, restored=True) as current:
            handle = await self._started(spec, current, waits=True)
            try:
                with step("vmm.qemu_snapshot", machine=spec.id, total=snapshot.size) as reading:
                    await read_guest(spec.directory / _QMP, directory, snapshot, handle.shape)
                    reading.advance(snapshot.size)
            except BaseException:
                await asyncio.shield(handle.kill())
                raise
            return handle

    async def _started(self, spec: MachineSpec, current: Step, *, waits: bool = False) -> QemuHandle:
        binary = self.binary()
        kvm = await self._kvm(spec.kernel)
        current.attributes["accelerator"] = "kvm" if kvm else "tcg"
        async with entrance(spec, self._settings.limits, emulated=not kvm) as door:
            with contextlib.ExitStack() as opened:
                tap = await _tap(spec, opened)
                process, its_shape = self._spawn(spec, binary, kvm, opened, door, tap, waits=waits)
            try:
                await door.admit(process)
                await self._answers(spec, process)
            except BaseException:
                await asyncio.shield(process.kill())
                raise
        return QemuHandle(process, spec.directory, door.group, its_shape)

    async def reattach(self, state: Mapping[str, Any]) -> QemuHandle | None:
        """The handle of a QEMU that an earlier process started; None when it has ended."""
        process = MonitorProcess.find(int(state["pid"]), int(state["started"]))
        if process is None:
            return None
        return QemuHandle(process, Path(state["directory"]), group_of(state), str(state.get("shape", "")))

    async def _kvm(self, kernel: Path) -> bool:
        accelerator = self._settings.qemu.accelerator
        if accelerator != "auto":
            return accelerator == "kvm"
        from castoff.vmm.probe import kvm_runs

        return (await kvm_runs(self._settings, kernel, self._state)).usable

    def _spawn(
        self,
        spec: MachineSpec,
        binary: str,
        kvm: bool,
        opened: contextlib.ExitStack,
        door: Entrance,
        tap: Mapping[str, int],
        *,
        waits: bool,
    ) -> tuple[MonitorProcess, str]:
        """The process, and its shape."""
        owner = owner_for(spec.id, self._settings, spec.user)
        if owner is not None and spec.ports:
            _refuse_low_ports(spec.ports)
        if kvm:
            from castoff.vmm.probe import with_kvm_group

            owner = with_kvm_group(owner)
        try:
            sockets = {
                name: opened.enter_context(listen_unix(spec.directory / f"{name}.sock")) for name in ("qmp", "channel", "control")
            }
            drives = [_open_drive(drive.path, drive.read_only, drive.direct, drive.role, opened) for drive in spec.drives]
            files = {
                "kernel": _open(spec.kernel, os.O_RDONLY, opened),
                "initramfs": _open(spec.initramfs, os.O_RDONLY, opened),
                "console": _open(spec.directory / _CONSOLE, _APPEND if waits else _APPEND | os.O_TRUNC, opened, 0o640),
            }
            _hand_over(files["initramfs"], owner)
        except OSError as error:
            raise Unavailable(f"machine {spec.id} cannot be started: {error.filename or ''} {error.strerror}") from error
        descriptors = {**{name: server.fileno() for name, server in sockets.items()}, **files, **tap}
        command = qemu_command(
            spec,
            binary=binary,
            kvm=kvm,
            descriptors=descriptors,
            drives=drives,
            extra=self._settings.kernel_args,
            translation=self._settings.limits.translation,
        )
        inherit = [*descriptors.values(), *(drive.descriptor for drive in drives), *spec.inherit]
        log, largest = spec.directory / _LOG, _largest_file(drives)
        waiting = [*command, *WAITING] if waits else command
        process = spawn(waiting, log=log, owner=owner, inherit=inherit, largest_file=largest, gate=door.gate)
        return process, shape(command, kvm=kvm)

    async def _answers(self, spec: MachineSpec, process: MonitorProcess) -> None:
        """Waits until QEMU's control socket answers, which it does once it has taken its whole command line."""
        answer = asyncio.create_task(qmp.greet(spec.directory / "qmp.sock"))
        ended = asyncio.create_task(process.wait())
        try:
            async with asyncio.timeout(self._settings.qemu.start_seconds):
                await asyncio.wait((answer, ended), return_when=asyncio.FIRST_COMPLETED)
                if not ended.done():
                    await answer
                    return
        except (TimeoutError, CastoffError) as error:
            await asyncio.wait((ended,), timeout=_LAST_WORDS_SECONDS)  # its socket closes a moment before it has ended
            if not ended.done():
                raise Unavailable(
                    f"qemu does not answer: {last_lines(spec.directory / _LOG) or 'it said nothing'}",
                    hint="`castoff doctor` tells what this host can do",
                ) from error
        finally:
            for task in (answer, ended):
                task.cancel()
            await asyncio.gather(answer, ended, return_exceptions=True)
        status = await process.wait()
        if status == 0:
            return  # it took its command line and the guest is gone already: whoever waits for the guest tells why
        raise Unavailable(
            f"qemu ended at its start (status {status}): {last_lines(spec.directory / _LOG) or 'it said nothing'}",
            hint="`castoff doctor` tells what this host can do",
        )


def _refuse_low_ports(ports: Sequence[PortForward]) -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    for port in ports:
        if port.host_port < first:
            raise Unauthorized(
                f"port {port.host_port} cannot be published: qemu runs as a user of its own, who may listen from {first} on",
                hint=f"take a higher one, or allow it: sysctl net.ipv4.ip_unprivileged_port_start={port.host_port}",
            )


def _open(path: Path, flags: int, opened: contextlib.ExitStack, mode: int = 0o600) -> int:
    descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
    opened.callback(os.close, descriptor)
    return descriptor


async def _tap(spec: MachineSpec, opened: contextlib.ExitStack) -> dict[str, int]:
    """The tap's descriptor, where the machine has one."""
    if spec.tap is None or not spec.network:
        return {}
    made: list[int] = []
    opened.callback(lambda: any(map(os.close, made)))  # also where this is cancelled meanwhile
    await uninterrupted(lambda tap: made.append(open_tap(tap)), spec.tap)
    return {"tap": made[0]}


def _open_drive(path: Path, read_only: bool, direct: bool, role: str, opened: contextlib.ExitStack) -> OpenDrive:
    """Opens a drive's file. Not every filesystem can O_DIRECT; there the page cache is used."""
    flags = os.O_RDONLY if read_only else os.O_RDWR
    if direct:
        try:
            return OpenDrive(role, _open(path, flags | os.O_DIRECT, opened), read_only, True)
        except OSError as error:
            import errno

            if error.errno != errno.EINVAL:
                raise
    return OpenDrive(role, _open(path, flags, opened), read_only, False)


def _hand_over(initramfs: int, owner: Owner | None) -> None:
    """QEMU opens kernel and initramfs again through /proc/self/fd, which asks the file for its permission once more."""
    if owner is not None:
        os.fchown(initramfs, owner.uid, owner.gid)


def _largest_file(drives: list[OpenDrive]) -> int:
    """Bounds what the guest can make its console log grow to: no file of QEMU's may be longer than its largest drive, or than a
    volume may become while it runs."""
    sizes = [os.lseek(drive.descriptor, 0, os.SEEK_END) * (_GROWTH if drive.role in _VOLUMES else 1) for drive in drives]
    return max([_CONSOLE_LIMIT, *sizes])
