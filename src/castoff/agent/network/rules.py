"""What may pass, as nftables have it: pure, from settings and members to commands.

Two tables, named after the bridge. In the bridge's own, a frame passes only with the addresses of the card that it comes from.
In the host's, a packet of a machine goes to machines of its app, out, to the host's name server, and nowhere else; nothing
comes in but answers, and what is published. Members are elements of sets and maps, so that one comes and goes without a
change of rules, and rules change without a moment in which there are none. What a machine sends and gets beyond its rate is
dropped, which TCP takes for a narrow link.

The host tells no machine of a shorter way to another (IPv6 has no setting for that, and IPv4 one for all cards): there is
none. What is published is for others than machines: where the kernel shows bridged packets to IP's rules, as container
engines have it do, it would hand such a one from port to port, and those are isolated.

Source: nftables, nft(8).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from castoff.lifecycle.ports import Published
from castoff.lifecycle.settings import NetworkSettings
from castoff.vmm.rates import Rates
from castoff.vmm.tap import Tap

__all__ = ["Member", "forget_members", "members_added", "members_removed", "ports_closed", "tables"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A machine of the network.

    Attributes:
        tap: Its tap.
        app: The number of its app: 1 and more.
        ports: Of the host, that lead to it.
        rates: Of which its card's counts here.
    """

    tap: Tap
    app: int
    ports: tuple[Published, ...] = ()
    rates: Rates = field(default_factory=Rates)

    @property
    def address(self) -> str:
        """Its IPv4 address."""
        return self.tap.address.partition("/")[0]


_LEAST_BURST: Final = 128 << 10
"""Bytes: packets that the host sends come to the card in bundles of up to 64 KiB."""
_SETS: Final = {
    "bridge": ("taps", "cards", "addresses", "addresses6", "rates_from", "rates_to"),
    "inet": ("apps", "apps6", "members", "members6", "published"),
}
_BRIDGE: Final = """
add table bridge {name}
add set bridge {name} taps {{ type ifname; }}
add set bridge {name} cards {{ type ifname . ether_addr; }}
add set bridge {name} addresses {{ type ifname . ipv4_addr; }}
add set bridge {name} addresses6 {{ type ifname . ipv6_addr; }}
add map bridge {name} rates_from {{ type ifname : limit; }}
add map bridge {name} rates_to {{ type ifname : limit; }}
add chain bridge {name} to_machine {{ type filter hook postrouting priority 300; policy accept; }}
add chain bridge {name} from_machine {{ type filter hook prerouting priority -300; policy accept; }}
flush chain bridge {name} from_machine
flush chain bridge {name} to_machine
add rule bridge {name} to_machine limit name oifname map @rates_to drop
add rule bridge {name} from_machine iifname != @taps accept
add rule bridge {name} from_machine limit name iifname map @rates_from drop
add rule bridge {name} from_machine iifname . ether saddr != @cards drop
add rule bridge {name} from_machine ether type ip iifname . ip saddr == @addresses accept
add rule bridge {name} from_machine ether type ip6 iifname . ip6 saddr == @addresses6 accept
add rule bridge {name} from_machine ether type arp iifname . arp saddr ip == @addresses iifname . arp saddr ether == @cards accept
add rule bridge {name} from_machine drop
"""
_INET: Final = """
add table inet {name}
add map inet {name} apps {{ type ipv4_addr : mark; }}
add map inet {name} apps6 {{ type ipv6_addr : mark; }}
add set inet {name} members {{ type ipv4_addr . mark; }}
add set inet {name} members6 {{ type ipv6_addr . mark; }}
add map inet {name} published {{ type ipv4_addr . inet_service : ipv4_addr . inet_service; }}
add chain inet {name} to_published {{ type nat hook prerouting priority dstnat; policy accept; }}
add chain inet {name} to_published_here {{ type nat hook output priority -100; policy accept; }}
add chain inet {name} outward {{ type nat hook postrouting priority srcnat; policy accept; }}
add chain inet {name} to_host {{ type filter hook input priority filter; policy accept; }}
add chain inet {name} from_host {{ type filter hook output priority filter; policy accept; }}
add chain inet {name} through {{ type filter hook forward priority filter; policy accept; }}
flush chain inet {name} to_published
flush chain inet {name} to_published_here
flush chain inet {name} outward
flush chain inet {name} to_host
flush chain inet {name} from_host
flush chain inet {name} through
add rule inet {name} to_published iifname != "{name}" dnat ip to ip daddr . tcp dport map @published
add rule inet {name} to_published_here dnat ip to ip daddr . tcp dport map @published
add rule inet {name} outward ip saddr {ipv4} oifname != "{name}" masquerade
add rule inet {name} outward ip6 saddr {ipv6} oifname != "{name}" masquerade
add rule inet {name} outward ip saddr 127.0.0.0/8 oifname "{name}" masquerade
add rule inet {name} to_host iifname != "{name}" accept
add rule inet {name} to_host ct state established,related accept
add rule inet {name} to_host ip daddr 127.0.0.0/8 drop
add rule inet {name} to_host ip daddr {gateway} udp dport 53 accept
add rule inet {name} to_host ip daddr {gateway} tcp dport 53 accept
add rule inet {name} to_host ip daddr {gateway} icmp type echo-request accept
add rule inet {name} to_host ip6 daddr {gateway6} icmpv6 type echo-request accept
add rule inet {name} to_host icmpv6 type nd-neighbor-solicit accept
add rule inet {name} to_host icmpv6 type nd-neighbor-advert accept
add rule inet {name} to_host drop
add rule inet {name} from_host oifname "{name}" icmpv6 type nd-redirect drop
add rule inet {name} from_host oifname "{name}" icmp type redirect drop
add rule inet {name} through iifname != "{name}" oifname != "{name}" accept
add rule inet {name} through ct state established,related accept
add rule inet {name} through ct status dnat accept
add rule inet {name} through iifname != "{name}" drop
{refused}add rule inet {name} through oifname != "{name}" accept
add rule inet {name} through meta mark set 0
add rule inet {name} through meta mark set ip saddr map @apps
add rule inet {name} through meta mark set ip6 saddr map @apps6
add rule inet {name} through ip daddr . meta mark == @members accept
add rule inet {name} through ip6 daddr . meta mark == @members6 accept
add rule inet {name} through drop
"""


