"""Creates: when one begins and ends, what is remembered, and the guest's own account of its boot."""

from __future__ import annotations

import asyncio

import pytest

from castoff.api.creates import STEPS, Create, Creates
from castoff.errors import NotFound
from castoff.timeline import Step, step


class Ends:
    """Remembers what ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[Create, BaseException | None]] = []

    def on_step(self, create: Create, step: Step) -> None:
        """A step."""

    def on_end(self, create: Create, error: BaseException | None) -> None:
        """An end."""
        self.ends.append((create, error))


async def test_a_create_spans_request_and_launch() -> None:
    """The launch in a task of the request goes on with its timeline; a later launch of the same task begins one of its own."""
    creates = Creates()

    async def supervise() -> None:
        for _ in range(2):
            with creates.launching(machine="m", app="app", image="i"), step("agent.launch"):
                pass
            seen.append(creates.of("m"))

    seen: list[Create | None] = []
    with creates.asked("app"):
        with creates.resolving(), step("agent.resolve"):
            pass
        task = asyncio.create_task(supervise())
    await task
    first, second = (one for one in seen if one is not None)
    assert [one.name for one in first.timeline.steps] == ["agent.resolve", "agent.launch"]
    assert [one.name for one in second.timeline.steps] == ["agent.launch"]
    assert first.state == second.state == "complete"
    assert creates.last() == [second]


def test_a_create_that_fails_ends_once() -> None:
    """What was not found ends the create; it is not remembered as a machine's."""
    ends = Ends()
    creates = Creates([ends])
    with pytest.raises(NotFound), creates.asked("app"), creates.resolving():
        raise NotFound("no image")
    [(create, error)] = ends.ends
    assert isinstance(error, NotFound)
    assert create.state == "failed"
    assert create.error == "no image"
    assert creates.last() == []


def test_what_is_remembered_is_bounded() -> None:
    """The oldest creates are forgotten, and of one create what is beyond a number of steps."""
    creates = Creates(keep=3)
    for number in range(5):
        with creates.launching(machine=str(number), app="ab"[number % 2], image="i"):
            for _ in range(STEPS + 10):
                with step("s"):
                    pass
    assert [create.machine for create in creates.last()] == ["4", "3", "2"]
    assert [create.machine for create in creates.last("b")] == ["3"]
    assert creates.of("0") is None
    assert len(creates.last()[0].timeline.steps) == STEPS


@pytest.mark.parametrize(("kernel", "drivers", "init"), [(40, 10, 20), (10**9, 10**9, 10**9), (0, 0, 0)])
def test_the_guest_tells_of_its_boot(kernel: int, drivers: int, init: int) -> None:
    """Kernel, init and drivers are steps within the boot, whatever the guest says."""
    creates = Creates()
    with creates.launching(machine="m", app="app", image="i") as create, step("machine.boot") as boot:
        boot.attributes |= {"kernel_ms": kernel, "drivers_ms": drivers, "init_ms": init}
    found = {one.name: one for one in create.timeline.steps}
    assert boot.ended is not None
    for name in ("guest.kernel", "guest.init", "guest.drivers"):
        one = found[name]
        assert one.ended is not None
        assert boot.started <= one.started <= one.ended <= boot.ended
    assert found["guest.kernel"].parent == boot.id
    assert found["guest.drivers"].parent == found["guest.init"].id


def test_paths_are_the_operators() -> None:
    """What a page is shown of a step are numbers: no path of the host."""
    creates = Creates()
    with creates.launching(machine="m", app="app", image="i") as create, step("rootfs.prepared", path="/srv/secret", size=3):
        pass
    [row] = create.to_dict()["steps"]
    assert row["attributes"] == {"size": 3}
