"""The port to virtual machine monitors.

Lifecycle: ``start`` returns once the VMM process runs and has accepted the whole specification (for QEMU: its control
socket answers or its guest channel accepts; for Firecracker: InstanceStart answered). The handle then waits for, stops
or kills it. A VMM outlives whoever started it; ``reattach`` finds it again by pid, start time and socket.

Where it can, a VMM writes its guest down and another one goes on from there: ``snapshot`` stops the guest and writes it,
then the VMM is killed; ``restore`` starts one with that guest, stopped, and ``go_on`` runs it. A guest that has run since
it was written down has changed its disks: what was written is worthless then, and must be gone before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from castoff.disk.clone import Drive, inherited
from castoff.vmm.cgroups import Group
from castoff.vmm.rates import Rates
from castoff.vmm.tap import Tap

__all__ = [
    "GrowingDrives",
    "MachineSpec",
    "PortForward",
    "Snapshot",
    "SnapshotHandle",
    "SnapshotVmm",
    "Vmm",
    "VmmHandle",
]


@dataclass(frozen=True, slots=True)
class PortForward:
    """A port of the host that leads to one of the guest."""

    host_port: int
    guest_port: int
    host_address: str = "127.0.0.1"
    protocol: str = "tcp"


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """All that a VMM needs to know of one machine.

    Attributes:
        id: The machine's id; every resource is named after it.
        directory: The machine's own directory: sockets, console log.
        cpus: Virtual CPUs.
        memory: Bytes of guest memory.
        kernel: Kernel file: ELF vmlinux or bzImage.
        initramfs: The whole initramfs of this machine (castoff.vmm.initramfs makes it).
        kernel_args: Added to the driver's own kernel command line.
        drives: In the order in which the guest should see them; found by serial.
        ports: Published ports.
        network: Whether the guest has a network card.
        tap: Its other end; None: the VMM's own user network, where it has one.
        user: The user and group id that the VMM runs as where castoff is root, no other machine's; None: one chosen by the id.
        rates: How fast it may be; a network that the VMM does not limit itself is limited by whoever made its card.
    """

    id: str
    directory: Path
    cpus: int
    memory: int
    kernel: Path
    initramfs: Path
    drives: tuple[Drive, ...]
    kernel_args: tuple[str, ...] = ()
    ports: tuple[PortForward, ...] = ()
    network: bool = True
    tap: Tap | None = None
    user: int | None = None
    rates: Rates = field(default_factory=Rates)

    @property
    def inherit(self) -> tuple[int, ...]:
        """The drives' descriptors that the VMM's process keeps open, under the same numbers, for its whole life.

        A jailed Firecracker does not: its jailer closes what it does not know.
        """
        return inherited(self.drives)


class VmmHandle(Protocol):
    """A running VMM."""

    pid: int
    channel: Path
    """Unix socket of the guest channel (castoff.vmm.channel speaks on it)."""
    channel_port: int | None
    """The guest's vsock port that ``channel`` leads to when asked; None: it leads there by itself."""
    control: Path
    """The same of a second channel, for others than the one client that has the command's streams."""
    control_port: int | None
    console: Path
    """The guest kernel's console output."""
    group: Group | None
    """The control group that it runs in; None: in none of its own."""

    def state(self) -> dict[str, Any]:
        """What ``reattach`` needs, as JSON can hold it."""
        ...

    async def wait(self) -> int:
        """Waits for the VMM's end; its exit status (0: the guest powered off)."""
        ...

    async def stop(self, timeout: float) -> None:
        """Asks the guest to power off, kills it after ``timeout`` seconds."""
        ...

    async def kill(self) -> None:
        """Ends the VMM now. Idempotent."""
        ...


@runtime_checkable
class GrowingDrives(Protocol):
    """A handle whose drives can grow while the guest runs."""

    async def grow_drive(self, role: str, size: int) -> None:
        """Tells VMM and guest that a drive's file has grown to ``size`` bytes.

        Raises:
            Unsupported: This process may not allow it.
            Unavailable: The VMM refused, or ended.
            TimeoutError: It does not answer.
        """
        ...


class Vmm(Protocol):
    """Starts machines."""

    name: str

    async def start(self, spec: MachineSpec) -> VmmHandle:
        """Starts a machine.

        Raises:
            Unsupported: The VMM is not installed, or cannot do what the specification asks.
            Unavailable: It started and ended, or did not answer; the message ends with its last output.
        """
        ...

    async def reattach(self, state: Mapping[str, Any]) -> VmmHandle | None:
        """The handle of a VMM that an earlier process started; None when it has ended."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is known of a guest that was written down.

    Attributes:
        made_by: The VMM's version and the shape of the machine, as its driver tells them apart: only the same goes on from it.
        size: Bytes that were written.
        digest: BLAKE3 of them, in hex.
    """

    made_by: str
    size: int
    digest: str


@runtime_checkable
class SnapshotHandle(Protocol):
    """A handle whose VMM can write its guest down."""

    async def snapshot(self, directory: Path) -> Snapshot:
        """Stops the guest and writes its memory and devices, durably; it stays stopped until ``go_on`` or ``kill``.

        Args:
            directory: An empty one, on the machine's own filesystem.

        Raises:
            Unsupported: The VMM cannot do that with this machine; the guest goes on.
            NoSpace, Unavailable: It could not be written, or the VMM has ended; else the guest goes on.
        """
        ...

    async def go_on(self) -> None:
        """Lets a guest that was stopped run; nothing happens to one that does.

        Raises:
            Unavailable: The VMM does not answer.
        """
        ...


@runtime_checkable
class SnapshotVmm(Protocol):
    """A driver that can start a machine from a guest that was written down."""

    async def restore(self, spec: MachineSpec, directory: Path, snapshot: Snapshot) -> VmmHandle:
        """Starts a machine whose guest is as it was, and stopped; the handle is a :class:`SnapshotHandle`.

        Args:
            spec: As the machine was started with; its kernel and initramfs are not run.
            directory: What ``snapshot`` filled; only read.
            snapshot: What it told.

        Raises:
            Conflict: Another VMM, or another machine, wrote it.
            Invalid: It is broken.
            Unsupported, Unavailable: As ``start``.
        """
        ...
