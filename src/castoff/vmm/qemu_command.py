"""QEMU's command line for a machine: pure, from a specification and open descriptors. Holds for QEMU 7.2 to 10.x."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from castoff.errors import Invalid
from castoff.vmm.cpu import host_cpu
from castoff.vmm.rates import Rates, qemu_limits
from castoff.vmm.vmm import MachineSpec, PortForward

__all__ = ["GUEST_NETWORK", "WAITING", "OpenDrive", "probe_command", "qemu_command", "shape"]

GUEST_NETWORK: Final = "10.0.2.15/24,10.0.2.2,10.0.2.3"
"""Address, gateway and name server of QEMU's user network (QEMU, docs/system/devices/net.rst)."""

_MACHINE: Final = "microvm,acpi=on,pcie=off,rtc=on,pit=on,pic=on,isa-serial=on,usb=off,auto-kernel-cmdline=off"
# ACPI: Debian's kernel has no virtio_mmio.device= parameter, so devices are found through ACPI's LNRO0005.
_FIRMWARE: Final = "qboot.rom"
"""Ships with QEMU's microvm. SeaBIOS, its default where ACPI is on, puts the ACPI tables at the top of memory, where QEMU has
the initramfs copied afterwards: with QEMU 10 and Linux 6.12 a guest then summed up hundreds of megabytes of a "table"."""
_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_EMULATED_CPU: Final = "max,la57=off,erms=off,fsrm=off"
"""All that QEMU emulates, but what is slow: page tables of five levels, and string instructions that promise to be fast, so
that kernel and libc copy with them, and are emulated byte by byte."""
WAITING: Final = ("-incoming", "defer", "-S")
"""Added for a guest that was written down: QEMU waits until it is told where from, and stops it there."""
_RATES: Final = "rates"
_DESCRIPTORS: Final = re.compile(r"(?<=fd=)\d+|(?<=/proc/self/fd/)\d+")
_KERNEL_ARGS: Final = ("console=ttyS0", "reboot=t", "panic=-1", "quiet", "cryptomgr.notests")


@dataclass(frozen=True, slots=True)
class OpenDrive:
    """A drive's open file."""

    role: str
    descriptor: int
    read_only: bool
    direct: bool


def qemu_command(
    spec: MachineSpec,
    *,
    binary: str,
    kvm: bool,
    descriptors: Mapping[str, int],
    drives: Sequence[OpenDrive],
    extra: Sequence[str] = (),
    translation: int = 0,
) -> list[str]:
    """The command line.

    Args:
        spec: The machine.
        binary: QEMU's program.
        kvm: Whether to run under KVM.
        descriptors: ``qmp``, ``channel`` and ``control`` (listening sockets), ``kernel``, ``initramfs``, ``console``; ``tap``,
            where the specification has one.
        drives: The specification's drives, opened.
        extra: Kernel arguments of the settings.
        translation: Bytes of translated code that are kept where it emulates; 0: as QEMU likes, up to 1 GiB.

    Raises:
        Invalid: A port or its address is none.
    """
    return [
        *_machine(binary, kvm=kvm, cpus=spec.cpus, memory=spec.memory, kernel=descriptors["kernel"], translation=translation),
        *("-name", f"castoff-{spec.id}"),
        *("-initrd", f"/proc/self/fd/{descriptors['initramfs']}"),
        *("-append", " ".join(_kernel_args(spec, kvm, extra))),
        *_sockets_and_console(descriptors),
        *_drives(drives, spec.rates),
        *(_network(spec, descriptors) if spec.network else ()),
    ]


def shape(command: Sequence[str], *, kvm: bool) -> str:
    """What a machine's command line has in common with that of the QEMU that goes on from its guest: all but the numbers of
    descriptors, the kernel's arguments, which were read long ago, and the name; and the CPU, which the guest has got to know.
    """
    told = [_DESCRIPTORS.sub("", word) for word in command]
    for option in ("-append", "-name"):
        at = told.index(option)
        del told[at : at + 2]
    cpu = host_cpu() if kvm else []
    return hashlib.sha256("\0".join([*told, *cpu]).encode()).hexdigest()[:16]


def probe_command(*, binary: str, kvm: bool, kernel: int) -> list[str]:
    """The command line of a machine that has only a kernel, which panics for want of a root; its console goes to stdout."""
    machine = _machine(binary, kvm=kvm, cpus=1, memory=128 << 20, kernel=kernel)
    return [*machine, "-append", " ".join([*_KERNEL_ARGS, *_clock_args(kvm)]), "-serial", "stdio"]


