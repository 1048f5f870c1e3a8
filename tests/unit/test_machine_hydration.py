"""How a machine's data comes in, as its timeline shows it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from castoff.machine.hydration import Hydration
from castoff.store.have import CHUNK
from castoff.timeline import Step, Timeline, recording


def _machine(tmp_path: Path, states: bytes) -> Path:
    directory = tmp_path / "machine"
    directory.mkdir()
    (directory / "lazy.state").write_bytes(states)
    return directory


def _fill(directory: Path, count: int) -> None:
    """So many chunks more are here."""
    with (directory / "lazy.state").open("r+b") as file:
        states = file.read()
        file.seek(0)
        file.write(states.replace(b"\0", b"\2", count))


def _steps(timeline: Timeline) -> dict[str, Step]:
    return {step.name: step for step in timeline.steps}


async def test_what_came_in_before_ready_and_after_it_is_told_apart(tmp_path: Path) -> None:
    """In bytes, each in a step of its own below the whole, until all is here."""
    directory = _machine(tmp_path, b"\2" * 2 + b"\0" * 8)
    with recording(Timeline()) as timeline:
        hydration = Hydration(tmp_path, directory)
        await asyncio.sleep(0.1)
        _fill(directory, 3)
        await asyncio.sleep(0.15)
        hydration.ready()
        hydration.ready()
        await asyncio.sleep(0.1)
        _fill(directory, 5)
        (directory / "lazy.state").unlink()
        async with asyncio.timeout(5):
            while _steps(timeline)["hydrate.fill"].state == "started":
                await asyncio.sleep(0.01)
        await hydration.close()
    steps = _steps(timeline)
    assert {step.state for step in timeline.steps} == {"complete"}
    assert (steps["hydrate.boot"].total, steps["hydrate.rest"].total) == (3 * CHUNK, 5 * CHUNK)
    assert steps["hydrate.fill"].attributes["here"] == steps["hydrate.fill"].attributes["chunks"] == 10
    assert steps["hydrate.rest"].parent == steps["hydrate.boot"].parent == steps["hydrate.fill"].id
    assert [step.name for step in timeline.steps].count("hydrate.ready") == 1


async def test_a_machine_that_ends_early_ends_the_steps(tmp_path: Path) -> None:
    """They say how far it came, and none is a failure; a hydrator that is gone is none either."""
    directory = _machine(tmp_path, b"\2\0\0\0")
    with recording(Timeline()) as timeline:
        hydration = Hydration(tmp_path, directory)
        await asyncio.sleep(0.02)
        _fill(directory, 1)
        await hydration.close()
        await hydration.close()
    filling = _steps(timeline)["hydrate.fill"]
    assert (filling.state, filling.done, filling.attributes["here"]) == ("complete", 2 * CHUNK, 2)
    assert {step.state for step in timeline.steps} == {"complete"}


async def test_a_machine_that_is_whole_already_has_no_steps(tmp_path: Path) -> None:
    """The hydrator has removed the states."""
    with recording(Timeline()) as timeline:
        hydration = Hydration(tmp_path, tmp_path)
        await asyncio.sleep(0)
        await hydration.close()
    assert timeline.steps == []
