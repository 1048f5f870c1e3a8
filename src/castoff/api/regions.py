"""The regions that machines can be made in, and how many of a kind each takes: this host's own, or all of its fleet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from castoff.lifecycle.config import Guest

__all__ = ["ALONE", "ANY", "Room", "plan", "region_document", "region_names"]

Room = Callable[[Guest], Mapping[str, int]]
"""How many machines of a kind each region has room for; a region without room is named too."""

ALONE: Final = 1000
"""Machines that a host of no fleet says it takes: it plans nothing and makes what it is asked for."""
ANY: Final = "any"
"""A client's word for all regions that it does not name."""


def region_names(own: str, room: Room | None) -> list[str]:
    """All regions, this host's own first, then the others by name."""
    return [own, *sorted((room(Guest()) if room else {}).keys() - {own})]


def region_document(code: str) -> dict[str, Any]:
    """A region as clients read it."""
    return {
        "code": code,
        "name": code,
        "geo_region": "",
        "latitude": 0.0,
        "longitude": 0.0,
        "gateway_available": False,
        "requires_paid_plan": False,
        "deprecated": False,
    }


def plan(own: str, room: Mapping[str, int], expression: str, count: int) -> Sequence[tuple[str, int]]:
    """Where machines would go, by what is known now.

    Args:
        own: This host's region, which is filled first where the client does not say otherwise.
        room: How many each region takes.
        expression: Regions with commas between, in the order in which they are to be filled; ``any`` stands for all others.
        count: Machines; 0: as many as each region takes.

    Returns:
        Regions with how many machines they get; those that get none are left out.
    """
    wanted = [word.strip() for word in expression.split(",") if word.strip()] or [own, ANY]
    order: list[str] = []
    for word in wanted:
        named = sorted(room, key=lambda region: (region != own, -room[region], region)) if word == ANY else [word]
        order += [region for region in named if region in room and region not in order]
    left, planned = count, []
    for region in order:
        taken = min(left, room[region]) if count else room[region]
        left -= taken
        if taken:
            planned.append((region, taken))
    return planned
