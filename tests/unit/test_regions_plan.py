"""Where machines would go, by what the hosts of a fleet last said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castoff.api.regions import plan, region_names
from castoff.fleet.record import Gpus, HostRecord
from castoff.fleet.room import most_machines, room_by_region

ROOM = {"fra": 4, "nrt": 9, "iad": 2, "full": 0}


def host(region: str, **what: object) -> HostRecord:
    return HostRecord(id="0" * 16, name="host", region=region, **what)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expression", "count", "planned"),
    [
        ("", 3, [("fra", 3)]),
        ("", 6, [("fra", 4), ("nrt", 2)]),  # the roomiest of the others
        ("any", 0, [("fra", 4), ("nrt", 9), ("iad", 2)]),
        ("iad", 3, [("iad", 2)]),
        (" iad , fra ", 5, [("iad", 2), ("fra", 3)]),
        ("iad,any", 7, [("iad", 2), ("fra", 4), ("nrt", 1)]),
        ("iad,iad", 9, [("iad", 2)]),
        ("mars", 1, []),
        ("full", 1, []),
    ],
)
def test_regions_are_filled_in_the_order_asked_for(expression: str, count: int, planned: list[tuple[str, int]]) -> None:
    """This host's own first where nothing is said, ``any`` for all that were not named."""
    assert plan("fra", ROOM, expression, count) == planned


@given(
    room=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 50)),
    words=st.lists(st.sampled_from(["a", "b", "c", "any", "z", ""]), max_size=6),
    count=st.integers(0, 200),
)
def test_a_plan_never_has_more_than_there_is(room: dict[str, int], words: list[str], count: int) -> None:
    """No region gets more than it takes, none twice, none that was not asked for; nothing is left out that would fit."""
    planned = dict(found := plan("a", room, ",".join(words), count))
    assert len(planned) == len(found)
    assert all(0 < taken <= room[region] for region, taken in planned.items())
    named = {word for word in words if word}
    meant = room if not named or "any" in named else {region: room[region] for region in named & room.keys()}
    assert planned.keys() <= meant.keys()
    assert sum(planned.values()) == (min(count, sum(meant.values())) if count else sum(meant.values()))


def test_the_scarcest_counts() -> None:
    """Processors, memory or GPUs of the kind, whichever ends first."""
    there = host("fra", cpus_free=8, memory_free_mb=4096, gpus={"l40s": Gpus(total=2, free=1)})
    assert most_machines(there, cpus=1, memory_mb=256) == 8
    assert most_machines(there, cpus=1, memory_mb=2048) == 2
    assert most_machines(there, cpus=1, memory_mb=256, gpus=1, gpu_kind="l40s") == 1
    assert most_machines(there, cpus=1, memory_mb=256, gpus=1, gpu_kind="a100") == 0
    assert most_machines(there, cpus=9, memory_mb=0) == 0


def test_hosts_of_a_region_count_together() -> None:
    """Machine by machine: what no host can take alone, two halves of hosts cannot take either."""
    hosts = [
        host("fra", cpus_free=3, memory_free_mb=9999),
        host("fra", cpus_free=3, memory_free_mb=9999),
        host("nrt", cpus_free=1, memory_free_mb=9999),
    ]
    assert room_by_region(hosts, cpus=2, memory_mb=0) == {"fra": 2, "nrt": 0}


def test_the_regions_of_a_fleet() -> None:
    """This host's first; alone, it is the only one."""
    assert region_names("fra", None) == ["fra"]
    assert region_names("fra", lambda guest: ROOM) == ["fra", "full", "iad", "nrt"]
