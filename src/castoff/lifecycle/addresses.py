"""The addresses of machines: each has one of IPv4 and one of IPv6 for its whole life, of the same number, and no other has them.

What a machine has is in its row, written with the row; this is the memory of it that makes two machines that are made at once
have two.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Final

from castoff.errors import Unavailable
from castoff.lifecycle.model import Machine
from castoff.lifecycle.states import ACTIVE

__all__ = ["Addresses", "mac_address"]

_FIRST: Final = 2
"""The network's own is 0, and the host's 1."""
_CARDS: Final = 0x02CA << 32
"""MAC addresses of our own giving (the second bit of the first byte says so) that end with the number."""


class Addresses:
    """Of one host's machines.

    Args:
        ipv4, ipv6: The networks that they come from; None: machines have none.
    """

    def __init__(self, ipv4: IPv4Network | None = None, ipv6: IPv6Network | None = None) -> None:
        self._networks = None if ipv4 is None or ipv6 is None else (ipv4, ipv6)
        self._numbers: dict[str, int] = {}
        self._taken: set[int] = set()
        self._next = _FIRST

    def load(self, machines: Iterable[Machine]) -> None:
        """Knows those that machines have. One of another network, or another's, gets a new one at its next start."""
        for machine in machines:
            number = self._number(machine)
            if number is not None and machine.state in ACTIVE and number not in self._taken:
                self._numbers[machine.id] = number
                self._taken.add(number)

    def take(self, machine: str) -> tuple[str, str]:
        """A machine's addresses; new ones, where it has none. Empty texts where machines have none.

        Raises:
            Unavailable: All are taken.
        """
        if self._networks is None:
            return "", ""
        number = self._numbers.get(machine)
        if number is None:
            number = self._numbers[machine] = self._free()
            self._taken.add(number)
        ipv4, ipv6 = self._networks
        return str(ipv4[number]), str(ipv6[number])

    def release(self, machine: str) -> None:
        """A machine is no more. Idempotent."""
        number = self._numbers.pop(machine, None)
        if number is not None:
            self._taken.discard(number)

    def _free(self) -> int:
        """The one that was free for longest, about: who still knows an old machine's address should not reach a new one."""
        assert self._networks is not None
        end = self._networks[0].num_addresses - 1  # the last is everybody's
        if len(self._taken) >= end - _FIRST:
            raise Unavailable(
                f"all {end - _FIRST} addresses of {self._networks[0]} are taken",
                hint="destroy machines, or give agent.network.ipv4 more",
            )
        while self._next in self._taken or not _FIRST <= self._next < end:
            self._next = self._next + 1 if self._next < end else _FIRST
        number = self._next
        self._next += 1
        return number

    def _number(self, machine: Machine) -> int | None:
        if self._networks is None or not machine.address:
            return None
        ipv4, ipv6 = self._networks
        number = int(IPv4Address(machine.address)) - int(ipv4.network_address)
        inside = _FIRST <= number < ipv4.num_addresses - 1
        return number if inside and str(ipv6[number]) == machine.address6 else None


def mac_address(address: str) -> str:
    """The MAC address of the card that has an IPv4 address."""
    text = f"{_CARDS | int(IPv4Address(address)):012x}"
    return ":".join(text[at : at + 2] for at in range(0, 12, 2))
