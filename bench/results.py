"""Rows of results: what was measured, what it should be, whether it is; as JSON and as text."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Row", "Target", "Verdict", "at_least", "at_most", "environment", "figure", "from_json", "table", "to_json"]

Verdict = Literal["met", "missed", "told"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should be."""

    want: Literal["at least", "at most"]
    figure: float

    def share(self, value: float) -> float:
        """How far ``value`` meets it: 1 is just met, 2 is twice as good; infinite for nothing where little was allowed."""
        good, bad = (value, self.figure) if self.want == "at least" else (self.figure, value)
        return good / bad if bad > 0 else math.inf


def at_least(figure: float) -> Target:
    """The value should be ``figure`` or more."""
    return Target("at least", figure)


def at_most(figure: float) -> Target:
    """The value should be ``figure`` or less."""
    return Target("at most", figure)


@dataclass(frozen=True, slots=True)
class Row:
    """One result.

    Attributes:
        group: The group of measurements that made it.
        name: What it says, for people.
        value: The figure.
        unit: Of ``value`` and ``target``: ``x`` is a ratio of two things measured in this run.
        target: What it should be, None where it is told for its own sake.
        measured: What the figure was made from, medians unless said otherwise.
    """

    group: str
    name: str
    value: float
    unit: str
    target: Target | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """Whether the target is met."""
        if self.target is None:
            return "told"
        return "met" if self.target.share(self.value) >= 1 else "missed"


def figure(value: float, unit: str) -> str:
    """A figure for people: three digits or so."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 or value == 0 else 4
    return f"{value:,.{digits}f} {unit}"


def table(rows: Sequence[Row]) -> str:
    """The rows as text, group by group."""
    lines = []
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            lines.append(f"\n{group}")
        target = "" if row.target is None else f"{row.target.want} {figure(row.target.figure, row.unit)}"
        lines.append(f"  {row.name:<76} {figure(row.value, row.unit):>14}  {target:<20} {row.verdict}")
    return "\n".join(lines)


def _version(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except OSError:
        return "not installed"
    return next(iter((done.stdout + done.stderr).splitlines()), "").strip()


def environment() -> dict[str, Any]:
    """What the figures depend on besides castoff."""
    commands = {
        "containerd": ["containerd", "--version"],
        "umoci": ["umoci", "--version"],
        "skopeo": ["skopeo", "--version"],
        "mke2fs": ["mke2fs", "-V"],
        "tar": ["tar", "--version"],
        "qemu": ["qemu-system-x86_64", "--version"],
    }
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(pages / (1 << 30), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: _version(command) for name, command in commands.items()},
    }


def to_json(rows: Sequence[Row], *, command: str, seconds: float) -> str:
    """The rows, with what they depend on."""
    value = {
        "version": 1,
        "command": command,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(seconds),
        "environment": environment(),
        "rows": [_rounded(asdict(row) | {"verdict": row.verdict}) for row in rows],
    }
    return json.dumps(value, indent=2) + "\n"


def from_json(text: str) -> list[Row]:
    """The rows of :func:`to_json`'s text."""
    rows = []
    for value in json.loads(text)["rows"]:
        del value["verdict"]
        target = value.pop("target")
        rows.append(Row(**value, target=target and Target(**target)))
    return rows


def _rounded(value: Any) -> Any:
    """The same with floats of five digits: more would only be noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value
