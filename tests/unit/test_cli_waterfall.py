"""The waterfall of a timeline."""

import time

from castoff.cli.waterfall import beside, waterfall
from castoff.timeline import Timeline, recording, step


def _row(identity: int, name: str, started: float, ended: float, parent: int | None = None, **more: object) -> dict[str, object]:
    return {"id": identity, "name": name, "parent": parent, "state": "complete", "started": started, "ended": ended, **more}


def test_children_stand_below_their_parents_in_order_of_start() -> None:
    """Indentation shows parents; a child that was begun late in another task still stands in its parent."""
    timeline = {
        "version": 1,
        "steps": [
            _row(0, "rootfs.layered", 0, 4),
            _row(1, "vmm.qemu", 4, 5),
            _row(2, "layers.convert", 2, 4, parent=0),
            _row(3, "layers.convert", 1, 3, parent=0),
        ],
    }
    drawn = waterfall(timeline, width=100, bar="#", title="create").splitlines()
    assert [line.split("#")[0].rstrip() for line in drawn[1:]] == [
        "rootfs.layered",
        "  layers.convert",
        "  layers.convert",
        "vmm.qemu",
    ]
    assert drawn[0].split() == ["create", "5.00", "s"]
    second, third = drawn[2].index("#"), drawn[3].index("#")
    assert second < third < drawn[4].index("#")


def test_steps_that_overlap_share_columns() -> None:
    """Bars are drawn on one scale, so overlap shows."""
    timeline = {"version": 1, "steps": [_row(0, "a", 0, 2), _row(1, "b", 1, 4)]}
    first, second = waterfall(timeline, width=100, bar="#").splitlines()[1:]
    assert {i for i, c in enumerate(first) if c == "#"} & {i for i, c in enumerate(second) if c == "#"}


def test_a_real_timeline_tells_failures_and_unfinished_steps() -> None:
    """A failed step says why on its own line, on one line, and one that never ended says so."""
    timeline = Timeline()
    with recording(timeline):
        try:
            with step("image.registry"):
                raise ValueError("no\nroute")
        except ValueError:
            pass
        timeline.begin("vmm.qemu")
    drawn = waterfall(timeline.to_dict(), bar="#")
    assert "failed: no\\nroute" in drawn
    assert "vmm.qemu" in drawn and "never ended" in drawn


def test_work_done_is_told_as_size_and_rate() -> None:
    """A step with a total tells its throughput."""
    timeline = {"version": 1, "steps": [_row(0, "layers.convert", 0, 2, total=200_000_000, done=200_000_000)]}
    assert "200 MB, 100 MB/s" in waterfall(timeline)


def test_side_by_side_aligns_the_same_steps_of_two_runs() -> None:
    """Steps of the same path share a line; those of only one run leave the other column empty; totals stand below."""
    cold = {"version": 1, "steps": [_row(0, "rootfs", 0, 4), _row(1, "convert", 0, 3, parent=0), _row(2, "boot", 4, 6)]}
    warm = {"version": 1, "steps": [_row(0, "rootfs", 0, 0.1), _row(1, "boot", 0.1, 2)]}
    lines = beside([("cold", cold), ("warm", warm)], bar="#").splitlines()
    assert [line.split()[0] for line in lines] == ["cold", "rootfs", "convert", "boot", "total"]
    assert lines[1].count("ms") + lines[1].count(" s") == 2
    assert lines[2].count(" s") == 1
    assert lines[-1].split()[1:] == ["6.00", "s", "2.00", "s"]


def test_an_empty_timeline_draws_its_title() -> None:
    """Nothing ran, nothing fails."""
    assert waterfall({"version": 1, "steps": []}, title="x").split() == ["x", "0.0", "ms"]


def test_ten_thousand_steps_draw_in_no_time() -> None:
    """The drawing's cost does not grow out of hand with an image of many layers."""
    steps = [
        _row(index, f"s{index % 7}", index, index + 1, parent=None if index % 10 == 0 else index - index % 10)
        for index in range(10_000)
    ]
    begun = time.monotonic()
    assert len(waterfall({"version": 1, "steps": steps}).splitlines()) == 10_001
    assert time.monotonic() - begun < 5
