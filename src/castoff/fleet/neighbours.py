"""Which hosts this one asks for chunks, and in which order: those of its zone, then those of its region, never others.

Regions are joined by slow and dear links: what a region lacks its hosts have from the registry, and share it out among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from castoff.fleet.record import HostRecord

__all__ = ["MOST", "near"]

MOST = 24
"""Hosts that are asked at most: of a large region, others for each host."""


def near(own: HostRecord, hosts: Iterable[HostRecord], order: Callable[[str], int]) -> list[HostRecord]:
    """The hosts that may be asked, nearest first: :data:`MOST` of them for everything, the others for what only they have.

    Args:
        own: This host.
        hosts: All that are alive.
        order: By which hosts that are equally near are told apart, of their id: each asker has another, so that all are asked.
    """
    found = [host for host in hosts if host.peers and host.id != own.id and host.region == own.region]
    found.sort(key=lambda host: (host.zone != own.zone, order(host.id)))
    return found
