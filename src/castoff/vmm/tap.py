"""A machine's tap: the network card's other end, a port of a bridge of this host's.

One that a process holds open (QEMU's) goes with the last process that has it; Firecracker opens its by name, as a user
without rights, so it is there before and is removed after. The host knows the card's address by itself: it neither asks the
guest for it (ARP, neighbour discovery) nor tells others what it sends there.

Sources: Linux, Documentation/networking/tuntap.rst; iproute2's ip-link(8), bridge(8), ip-neighbour(8).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from castoff.errors import Unavailable, Unsupported

__all__ = ["Tap", "open_tap", "persist_tap", "remove_tap", "run_batch", "run_program"]

_TUNSETIFF: Final = 0x400454CA
_TUNSETPERSIST: Final = 0x400454CB
_TUNSETOWNER: Final = 0x400454CC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_SECONDS: Final = 30.0


class Tap(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A machine's tap, and what its guest is told of the network behind it.

    Attributes:
        device: The tap's name, at most 15 letters; made by the VMM's driver.
        bridge: The bridge that it becomes a port of. It is there.
        mac: The guest's card's.
        address: The guest's, with its prefix length: ``10.1.2.3/32``.
        gateway: The bridge's, which is reached without another hop.
        nameserver: Empty: the guest keeps its image's.
        address6, gateway6: The same, without prefix length; both empty: no IPv6.
    """

    device: str
    bridge: str
    mac: str
    address: str
    gateway: str
    nameserver: str = ""
    address6: str = ""
    gateway6: str = ""

    @property
    def argument(self) -> str:
        """The word on the guest kernel's command line that tells its init."""
        words = [self.address, self.gateway, self.nameserver or self.gateway]
        return "castoff.net=" + ",".join([*words, self.address6, self.gateway6] if self.address6 else words)


def open_tap(tap: Tap) -> int:
    """Makes the tap, as a port of its bridge; a descriptor of it, that the tap goes with. It blocks.

    Raises:
        Unsupported: This process may not, or this host has none.
        Unavailable: The bridge is not there, or does not take it.
    """
    descriptor = _opened(tap.device)
    try:
        _plug(tap)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def persist_tap(tap: Tap, uid: int) -> None:
    """Makes a tap that stays until :func:`remove_tap`, and that ``uid`` may open. Idempotent. It blocks.

    Raises:
        Unsupported, Unavailable: As :func:`open_tap`.
    """
    descriptor = _opened(tap.device)
    try:
        fcntl.ioctl(descriptor, _TUNSETOWNER, uid)
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
        _plug(tap)
    finally:
        os.close(descriptor)


def remove_tap(device: str) -> None:
    """Removes a tap that stays. Idempotent. It blocks.

    Raises:
        Unsupported, Unavailable: It cannot be.
    """
    if Path("/sys/class/net", device).exists():
        run_batch("ip", [f"link delete dev {device}"])


def run_batch(program: str, lines: Sequence[str]) -> None:
    """Has one of iproute2's programs carry out commands, all or up to the first that fails. It blocks.

    Raises:
        Unsupported: It is not installed.
        Unavailable: A command failed.
    """
    run_program("iproute2", program, "-batch", "-", text="".join(f"{line}\n" for line in lines))


def run_program(package: str, program: str, *arguments: str, text: str = "") -> str:
    """What one of the programs says by which networks are set up. It blocks.

    Args:
        package: Debian's, that has it.
        program: It, also where an ordinary user's PATH does not lead.
        arguments: Its own.
        text: What it reads.

    Raises:
        Unsupported: It is not installed.
        Unavailable: It failed, or does not end.
    """
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if found is None:
        raise Unsupported(f"{program} is not installed", hint=f"Debian's package is {package} (apt-get install {package})")
    try:
        done = subprocess.run([found, *arguments], input=text.encode(), capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{program} did not end within {_SECONDS:g} s") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[:500]
        raise Unavailable(f"{program} failed: {said}", hint="`castoff doctor` tells what this host can do")
    return done.stdout.decode(errors="replace")


def _opened(device: str) -> int:
    if not 0 < len(device) < 16 or not device.isalnum():
        raise ValueError(f"{device!r} cannot name a tap")
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise Unsupported(
            f"tap {device} cannot be made: {error.strerror}",
            hint="it takes root, and the module tun; agent.network.mode = user does without",
        ) from error
    return descriptor


def _plug(tap: Tap) -> None:
    """Isolated: frames go to the bridge itself and to no other port, so machines reach one another through the host alone."""
    run_batch(
        "ip",
        [
            f"link set dev {tap.device} addrgenmode none",
            f"link set dev {tap.device} master {tap.bridge} up",
            f"link set dev {tap.device} type bridge_slave isolated on flood off mcast_flood off neigh_suppress off",
            f"neighbour replace {tap.address.partition('/')[0]} lladdr {tap.mac} dev {tap.bridge} nud permanent",
            *([f"neighbour replace {tap.address6} lladdr {tap.mac} dev {tap.bridge} nud permanent"] if tap.address6 else []),
        ],
    )
    run_batch("bridge", [f"fdb replace {tap.mac} dev {tap.device} master static"])
