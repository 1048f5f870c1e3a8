"""``make bench``: measures castoff beside what people use today, and writes docs/bench/results.json and charts.

``python -m bench [--quick] [--only GROUP,...] [--directory DIR] [--results DIR]``. With ``--quick`` or ``--only`` nothing is
written to docs/, unless ``--results docs/bench`` says so: then the groups that were measured replace what was there of them.
What is compared with one another is always of one group, and so of one run. The exit status is 1 if a target was missed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bench import (
    agent,
    answers,
    boot_chart,
    boots,
    chart,
    cold,
    compose,
    density,
    extents,
    flat,
    fleet,
    lazy,
    placement,
    readme,
    registry,
    results,
    stampede,
    start,
    warm,
)
from bench.measure import Failed
from bench.results import Row
from bench.stage import PREFIX, Stage, stage
from castoff.errors import CastoffError

GROUPS: dict[str, Callable[[Stage], Iterable[Row]]] = {
    "cold": cold.rows,
    "registry": registry.rows,
    "flat": flat.rows,
    "compose": compose.rows,
    "extents": extents.rows,
    "warm": warm.rows,
    "start": start.rows,
    "density": density.rows,
    "agent": agent.rows,
    "answers": answers.rows,
    "lazy": lazy.rows,
    "boots": boots.rows,
    "fleet": fleet.rows,
    "region": stampede.rows,
    "placement": placement.rows,
}
_APART = {"region", "placement"}
"""Groups that are measured when they are asked for, with results of their own."""
_LONG = {"lazy", "boots", "fleet"}
"""Groups that take longer than all others together: ``--quick`` leaves them out, where it is not told otherwise."""
_DOCS = Path("docs/bench")


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="one round of each, no 10 GB image, no lazy boots")
    parser.add_argument("--only", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--directory", type=Path, default=Path(f"/var/tmp/{PREFIX}{os.getpid()}"), help="scratch; must not exist")
    parser.add_argument("--results", type=Path, help="where the results go (docs/bench, if the run is a complete one)")
    arguments = parser.parse_args(words)
    if arguments.only is None:
        arguments.only = ",".join(name for name in GROUPS if name not in _APART and not (arguments.quick and name in _LONG))
    unknown = set(arguments.only.split(",")) - GROUPS.keys()
    if unknown:
        parser.error(f"no group {', '.join(sorted(unknown))}")
    return arguments


def _write(directory: Path, rows: list[Row], command: str, seconds: float) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    before = directory / "results.json"
    known = results.from_json(before.read_text()) if before.exists() else []
    new = {group: [row for row in rows if row.group == group] for group in GROUPS}
    rows = [row for group in GROUPS for row in new[group] or [row for row in known if row.group == group]]
    text = results.to_json(rows, command=command, seconds=seconds)
    (directory / "results.json").write_text(text)
    (directory / "chart.svg").write_text(chart.svg(results.from_json(text)))
    for row in rows:
        if row.name == boots.PICTURE:
            (directory / "boot.svg").write_text(boot_chart.svg(dict(row.measured)))
    print(f"written: {directory / 'results.json'}, and the charts beside it")


def main(words: list[str]) -> int:
    """Runs the groups; the exit status."""
    arguments = _arguments(words)
    if os.geteuid() != 0:
        print("bench: needs root: containerd and the store's own filesystem do", file=sys.stderr)
        return 2
    chosen = arguments.only.split(",")
    begun = time.monotonic()
    rows: list[Row] = []
    failed = False
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))  # as an exception: everything is cleared away
    with stage(arguments.directory, quick=arguments.quick) as where:
        for name in chosen:
            print(f"bench: {name}", file=sys.stderr, flush=True)
            found: list[Row] = []
            try:
                found.extend(GROUPS[name](where))  # what it had measured before it failed stays
            except (Failed, CastoffError, subprocess.CalledProcessError) as error:
                print(f"bench: {name}: {error}", file=sys.stderr)
                failed = True
            rows += found
            print(results.table(found), flush=True)
    missed = [row for row in rows if row.verdict == "missed"]
    print(f"\n{len(rows)} rows, {len(missed)} targets missed, {time.monotonic() - begun:.0f} s")
    complete = not failed and not arguments.quick and set(chosen) == GROUPS.keys() - _APART
    if target := arguments.results or (_DOCS if complete else None):
        command = "make bench-fleet" if set(chosen) == _APART else "make bench"
        _write(target, rows, "python -m bench --quick" if arguments.quick else command, time.monotonic() - begun)
        if target == _DOCS:
            readme.main()
    return 1 if failed or missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
