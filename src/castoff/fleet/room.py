"""How many machines of a kind each region still takes, by what its hosts last said: a forecast, no promise."""

from __future__ import annotations

from collections.abc import Iterable

from castoff.fleet.record import HostRecord

__all__ = ["most_machines", "room_by_region"]

MOST = 1000
"""Machines that one host is said to take, however small they are."""


def most_machines(host: HostRecord, *, cpus: int, memory_mb: int, gpus: int = 0, gpu_kind: str = "") -> int:
    """How many such machines a host has room for."""
    counts = [MOST]
    if cpus:
        counts.append(host.cpus_free // cpus)
    if memory_mb:
        counts.append(host.memory_free_mb // memory_mb)
    if gpus:
        there = host.gpus.get(gpu_kind)
        counts.append(there.free // gpus if there is not None else 0)
    return min(counts)


def room_by_region(
    hosts: Iterable[HostRecord], *, cpus: int, memory_mb: int, gpus: int = 0, gpu_kind: str = ""
) -> dict[str, int]:
    """By region, how many such machines its hosts have room for together; regions that are full are named too."""
    found: dict[str, int] = {}
    for host in hosts:
        fits = most_machines(host, cpus=cpus, memory_mb=memory_mb, gpus=gpus, gpu_kind=gpu_kind)
        found[host.region] = found.get(host.region, 0) + fits
    return found