def _machine(binary: str, *, kvm: bool, cpus: int, memory: int, kernel: int, translation: int = 0) -> list[str]:
    emulation = f"tcg,tb-size={translation >> 20}" if translation else "tcg"
    return [
        binary,
        *("-M", _MACHINE),
        *("-bios", _FIRMWARE),
        *("-accel", "kvm" if kvm else emulation),
        *("-cpu", "host" if kvm else _EMULATED_CPU),
        *("-smp", str(cpus)),
        *("-m", f"size={memory // 1024}k"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-global", "virtio-mmio.force-legacy=false"),
        *("-sandbox", _SANDBOX),
        *("-kernel", f"/proc/self/fd/{kernel}"),
    ]


def _kernel_args(spec: MachineSpec, kvm: bool, extra: Sequence[str]) -> list[str]:
    arguments = [*_KERNEL_ARGS, "castoff.channel=serial", f"castoff.drives={','.join(drive.role for drive in spec.drives)}"]
    if spec.network:
        arguments.append(spec.tap.argument if spec.tap else f"castoff.net={GUEST_NETWORK}")
    return [*arguments, *_clock_args(kvm), *extra, *spec.kernel_args]


def _clock_args(kvm: bool) -> list[str]:
    """Under emulation, the TSC's frequency: calibrating it against an emulated timer takes time, and hangs now and then.

    The emulated TSC is the host's, whose megahertz /proc/cpuinfo doubles as "bogomips".
    """
    match = None if kvm else re.search(r"^bogomips\s*:\s*([\d.]+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return [f"tsc_early_khz={int(float(match[1]) * 500)}"] if match else []


def _sockets_and_console(descriptors: Mapping[str, int]) -> list[str]:
    words = []
    for name in ("qmp", "channel", "control"):
        words += ["-chardev", f"socket,id={name},fd={descriptors[name]},server=on,wait=off"]
    words += ["-mon", "chardev=qmp,mode=control"]
    words += ["-add-fd", f"fd={descriptors['console']},set=99,opaque=console"]
    words += ["-chardev", "file,id=console,path=/dev/fdset/99,append=on", "-serial", "chardev:console"]
    words += ["-device", "virtio-serial-device,max_ports=3"]
    words += ["-device", "virtserialport,nr=1,chardev=channel,name=castoff.channel"]
    words += ["-device", "virtserialport,nr=2,chardev=control,name=castoff.control"]
    return words


def _drives(drives: Sequence[OpenDrive], rates: Rates) -> list[str]:
    """All drives; where their rate is limited, one limit holds for all of them together."""
    limits = qemu_limits(rates)
    group = {"qom-type": "throttle-group", "id": _RATES, "limits": limits}
    words = ["-object", json.dumps(group)] if limits else []
    return words + [word for number, drive in enumerate(drives) for word in _drive(number, drive, limited=bool(limits))]


def _drive(number: int, drive: OpenDrive, *, limited: bool) -> list[str]:
    node = f"drive{number}"
    common = [f"read-only={_on(drive.read_only)}", "discard=unmap", f"cache.direct={_on(drive.direct)}"]
    options = [
        "driver=raw",
        f"node-name={'file' if limited else 'drive'}{number}",
        *common,
        "file.driver=file",
        f"file.filename=/dev/fdset/{number}",
        "file.aio=threads",
        f"file.cache.direct={_on(drive.direct)}",
    ]
    limiter = ["driver=throttle", f"node-name={node}", f"file=file{number}", f"throttle-group={_RATES}", *common]
    return [
        *("-add-fd", f"fd={drive.descriptor},set={number},opaque={drive.role}"),
        *("-blockdev", ",".join(options)),
        *(("-blockdev", ",".join(limiter)) if limited else ()),
        *("-device", f"virtio-blk-device,drive={node},serial={drive.role}"),
    ]


def _on(value: bool) -> str:
    return "on" if value else "off"


def _network(spec: MachineSpec, descriptors: Mapping[str, int]) -> list[str]:
    if spec.tap is not None:
        card = f"virtio-net-device,netdev=net0,mac={spec.tap.mac}"
        return ["-netdev", f"tap,id=net0,fd={descriptors['tap']},vhost=off", "-device", card]
    forwards = "".join(f",hostfwd={_forward(port)}" for port in spec.ports)
    return ["-netdev", f"user,id=net0,ipv6=off{forwards}", "-device", "virtio-net-device,netdev=net0"]


def _forward(port: PortForward) -> str:
    import ipaddress

    try:
        address = ipaddress.IPv4Address(port.host_address)
    except ValueError as error:
        raise Invalid(
            f"{port.host_address!r} is no IPv4 address to publish a port on", hint="write HOST:GUEST or ADDRESS:HOST:GUEST"
        ) from error
    if port.protocol not in ("tcp", "udp") or not (0 < port.host_port < 65536 and 0 < port.guest_port < 65536):
        raise Invalid(
            f"port {port.host_port}:{port.guest_port}/{port.protocol} cannot be published", hint="tcp or udp, 1 to 65535"
        )
    return f"{port.protocol}:{address}:{port.host_port}-:{port.guest_port}"