def tables(settings: NetworkSettings, *, ipv4: str, ipv6: str, gateway: str, gateway6: str) -> str:
    """Both tables with all rules. Those that are there keep their members."""
    name = settings.bridge
    refused = "".join(
        f'add rule inet {name} through oifname != "{name}" ip daddr {network} drop\n' for network in settings.refuse
    )
    inet = _INET.format(name=name, ipv4=ipv4, ipv6=ipv6, gateway=gateway, gateway6=gateway6, refused=refused)
    return _BRIDGE.format(name=name) + inet


def members_added(settings: NetworkSettings, members: Iterable[Member]) -> str:
    """Lets members' packets pass."""
    members = list(members)
    limits = [
        f"add limit bridge {settings.bridge} {name} {{ rate over {rate} bytes/second burst {burst} bytes; }}\n"
        for member in members
        for name, rate, burst in _limits(member)
    ]
    return "".join(limits) + _change("add", settings, members)


def members_removed(settings: NetworkSettings, members: Iterable[Member]) -> str:
    """The opposite; each must be there."""
    members = list(members)
    limits = [f"delete limit bridge {settings.bridge} {name}\n" for member in members for name, _, _ in _limits(member)]
    return _change("delete", settings, members) + "".join(limits)


def ports_closed(settings: NetworkSettings, member: Member) -> str:
    """What a member publishes leads nowhere: the host itself refuses, where nothing of its own listens there."""
    return f"delete element inet {settings.bridge} published {{ {', '.join(_published(member, settings.publish))} }}\n"


def forget_rates(settings: NetworkSettings) -> str:
    """No rates are left: nftables cannot flush them, so their table goes, for the transaction that makes it anew."""
    return f"add table bridge {settings.bridge}\ndelete table bridge {settings.bridge}\n"


def _limits(member: Member) -> list[tuple[str, int, int]]:
    """A member's limits: each one's name, bytes a second, and bytes that may come at once."""
    rate = member.rates.network_bytes
    burst = max(_LEAST_BURST, int(rate * member.rates.burst_seconds))
    return [(f"{member.tap.device}_{way}", rate, burst) for way in ("from", "to")] if rate else []


def forget_members(settings: NetworkSettings) -> str:
    """Nobody's packets pass: for the transaction that adds those that there are."""
    return "".join(
        f"flush {'map' if name in _MAPS else 'set'} {family} {settings.bridge} {name}\n"
        for family, names in _SETS.items()
        for name in names
    )


_MAPS: Final = {"apps", "apps6", "published", "rates_from", "rates_to"}


def _change(verb: str, settings: NetworkSettings, members: Iterable[Member]) -> str:
    elements: dict[tuple[str, str], list[str]] = {}
    for member in members:
        for place, texts in _elements(member, settings.publish).items():
            elements.setdefault(place, []).extend(texts)
    return "".join(
        f"{verb} element {family} {settings.bridge} {name} {{ {', '.join(texts)} }}\n"
        for (family, name), texts in elements.items()
        if texts
    )


def _elements(member: Member, hosts: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    tap, own, app = member.tap, member.address, f"0x{member.app:08x}"
    found = {
        ("bridge", "taps"): [f'"{tap.device}"'],
        ("bridge", "cards"): [f'"{tap.device}" . {tap.mac}'],
        ("bridge", "addresses"): [f'"{tap.device}" . {own}'],
        ("bridge", "rates_from"): [f'"{tap.device}" : "{name}"' for name, _, _ in _limits(member)[:1]],
        ("bridge", "rates_to"): [f'"{tap.device}" : "{name}"' for name, _, _ in _limits(member)[1:]],
        ("inet", "apps"): [f"{own} : {app}"],
        ("inet", "members"): [f"{own} . {app}"],
        ("inet", "published"): _published(member, hosts),
    }
    if tap.address6:
        # The card's own link-local address: neighbours of the host's are asked from it.
        found["bridge", "addresses6"] = [f'"{tap.device}" . {tap.address6}', f'"{tap.device}" . {_link_local(tap.mac)}']
        found["inet", "apps6"] = [f"{tap.address6} : {app}"]
        found["inet", "members6"] = [f"{tap.address6} . {app}"]
    return found


def _published(member: Member, hosts: Sequence[str]) -> list[str]:
    return [f"{host} . {port.host_port} : {member.address} . {port.guest_port}" for host in hosts for port in member.ports]


def _link_local(mac: str) -> str:
    """What a card of that address takes by itself (RFC 4291, appendix A)."""
    first, *rest = (int(part, 16) for part in mac.split(":"))
    a, b, c, d, e = rest
    return f"fe80::{first ^ 2:x}{a:02x}:{b:x}ff:fe{c:02x}:{d:x}{e:02x}"
