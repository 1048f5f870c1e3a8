"""What a machine takes, as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from castoff.cli.exits import printable
from castoff.cli.text import duration, size

__all__ = ["statistics_rows"]


def statistics_rows(taken: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table.

    Args:
        taken: The answer of ``GET /v1/apps/{app}/machines/{id}/statistics``.
    """
    return [*_host(taken), *_guest(taken)]


def _host(taken: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    host = taken["host"]
    if host is None:
        yield "vmm", "in no control group of its own: this host does not count what it takes"
        return
    limit = f" of {size(taken['memory_limit'])}" if taken["memory_limit"] > 0 else ""
    peak = f", {size(host['memory_peak'])} at most so far" if host["memory_peak"] >= 0 else ""
    yield "vmm memory", f"{_known(host['memory'])}{limit}{peak}"
    yield "vmm cpu", f"{duration(host['cpu_seconds'])}, held back for {duration(host['throttled_seconds'])}"
    yield "vmm threads", str(host["pids"]) if host["pids"] >= 0 else "unknown"


def _guest(taken: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    guest = taken["guest"]
    if guest is None:
        yield "guest", f"unknown: {printable(taken['why'])}"
        return
    swap = f", swap {size(guest['swap'] - guest['swap_free'])} of {size(guest['swap'])}" if guest["swap"] else ""
    yield "up", duration(guest["up_seconds"])
    yield "load", " ".join(f"{load:.2f}" for load in guest["load"])
    yield "memory", f"{size(guest['memory'] - guest['memory_available'])} of {size(guest['memory'])} used{swap}"
    yield "network", f"{size(guest['received'])} received, {size(guest['sent'])} sent"
    for one in guest["filesystems"]:
        yield printable(one["path"]), f"{size(one['used'])} of {size(one['size'])} used, {size(one['available'])} available"


def _known(amount: int) -> str:
    return size(amount) if amount >= 0 else "unknown"
