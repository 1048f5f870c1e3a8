"""A timeline as a waterfall: each step a line, children indented below their parents, a bar for when it ran.

Works on a timeline's JSON form (``Timeline.to_dict``), so that ``castoff timeline`` draws stored ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from castoff.cli.exits import printable
from castoff.cli.text import duration, size

__all__ = ["beside", "waterfall"]

Row = Mapping[str, Any]

_NAME_WIDTH = 34


def waterfall(timeline: Mapping[str, Any], *, width: int = 100, bar: str = "█", title: str = "") -> str:
    """Draws a timeline.

    Args:
        timeline: ``{"version": 1, "steps": [...]}``.
        width: Columns to fill; at least 70 are used.
        bar: The character of the bars: ``#`` where the terminal speaks ASCII only.
        title: Stands above, with the whole time at its right.
    """
    steps: Sequence[Row] = timeline["steps"]
    end = max((_end(step) for step in steps), default=0.0)
    room = max(70, width) - _NAME_WIDTH - 12
    lines = []
    for depth, step in _in_order(steps):
        name = _clip("  " * depth + printable(str(step["name"])), _NAME_WIDTH)
        spent = duration(_end(step) - step["started"])
        lines.append(f"{name:<{_NAME_WIDTH}} {_bar(step, end, room, bar)} {spent:>9}{_note(step)}".rstrip())
    head = f"{_clip(title, _NAME_WIDTH + room):<{_NAME_WIDTH + 1 + room}} {duration(end):>9}"
    return "\n".join([head.rstrip(), *lines])


def beside(timelines: Sequence[tuple[str, Mapping[str, Any]]], *, bar: str = "█") -> str:
    """Several timelines side by side, on one scale: steps of the same name and place share a line.

    Args:
        timelines: Titles and timelines, in the order of the columns.
        bar: The character of the bars.
    """
    room = 28
    end = max((_end(step) for _, timeline in timelines for step in timeline["steps"]), default=0.0)
    keyed = [dict(_keys(timeline["steps"])) for _, timeline in timelines]
    order = _merge([list(table) for table in keyed])
    cell = room + 10
    head = " " * _NAME_WIDTH + "".join(f"  {_clip(title, cell):<{cell}}" for title, _ in timelines)
    lines = [head.rstrip()]
    for key in order:
        name = _clip("  " * (len(key) - 1) + printable(key[-1][0]), _NAME_WIDTH)
        cells = []
        for table in keyed:
            step = table.get(key)
            drawn = "" if step is None else f"{_bar(step, end, room, bar)} {duration(_end(step) - step['started']):>9}"
            cells.append(f"  {drawn:<{cell}}")
        lines.append((f"{name:<{_NAME_WIDTH}}" + "".join(cells)).rstrip())
    totals = [max((_end(step) for step in timeline["steps"]), default=0.0) for _, timeline in timelines]
    lines.append((f"{'total':<{_NAME_WIDTH}}" + "".join(f"  {duration(total):>{cell}}" for total in totals)).rstrip())
    return "\n".join(lines)


def _end(step: Row) -> float:
    """When a step ended; one that never did (the process was killed) has no length."""
    ended = step.get("ended")
    return float(step["started"] if ended is None else ended)


def _in_order(steps: Sequence[Row]) -> Iterator[tuple[int, Row]]:
    """Steps with their depth: parents before children, siblings by their start."""
    children: dict[int | None, list[Row]] = {}
    for step in steps:
        children.setdefault(step.get("parent"), []).append(step)
    stack = [(0, step) for step in sorted(children.get(None, []), key=_start, reverse=True)]
    while stack:
        depth, step = stack.pop()
        yield depth, step
        stack.extend((depth + 1, child) for child in sorted(children.get(step["id"], []), key=_start, reverse=True))


def _start(step: Row) -> float:
    return float(step["started"])


def _bar(step: Row, end: float, room: int, character: str) -> str:
    """The bar of one step on a scale of ``end`` seconds over ``room`` columns; never empty."""
    if end <= 0:
        return " " * room
    first = min(room - 1, int(step["started"] / end * room))
    last = max(first + 1, min(room, round(_end(step) / end * room)))
    return " " * first + character * (last - first) + " " * (room - last)


def _note(step: Row) -> str:
    """What stands behind the time: the work done, or the failure."""
    if step["state"] == "failed":
        return f"  failed: {_clip(printable(str(step.get('error', ''))), 60)}"
    if step["state"] == "started":
        return "  never ended"
    total = step.get("total")
    spent = _end(step) - step["started"]
    if not total or spent < 0.05:
        return ""
    return f"  {size(total)}, {size(total / spent)}/s"


def _keys(steps: Sequence[Row]) -> Iterator[tuple[tuple[tuple[str, int], ...], Row]]:
    """Each step under its path of (name, how many of that name before it below this parent)."""
    path: list[tuple[str, int]] = []
    counts: dict[tuple[tuple[str, int], ...], int] = {}
    for depth, step in _in_order(steps):
        del path[depth:]
        place = (*path, (str(step["name"]), -1))
        ordinal = counts.get(place, 0)
        counts[place] = ordinal + 1
        path.append((str(step["name"]), ordinal))
        yield tuple(path), step


def _merge(orders: Sequence[Sequence[tuple[tuple[str, int], ...]]]) -> list[tuple[tuple[str, int], ...]]:
    """One order that holds every key, each after the one that it follows in its own timeline."""
    merged: list[tuple[tuple[str, int], ...]] = []
    for order in orders:
        place = 0
        for key in order:
            if key in merged:
                place = merged.index(key) + 1
            else:
                merged.insert(place, key)
                place += 1
    return merged


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
