"""Settings of the machines' monitors, kernels and guests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from castoff.vmm.rates import RateSettings

__all__ = ["FirecrackerSettings", "KernelSettings", "LimitSettings", "QemuSettings", "VmmSettings"]


class KernelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the guests' kernel comes from."""

    file: Path | None = None
    """A kernel (ELF vmlinux or bzImage) to use instead of looking for one."""
    modules: Path | None = None
    """Its modules (a directory like /lib/modules/VERSION); None: found by its version, or everything is built in."""
    sources: tuple[Literal["debian", "host"], ...] = ("debian", "host")
    """Where a kernel is looked for, in order: Debian's cloud kernel (downloaded, never installed), this host's own /boot."""
    package: str = "linux-image-cloud"
    """The Debian package, without its architecture; a meta package is followed to what it depends on."""
    download_seconds: float = 300.0
    """Time limit of the download and of each apt command."""


class QemuSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``qemu`` driver."""

    binary: str = "qemu-system-x86_64"
    """The program, a path or a name in PATH."""
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    """``auto``: KVM where a timed probe says that it runs a stock kernel fast, emulation otherwise."""
    start_seconds: float = 20.0
    """How long QEMU may take to answer on its control socket."""


class FirecrackerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``firecracker`` driver."""

    binary: str = "firecracker"
    """The program, a path or a name in PATH."""
    jailer: str = "jailer"
    """Its jailer, used where castoff runs as root; a path or a name in PATH."""
    start_seconds: float = 10.0
    """How long Firecracker may take to answer on its socket."""


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the host lets a machine's monitor take, in a control group of its own."""

    mode: Literal["auto", "require", "off"] = "auto"
    """``auto``: limits where the host has control groups that castoff may use (`castoff doctor` tells). ``require``: no machine
    starts without all of them. ``off``: none."""
    parent: Path | None = None
    """A group of cgroup v2 to make castoff's own in, for hosts that delegate one, with no process in the group itself; without it
    the root of the hierarchy (or, under cgroup v1, the group that castoff runs in)."""
    cpus: Annotated[float, Meta(ge=0)] = 1.0
    """CPUs that a monitor may take beyond those of its guest: threads for disks, network and console."""
    memory: Annotated[int, Meta(ge=0)] = 256 << 20
    """Bytes that a monitor may take beyond its guest's memory; one that takes more is killed, and its machine's exit tells."""
    translation: Annotated[int, Meta(ge=16 << 20)] = 256 << 20
    """Bytes of translated code that QEMU keeps where it emulates, and that count on top; more of it is translated anew."""
    swap: Annotated[int, Meta(ge=0)] = 0
    """Bytes of the host's swap that a monitor may be put to."""
    pids: Annotated[int, Meta(ge=64)] = 256
    """Threads and processes of a monitor, beside one for each CPU. QEMU has up to 64 for each of its disks' queues."""


class VmmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Machines: which monitor runs them, and with which kernel."""

    order: tuple[str, ...] = ("firecracker", "qemu")
    """Drivers to try, in order; the first that can run on this host is used."""
    kernel: KernelSettings = KernelSettings()
    """Where the guests' kernel comes from."""
    kernel_args: tuple[str, ...] = ()
    """Added to every machine's kernel command line."""
    qemu: QemuSettings = QemuSettings()
    """The ``qemu`` driver."""
    firecracker: FirecrackerSettings = FirecrackerSettings()
    """The ``firecracker`` driver."""
    probe_seconds: float = 8.0
    """How long a kernel may take to boot under KVM before KVM counts as unusable."""
    limits: LimitSettings = LimitSettings()
    """What the host lets a monitor take."""
    rates: RateSettings = RateSettings()
    """How fast a machine may be."""
    own_user: bool = True
    """Run each monitor as a user of its own where castoff runs as root."""
    first_uid: Annotated[int, Meta(ge=1, lt=2**32 - 2)] = 2_000_000_000
    """First of the user ids (and group ids) that monitors run as; above those of systemd and of containers' ranges."""
    uid_count: Annotated[int, Meta(ge=1)] = 65_536
    """How many there are: no more machines than that can be on this host. Each has one of its own, chosen by its id."""
    linger_seconds: float = 10.0
    """How long a machine whose command ended waits for somebody to take its exit code before it powers off."""
    stop_seconds: float = 10.0
    """How long a machine's command may take to end after it was asked to, before it is killed."""
