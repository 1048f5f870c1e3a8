"""The bridge that machines' taps are ports of, its addresses, and what the kernel must forward.

Nothing of it is removed when the agent ends: machines outlive it, and with them their network.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from castoff.errors import Conflict, Invalid, Unsupported
from castoff.lifecycle.addresses import mac_address
from castoff.lifecycle.settings import NetworkSettings
from castoff.vmm.tap import run_batch, run_program

__all__ = ["Plan", "apply_rules", "make_bridge", "plan", "ports_of", "resolvers_of"]

_NET: Final = Path("/sys/class/net")
_SYSCTL: Final = Path("/proc/sys/net")


@dataclass(frozen=True, slots=True)
class Plan:
    """The networks that machines' addresses come from, and the host's own addresses there."""

    ipv4: ipaddress.IPv4Network
    ipv6: ipaddress.IPv6Network

    @property
    def gateway(self) -> str:
        """The host's, of IPv4."""
        return str(self.ipv4[1])

    @property
    def gateway6(self) -> str:
        """The host's, of IPv6."""
        return str(self.ipv6[1])


def plan(settings: NetworkSettings) -> Plan:
    """What the settings say.

    Raises:
        Invalid: A network, an address or the bridge's name is none.
    """
    try:
        found = Plan(ipaddress.IPv4Network(settings.ipv4), ipaddress.IPv6Network(settings.ipv6))
        for network in settings.refuse:
            ipaddress.IPv4Network(network)
        for address in settings.publish:
            ipaddress.IPv4Address(address)
        for resolver in settings.resolvers:
            ipaddress.ip_address(resolver)
    except ValueError as error:
        raise Invalid(f"agent.network: {error}") from error
    if not 0 < len(settings.bridge) < 16 or not settings.bridge.isascii() or not settings.bridge.isalnum():
        raise Invalid(f"agent.network.bridge: {settings.bridge[:40]!r} is no name of a bridge", hint="15 letters and digits")
    if found.ipv4.num_addresses < 8 or found.ipv6.num_addresses < found.ipv4.num_addresses:
        raise Invalid("agent.network: ipv4 has fewer than 8 addresses, or ipv6 fewer than that", hint="a /16 and a /64, say")
    return found


def make_bridge(settings: NetworkSettings, plan: Plan) -> None:
    """Makes the bridge, where it is not there. It blocks.

    Raises:
        Unsupported: This process may not, or something is not installed.
        Conflict: The name is another device's, or the network another's.
        Unavailable: It did not work.
    """
    name = settings.bridge
    if (_NET / name).exists():
        if not (_NET / name / "bridge").exists():
            raise Conflict(f"agent.network.bridge: {name} is a device of this host, and no bridge", hint="choose another name")
    else:
        _refuse_overlap(plan)
        # An address of its own: one that followed its ports' would change with them, and the kernel forget its neighbours then.
        run_batch("ip", [f"link add name {name} address {mac_address(plan.gateway)} type bridge stp_state 0 mcast_snooping 0"])
    length4, length6 = plan.ipv4.prefixlen, plan.ipv6.prefixlen
    run_batch(
        "ip",
        [
            f"address replace {plan.gateway}/{length4} dev {name}",
            f"address replace {plan.gateway6}/{length6} dev {name} nodad",
            f"link set dev {name} up",
        ],
    )
    _forward(name, loopback=any(ipaddress.IPv4Address(address).is_loopback for address in settings.publish))


def ports_of(bridge: str) -> list[str]:
    """The names of a bridge's ports."""
    directory = _NET / bridge / "brif"
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def apply_rules(text: str) -> None:
    """Has nftables carry out commands, all or none. It blocks.

    Raises:
        Unsupported: nft is not installed.
        Unavailable: It refused.
    """
    run_program("nftables", "nft", "-f", "-", text=text)


def resolvers_of(settings: NetworkSettings, file: Path = Path("/etc/resolv.conf")) -> list[str]:
    """The name servers that this host asks, or the settings'."""
    if settings.resolvers:
        return list(settings.resolvers)
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    words = [line.split() for line in lines]
    return [word[1] for word in words if len(word) > 1 and word[0] == "nameserver" and "%" not in word[1]][:3]


def _refuse_overlap(plan: Plan) -> None:
    """A network that the host reaches elsewhere would be gone for it."""
    for line in run_program("iproute2", "ip", "-4", "route", "show").splitlines():
        word = line.split()[0] if line.split() else "default"
        try:
            there = ipaddress.IPv4Network(word)
        except ValueError:
            continue
        if there.overlaps(plan.ipv4):
            raise Conflict(
                f"agent.network.ipv4: this host reaches {there} elsewhere ({line.strip()})", hint="choose another network"
            )


def _forward(name: str, *, loopback: bool) -> None:
    """Has the kernel forward, which is off by default; a host that takes routers' word for its own IPv6 goes on doing so."""
    for conf in (_SYSCTL / "ipv6" / "conf").iterdir() if (_SYSCTL / "ipv6").exists() else ():
        if (conf / "accept_ra").read_text().strip() == "1" and conf.name not in ("all", name):
            _write(conf / "accept_ra", "2")
    _write(_SYSCTL / "ipv4" / "ip_forward", "1")
    if (_SYSCTL / "ipv6").exists():
        _write(_SYSCTL / "ipv6" / "conf" / "all" / "forwarding", "1")
    own = _SYSCTL / "ipv4" / "conf" / name
    _write(own / "accept_redirects", "0")
    if loopback:  # what is published at 127.0.0.1 leads out of the bridge; what comes from there to it is dropped
        _write(own / "route_localnet", "1")


def _write(file: Path, text: str) -> None:
    try:
        if file.read_text().strip() != text:
            file.write_text(text)
    except OSError as error:
        raise Unsupported(
            f"{file} cannot be set to {text}: {error.strerror}", hint="agent.network.mode = bridge takes root"
        ) from error
