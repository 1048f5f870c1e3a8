"""Which regions this host's fleet has, and how many machines each takes, for the API."""

from __future__ import annotations

from collections.abc import Mapping

from castoff.agent.fleet.fleet import Fleet
from castoff.api.regions import ALONE, Room
from castoff.fleet.room import room_by_region
from castoff.lifecycle.config import Guest

__all__ = ["fleet_room"]


def fleet_room(fleet: Fleet | None, own: str) -> Room | None:
    """What the API is told of regions; None where this host is of no fleet.

    Args:
        fleet: The fleet.
        own: This host's region: it is there also while this host is cut off, when it takes what it is asked for.
    """
    if fleet is None:
        return None

    def room(guest: Guest) -> Mapping[str, int]:
        records = [member.record for member in fleet.members.alive()]
        if not records:
            return {own: ALONE}
        return room_by_region(
            records,
            cpus=guest.cpus or 1,
            memory_mb=guest.memory_mb or 0,
            gpus=max(0, guest.gpus or 0),
            gpu_kind=guest.gpu_kind or "",
        )

    return room
