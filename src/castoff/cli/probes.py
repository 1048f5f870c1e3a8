"""What this host can do, each tried for real: a device file that exists proves nothing.

A probe answers with a :class:`Finding` and never raises; nothing that it makes outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from castoff.errors import CastoffError, Unsupported
from castoff.rootfs.settings import RootfsSettings
from castoff.store.store import Store
from castoff.vmm.kernel import Kernel, find_kernel
from castoff.vmm.limits import try_limits
from castoff.vmm.probe import kvm_runs
from castoff.vmm.settings import LimitSettings, VmmSettings

__all__ = [
    "Finding",
    "containerd",
    "fanotify",
    "firecracker",
    "fuse",
    "kernel",
    "kvm",
    "lazy",
    "limits",
    "mkfs_xfs",
    "qemu",
    "reflink",
    "tap",
]


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer of one probe.

    Attributes:
        name: What was looked for.
        works: Whether it is there and works.
        found: What was found, or what is wrong, a few words.
        gives: What castoff does with it.
        how: How to get it; empty where it works.
        needed: Whether no machine runs without it.
    """

    name: str
    works: bool
    found: str
    gives: str
    how: str = ""
    needed: bool = False


def qemu(binary: str) -> Finding:
    """QEMU, the VMM that runs anywhere."""
    gives = "runs machines, with KVM or by emulation"
    path = shutil.which(binary)
    if path is None:
        return Finding("qemu", False, f"{binary} is not installed", gives, "apt install qemu-system-x86", needed=True)
    return Finding("qemu", True, f"{path}, {_first_line([path, '--version'])}", gives, needed=True)


def firecracker(binary: str, jailer_binary: str) -> Finding:
    """Firecracker and its jailer."""
    gives = "runs machines with less memory and a smaller attack surface (--vmm firecracker); needs KVM"
    how = "put `firecracker` and `jailer` of a release (github.com/firecracker-microvm/firecracker/releases) on PATH"
    path = shutil.which(binary)
    if path is None:
        return Finding("firecracker", False, "not on PATH", gives, how)
    jailer = shutil.which(jailer_binary)
    with_jailer = f", jailer {jailer}" if jailer else ", no jailer (root wants one)"
    return Finding("firecracker", True, f"{path}, {_first_line([path, '--version'])}{with_jailer}", gives, "" if jailer else how)


async def kernel(settings: VmmSettings, cache: Path) -> tuple[Finding, Kernel | None]:
    """The guests' kernel; where there is none yet, whether one could be had, without fetching it."""
    gives = "boots machines"
    try:
        found = await find_kernel(settings, cache)
    except CastoffError as error:
        return Finding("kernel", False, error.what, gives, error.hint, needed=True), None
    return Finding("kernel", True, f"{found.version}, {found.path}", gives, needed=True), found


async def kvm(settings: VmmSettings, guest: Kernel | None, state: Path) -> Finding:
    """Whether KVM runs a stock kernel, fast: told by booting one."""
    gives = "runs machines at the processor's own speed; emulation is some 10 times slower"
    how = "load kvm_intel or kvm_amd; in a cloud, take a machine with nested virtualisation or a bare metal one"
    if guest is None:
        return Finding("kvm", False, "not tried: there is no kernel to boot", gives, how)
    try:
        probe = await kvm_runs(settings, guest.path, state)
    except CastoffError as error:
        return Finding("kvm", False, error.what, gives, error.hint or how)
    return Finding("kvm", probe.usable, probe.reason, gives, "" if probe.usable else how)


def reflink(store: Store) -> Finding:
    """Whether files of the store share extents."""
    gives = "composes and clones root filesystems in a millisecond, without copying"
    if store.reflink:
        kind = "an XFS in a file of its own" if store.backing.kind == "loop" else "the filesystem of the state directory"
        return Finding("reflink", True, f"{store.root} is on {kind}", gives)
    return Finding(
        "reflink", False, store.backing.why, gives, "put --state on XFS or btrfs, or run as root with xfsprogs installed"
    )


def mkfs_xfs() -> Finding:
    """mkfs.xfs, for a store with reflinks on any filesystem."""
    gives = "makes a store with reflinks on a filesystem without (as root)"
    path = shutil.which("mkfs.xfs")
    return Finding("mkfs.xfs", bool(path), path or "not installed", gives, "" if path else "apt install xfsprogs")


def fuse() -> Finding:
    """Whether a FUSE filesystem could be served."""
    gives = "serves an incomplete rootfs on any kernel"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Finding("fuse", False, "/dev/fuse is missing", gives, "modprobe fuse")
    except OSError as error:
        return Finding("fuse", False, f"/dev/fuse: {error.strerror}", gives, "run as root")
    if os.geteuid() != 0:
        return Finding("fuse", False, "/dev/fuse opens, and mounting what it serves takes root", gives, "run as root")
    return Finding("fuse", True, "/dev/fuse opens", gives)


