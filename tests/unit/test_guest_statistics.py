"""Statistics of a guest: as its init writes them, and whatever else a hostile one might."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as some

from castoff.cli.statistics import statistics_rows
from castoff.errors import Invalid
from castoff.vmm.guest_statistics import GuestFilesystem, parse_statistics


def test_every_number_has_its_place() -> None:
    """As docs/formats.md has them."""
    machine = (1000, 400, 50, 20, 1500, 250, 0, 61_000, 100, 50, 200, 9000, 70, 10, 20, 5, 7777, 8888)
    found = parse_statistics(struct.pack("<24Q", *machine, 10, 4, 5, 100, 40, 50), ("/", "/data"))
    assert (found.memory, found.memory_available, found.swap, found.swap_free) == (1000, 400, 50, 20)
    assert found.load == (1.5, 0.25, 0) and found.up_seconds == 61
    assert (found.user_seconds, found.system_seconds, found.idle_seconds) == (1.5, 2.3, 90)
    assert (found.waiting_seconds, found.stolen_seconds, found.received, found.sent) == (0.7, 0.05, 7777, 8888)
    assert found.filesystems == (
        GuestFilesystem(path="/", size=10, used=4, available=5),
        GuestFilesystem(path="/data", size=100, used=40, available=50),
    )


@given(data=some.binary(max_size=400), paths=some.lists(some.text(), max_size=3))
def test_a_hostile_guest_can_lie_and_no_more(data: bytes, paths: list[str]) -> None:
    """Any other length is refused; any numbers are numbers."""
    if len(data) == 144 + 24 * len(paths):
        assert len(parse_statistics(data, paths).filesystems) == len(paths)
    else:
        with pytest.raises(Invalid, match="statistics are broken"):
            parse_statistics(data, paths)


def test_what_is_not_known_is_said() -> None:
    """No group, no guest; a kernel that does not tell all."""
    rows = dict(statistics_rows({"host": None, "guest": None, "why": "it hangs\x1b[2J", "memory_limit": -1}))
    assert "no control group" in rows["vmm"] and rows["guest"].startswith("unknown: it hangs") and "\x1b" not in rows["guest"]
    host = {"memory": 5_000_000, "memory_peak": -1, "cpu_seconds": 1.5, "throttled_seconds": 0.25, "pids": -1}
    rows = dict(statistics_rows({"host": host, "guest": None, "why": "", "memory_limit": 10_000_000}))
    assert rows["vmm memory"] == "5.00 MB of 10.0 MB" and rows["vmm cpu"] == "1.50 s, held back for 250 ms"
    assert rows["vmm threads"] == "unknown"
