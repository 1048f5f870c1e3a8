"""Twenty machines of five images that all come in at once, served by one hydrator: the memory that it takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from bench.images.__main__ import FLEET
from bench.lazy_lab import lab, push
from bench.measure import Failed
from bench.results import Row, at_most
from bench.stage import Stage
from castoff.hydrate.record import read_record

__all__ = ["high_water", "rows"]

_MACHINES = 20
_MEGABITS = 10
"""Of the link: so little that the first machines still come in when the last begin."""
_PROGRAM = ("sh", "-c", "echo ready; sleep 900")


def rows(stage: Stage) -> Iterable[Row]:
    """One figure: the most that the hydrator had, from the first machine's create until all were served."""
    with lab(stage, FLEET[0]) as first:
        labs = [first, *(replace(first, image=name, digest=push(first.near, name, ("plain",))) for name in FLEET[1:])]
        for one in labs:
            one.forget()
            one.publish(one.reference("plain", one.near.host))
        first.forget()
        first.far.shape(_MEGABITS)
        settings = first.settings(background=True)
        with contextlib.ExitStack() as stack:
            machines = []
            for number in range(_MACHINES):
                one = labs[number % len(labs)]
                machines.append(stack.enter_context(one.served(one.reference("plain", one.far.host), settings, _PROGRAM)))
            time.sleep(2.0)
            peaks = [high_water(pid) for pid in first.hydrator()]
            complete = sum(read_record(machine).complete for machine in machines)
        if complete > _MACHINES // 2 or len(peaks) != 1:
            raise Failed(f"{complete} of {_MACHINES} machines are complete, and {len(peaks)} hydrators run: nothing is measured")
    name = f"memory of the hydrator, {_MACHINES} machines of {len(FLEET)} images"
    yield Row("fleet", name, sum(peaks) / 1e6, "MB", at_most(200), {"complete": complete})


def high_water(pid: int) -> int:
    """The most memory that a process had, in bytes."""
    words = Path(f"/proc/{pid}/status").read_text().split()
    return int(words[words.index("VmHWM:") + 1]) << 10
