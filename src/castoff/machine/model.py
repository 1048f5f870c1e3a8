"""What a machine is: its id, what a create asks for, and what is written down of it."""

from __future__ import annotations

import enum
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NewType

import msgspec

from castoff.disk.clone import CloneKind
from castoff.errors import Invalid
from castoff.image.image import Platform
from castoff.machine.identity import Owner
from castoff.rootfs.settings import Lazy
from castoff.vmm.guest import GuestFile
from castoff.vmm.rates import AskedRates, Rates
from castoff.vmm.tap import Tap
from castoff.vmm.vmm import PortForward, Snapshot

__all__ = [
    "Hardware",
    "HardwareDrive",
    "MachineId",
    "MachineRecord",
    "MachineRequest",
    "MachineState",
    "ProcessRequest",
    "Suspension",
    "VolumeDrive",
    "check_name",
    "new_machine_id",
    "parse_machine_id",
]

_ID = re.compile(r"[0-9a-f]{14}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")


MachineId = NewType("MachineId", str)
"""14 hexadecimal digits; everything that a machine owns is named after it."""


def new_machine_id() -> MachineId:
    """A new id: 56 random bits."""
    return MachineId(secrets.token_hex(7))


def parse_machine_id(text: str) -> MachineId:
    """An id from a person, a program or a file.

    Raises:
        Invalid: It is none.
    """
    if not _ID.match(text):
        raise Invalid(
            f"{text[:60]!r} is not a machine id", hint="an id is 14 hexadecimal digits; `castoff machine list` shows them"
        )
    return MachineId(text)


def check_name(name: str) -> str:
    """A machine's name, which is its host name too unless another is given.

    Raises:
        Invalid: It could not be one.
    """
    if not _NAME.match(name):
        raise Invalid(
            f"machine name {name[:80]!r} is not usable", hint="letters, digits, dots, dashes; at most 63, a letter or digit first"
        )
    return name


@dataclass(frozen=True, slots=True)
class VolumeDrive:
    """A volume of a machine's; never its own to delete.

    Attributes:
        path: The file, an ext4 image, or the block device.
        guest_path: Where the guest mounts it.
    """

    path: Path
    guest_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRequest:
    """A process that runs beside a machine's first; fields as :class:`MachineRequest` has them."""

    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    user: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRequest:
    """What one create asks for; None: as the image or the configuration says.

    Attributes:
        image: Image reference.
        command: Replaces the image's ``cmd``.
        entrypoint: Replaces the image's ``entrypoint``, and drops its ``cmd``.
        env: ``K=V`` on top of the image's.
        working_dir: Absolute path in the guest.
        user: ``user[:group]``, names or numbers.
        hostname: The guest's name; the machine's name, or its id.
        interactive: The command reads what ``Machine.write`` sends; else its stdin is empty.
        tty: The command gets a terminal: one stream for its output, and a window size.
        columns, rows: The terminal's size at first.
        cpus: Virtual CPUs.
        memory: Bytes.
        disk_size: Bytes of the root filesystem.
        name: Unique among the host's machines.
        vmm: Driver.
        rootfs: A provider's name, or a file or block device that holds the rootfs.
        clone: How the machine gets its writable copy.
        lazy: Whether it may start before all of its rootfs is here.
        kernel: Kernel file.
        ports: Published ports.
        network: Whether the guest has a network card.
        tap: Its other end; None: a user network of the VMM's.
        platform: Of the image.
        keep: The machine's directory stays when it ends.
        id: The id that it gets; None: a new one.
        agent: The agent runs it: it outlives this process, and only the agent removes it.
        files: Written into the root filesystem before the command starts.
        linger: Seconds that an ended machine waits for its exit code to be taken.
        volumes: Filesystems that outlive the machine, mounted in its tree.
        beside: Processes that run with its command, as part of it (castoff.vmm.guest).
        rates: How fast it may be, within what the operator allows.
        existing: A root filesystem that an earlier run of the machine left, which becomes this one's under a second name.
    """

    image: str
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    working_dir: str | None = None
    user: str | None = None
    hostname: str | None = None
    interactive: bool = False
    tty: bool = False
    columns: int = 80
    rows: int = 24
    cpus: int | None = None
    memory: int | None = None
    disk_size: int | None = None
    name: str | None = None
    vmm: str | None = None
    rootfs: str | Path | None = None
    clone: CloneKind | None = None
    lazy: Lazy | None = None
    kernel: Path | None = None
    ports: tuple[PortForward, ...] = ()
    network: bool | None = None
    tap: Tap | None = None
    platform: Platform | None = None
    keep: bool = False
    id: MachineId | None = None
    agent: bool = False
    files: tuple[GuestFile, ...] = ()
    linger: float | None = None
    volumes: tuple[VolumeDrive, ...] = ()
    beside: tuple[ProcessRequest, ...] = ()
    rates: AskedRates | None = None
    existing: Path | None = None


class MachineState(enum.StrEnum):
    """How far a machine is."""

    CREATING = "creating"
    STARTED = "started"
    SUSPENDED = "suspended"
    """Its memory is on disk, and no VMM of it is needed; one may still have to be ended."""
    RESUMING = "resuming"
    """The same, and a VMM that nobody wrote down may hold it. The guest has not run since."""
    EXITED = "exited"


class HardwareDrive(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A drive that a machine was started with; see castoff.disk.clone.Drive."""

    role: str
    path: str
    read_only: bool
    direct: bool


class Hardware(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a machine was started with, as castoff.vmm.vmm.MachineSpec has it: what goes on from its memory must be the same."""

    cpus: int
    memory: int
    kernel: str
    drives: tuple[HardwareDrive, ...]
    ports: tuple[PortForward, ...] = ()
    network: bool = True
    rates: Rates = Rates()
    tap: Tap | None = None


class Suspension(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was kept of a machine's guest, in the directory ``memory`` of the machine's."""

    snapshot: Snapshot
    files: dict[str, tuple[int, int, int]]
    """Of the kernel and each drive that is a file, by path: inode, bytes, nanoseconds of the last change. Others are other
    disks than those that the guest has mounted."""


class MachineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is written down of a machine, in ``machine.json`` of its directory."""

    version: int = 1
    id: MachineId
    name: str
    state: MachineState
    owner: Owner
    """The process that runs it; when that is gone, the machine is a leftover."""
    created: float
    """Seconds since the epoch."""
    keep: bool
    image: str
    """The reference that was asked for."""
    digest: str = ""
    """The image's manifest; empty until it is resolved."""
    command: tuple[str, ...] = ()
    vmm: str = ""
    vmm_state: dict[str, Any] = {}
    """What the driver's ``reattach`` needs."""
    hardware: Hardware | None = None
    """What its VMM was given; None: it was not started yet, or by an older castoff."""
    suspended: Suspension | None = None
    """What it can go on from."""
    lazy: bool = False
    """Whether it was started before all of its rootfs was here (castoff.rootfs.lazy)."""
    exit_code: int | None = None
    """None: it has not ended, or was lost or killed."""
    exit_signal: int = 0
    out_of_memory: bool = False
    exit_message: str = ""
    """Why there was no command."""
    user: int | None = None
    """The user and group id that its VMM runs as, no other machine's; None: as whoever started it."""
    agent: bool = False
    """Whether it is the agent's: then no process that it belongs to is looked for, and the agent alone removes it."""