def limits(settings: LimitSettings, machines: Path) -> Finding:
    """Whether VMMs' control groups can be made, with a limit of each kind."""
    gives = "holds each VMM to the CPUs, memory and processes that its guest needs"
    if settings.mode == "off":
        return Finding("limits", False, "vmm.limits.mode is off", gives, "set it to auto or require")
    try:
        tree = try_limits(settings, machines)
    except CastoffError as error:
        return Finding(
            "limits", False, error.what, gives, error.hint or "see docs/operations.md", needed=settings.mode == "require"
        )
    kind = "cgroup v2" if tree.unified else "cgroup v1, whose memory limits are coarse"
    if tree.missing:
        lacking = ", ".join(tree.missing)
        return Finding("limits", False, f"{kind} without {lacking}", gives, f"give {tree.root} the controllers {lacking}")
    return Finding("limits", True, f"{kind}, in {next(iter(tree.bases.values()))}", gives)


_FAN_CLASS_PRE_CONTENT = 0x8
_FAN_CLOEXEC = 0x1
_FAN_MARK_ADD = 0x1
_FAN_PRE_ACCESS = 0x100000
"""linux/fanotify.h, since 6.14."""


def fanotify() -> Finding:
    """Whether the kernel asks before a file's contents are read."""
    gives = "serves an incomplete rootfs at the kernel's own speed"
    libc = ctypes.CDLL(None, use_errno=True)
    group = libc.fanotify_init(_FAN_CLASS_PRE_CONTENT | _FAN_CLOEXEC, os.O_RDWR)
    if group < 0:
        what = os.strerror(ctypes.get_errno())
        return Finding("fanotify", False, f"fanotify_init: {what}", gives, "run as root, on Linux 6.14 or later")
    try:
        with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
            mark = libc.fanotify_mark(
                group, ctypes.c_uint(_FAN_MARK_ADD), ctypes.c_uint64(_FAN_PRE_ACCESS), -100, os.fsencode(file.name)
            )
            if mark < 0:
                what = os.strerror(ctypes.get_errno())
                return Finding(
                    "fanotify", False, f"no pre-content events: {what}", gives, "Linux 6.14 or later, state on ext4, XFS or btrfs"
                )
    finally:
        os.close(group)
    from castoff.hydrate.answerer import is_built

    by = "compiled code answers" if is_built() else "Python answers: castoff was installed without gcc and libc6-dev"
    return Finding("fanotify", True, f"pre-content events work, {by}", gives)


def lazy(store: Store, settings: RootfsSettings) -> Finding:
    """How machines could start before their data is here."""
    from castoff.hydrate.record import FrontKind
    from castoff.rootfs.front import choose_front, wanted_front

    gives = "starts machines before their data is here, from an artifact that `castoff publish` made"
    try:
        front = choose_front(store, clone=settings.clone, wanted=wanted_front(settings))
    except Unsupported as error:
        return Finding("lazy", False, error.what, gives, "run as root; for fanotify on Linux 6.14 or later, with reflinks")
    served = {FrontKind.FANOTIFY: "a plain file for each machine", FrontKind.FUSE: "a read-only base below an overlay"}
    return Finding("lazy", True, f"by {front.value}: {served[front]}", gives)


_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x2, 0x1000


def tap() -> Finding:
    """Whether a tap device can be made; it is gone when its descriptor is closed."""
    gives = "gives machines a network of their own (Firecracker needs it for any)"
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return Finding("tap", False, "/dev/net/tun is missing", gives, "modprobe tun")
    except OSError as error:
        return Finding("tap", False, f"/dev/net/tun: {error.strerror}", gives, "run as root")
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", b"castoff-probe", _IFF_TAP | _IFF_NO_PI))
    except OSError as error:
        return Finding("tap", False, f"making one: {error.strerror}", gives, "run as root (CAP_NET_ADMIN)")
    finally:
        os.close(descriptor)
    return Finding("tap", True, "one was made and removed", gives)


def nftables() -> Finding:
    """Whether the programs are there that make a network of machines' own; what they do takes root."""
    gives = "machines with addresses that reach one another (agent.network.mode = bridge)"
    packages = {"nft": "nftables", "ip": "iproute2", "bridge": "iproute2"}
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    missing = sorted({package for program, package in packages.items() if shutil.which(program, path=places) is None})
    if missing:
        return Finding("nftables", False, f"{' and '.join(missing)} not installed", gives, f"apt install {' '.join(missing)}")
    if os.geteuid():
        return Finding("nftables", False, "only root can set up a network", gives, "run as root")
    return Finding("nftables", True, "nft and ip are installed", gives)


def containerd(address: Path) -> Finding:
    """Whether a containerd answers where the settings say."""
    gives = "the containerd provider: pull and snapshots by it (--rootfs containerd)"
    how = "apt install containerd; or set rootfs.containerd.socket"
    if not address.exists():
        return Finding("containerd", False, f"no socket at {address}", gives, how)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(address))
        except OSError as error:
            return Finding("containerd", False, f"{address}: {error.strerror or error}", gives, how)
    with contextlib.suppress(ImportError):
        import grpc  # noqa: F401 - whether it is installed is the question

        return Finding("containerd", True, f"answers at {address}", gives)
    return Finding(
        "containerd", False, f"answers at {address}, but grpcio is not installed", gives, "pip install 'castoff[containerd]'"
    )


def _first_line(command: list[str]) -> str:
    """The first line a program prints, or why there is none."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    lines = done.stdout.decode(errors="replace").splitlines()
    return lines[0] if lines else f"prints nothing, exit {done.returncode}"
