"""Health checks of machines that run in memory: what is asked, what is told of it, and what of it is written down."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from castoff.api.wire.machine import machine_document
from castoff.errors import Invalid
from castoff.fakes.launcher import World
from castoff.lifecycle.checks import check_statuses, machine_checks
from castoff.lifecycle.config import parse_config
from castoff.lifecycle.launcher import Probe
from castoff.lifecycle.machines import Machine, Machines
from castoff.lifecycle.states import State
from lifecycle import changed, opened, settled, wanted

WEB = {"web": {"type": "tcp", "port": 8080, "interval": "1s", "timeout": "1s", "grace_period": "0s"}}


def configured(**config: Any) -> Any:
    return machine_checks(parse_config({"image": "alpine", **config}))


def test_checks_are_read_from_both_places() -> None:
    """With their defaults; a service's is of the service's own port where it names none."""
    header = {"name": "X-Probe", "values": ["a", "b"]}
    first, second, third = configured(
        checks={"up": {"type": "http", "port": 80, "protocol": "https", "tls_skip_verify": True, "headers": [header]}},
        services=[
            {"internal_port": 8080, "checks": [{"type": "tcp", "interval": "100ms", "timeout": "1h", "grace_period": "1m"}]},
            {"internal_port": 9090, "checks": [{"type": "http", "method": "head", "path": "/up?x=1", "port": 9091}]},
        ],
    )
    headers = (("X-Probe", "a"), ("X-Probe", "b"))
    assert first.probe == Probe(port=80, http=True, tls=True, verify=False, headers=headers)
    assert (first.name, first.interval, first.timeout, first.grace) == ("up", 15, 5, 5)
    assert (second.name, second.probe) == ("servicecheck-00-tcp-8080", Probe(port=8080))
    assert (second.interval, second.timeout, second.grace) == (1, 60, 60)
    assert (third.name, third.probe) == ("servicecheck-01-http-9091", Probe(port=9091, http=True, method="HEAD", path="/up?x=1"))


@pytest.mark.parametrize(
    ("check", "why"),
    [
        ({"type": "tcp"}, "names no port"),
        ({"type": "tcp", "port": 1, "interval": "soon"}, "not a duration"),
        ({"type": "http", "port": 1, "path": "no-slash"}, "path"),
        ({"type": "http", "port": 1, "path": "/a b"}, "path"),
        ({"type": "http", "port": 1, "path": "/a\r\nX: y"}, "path"),
        ({"type": "http", "port": 1, "method": "GET /"}, "method"),
        ({"type": "http", "port": 1, "method": "CONNECT"}, "method"),
        ({"type": "http", "port": 1, "protocol": "gopher"}, "protocol"),
        ({"type": "http", "port": 1, "headers": [{"name": "A:", "values": [""]}]}, "header"),
        ({"type": "http", "port": 1, "headers": [{"name": "A", "values": ["x\r\nB: y"]}]}, "header"),
        ({"type": "http", "port": 1, "headers": [{"name": "Content-Length", "values": ["9"]}]}, "header"),
    ],
)
def test_what_cannot_be_asked_is_refused(check: dict[str, Any], why: str) -> None:
    """With the name of the check, before a machine is made."""
    with pytest.raises(Invalid, match=f"check 'bad': .*{why}"):
        configured(checks={"bad": check})
    with pytest.raises(Invalid, match="cannot be its name"):
        configured(checks={"x" * 129: {"port": 1}})
    with pytest.raises(Invalid, match="33 are given"):
        configured(checks={str(number): {"port": 1} for number in range(33)})


async def until_status(machines: Machines, machine: Machine, *statuses: str) -> Machine:
    """The machine once its checks have these statuses."""
    async with asyncio.timeout(20):
        while True:
            now = machines.get(None, machine.id)
            if tuple(check.status for check in check_statuses(now)) == statuses:
                return now
            await asyncio.sleep(0.01)


async def test_statuses_follow_what_is_answered(tmp_path: Path) -> None:
    """A warning until something is known, then passing and critical; ready is told; a change is an event; the machine runs on."""
    world = World()
    async with opened(tmp_path, world) as machines:
        machine = await machines.create("shop", wanted(checks=WEB))
        (waiting,) = check_statuses(machine)
        assert (waiting.name, waiting.status) == ("web", "warning")
        now = await until_status(machines, machine, "critical")
        assert check_statuses(now)[0].output == "connect to port 8080: Connection refused"
        assert not world.ready
        world.ports[8080] = "Success"
        now = await until_status(machines, machine, "passing")
        assert world.ready[0] == machine.id
        (document,) = machine_document(now)["checks"]
        assert document["output"] == "Success" and document["updated_at"].endswith("Z")
        world.ports[8080] = None
        now = await until_status(machines, machine, "critical")
        assert check_statuses(now)[0].output == "no answer within 1 s"
        assert now.state == State.STARTED
        *later, event = [event for event in now.events if event.type == "check"]
        assert event.status == "critical" and event.request is not None and event.request["check"]["name"] == "web"
        times = [event.timestamp, *(other.timestamp for other in reversed(later))]
        assert all(after - before > 29_000 for before, after in itertools.pairwise(times)), "events are no log"
        waited = await machines.wait("shop", machine.id, states={State.STARTED}, timeout=1)
        assert waited.event_id != event.id, "a check is no change of state"


async def test_probes_cost_no_commit_and_end_with_the_machine(tmp_path: Path) -> None:
    """What is found is in memory; a stopped machine is not asked, and its checks say so; an update asks what is new."""
    world = World()
    world.ports[8080] = "Success"
    async with opened(tmp_path, world) as machines:
        machine = await machines.create("shop", wanted(checks=WEB))
        now = await until_status(machines, machine, "passing")
        written = now.updated
        asked = len(world.probes)
        async with asyncio.timeout(20):
            while len(world.probes) < asked + 2:
                await asyncio.sleep(0.01)
        assert machines.get(None, machine.id).updated == written
        await machines.stop("shop", machine.id)
        now = await settled(machines, machine, State.STOPPED)
        (check,) = check_statuses(now)
        assert (check.status, check.output) == ("warning", "the machine is stopped")
        asked = len(world.probes)
        other = {"other": {"port": 9, "interval": "1s", "grace_period": "1h"}}
        await machines.update("shop", machine.id, changed(checks=other))
        await settled(machines, machine, State.STARTED)
        async with asyncio.timeout(20):
            while not any(probe.port == 9 for _, probe in world.probes[asked:]):
                await asyncio.sleep(0.01)
        assert {probe.port for _, probe in world.probes[asked:]} == {9}
        now = await until_status(machines, machine, "warning")  # a failure within the grace
        assert not [event for event in now.events if event.type == "check" and event.status == "warning"]


async def test_an_agent_that_comes_back_asks_again(tmp_path: Path) -> None:
    """Nothing of what was found is on disk but events."""
    world = World()
    world.ports[8080] = "Success"
    async with opened(tmp_path, world) as machines:
        machine = await machines.create("shop", wanted(checks=WEB))
        await until_status(machines, machine, "passing")
    asked = len(world.probes)
    async with opened(tmp_path, world) as machines:
        assert machines.get(None, machine.id).checks == ()
        await until_status(machines, machine, "passing")
        assert len(world.probes) > asked


async def test_one_that_hangs_holds_up_no_other(tmp_path: Path) -> None:
    """Each check has one probe at a time, and its own."""
    world = World()
    world.ports |= {8080: None, 9090: "Success"}
    slow = {"slow": {"port": 8080, "timeout": "60s"}}
    async with opened(tmp_path, world) as machines:
        many = [await machines.create("shop", wanted(checks=slow)) for _ in range(100)]
        quick = await machines.create("shop", wanted(checks={"quick": {"port": 9090}}))
        await until_status(machines, quick, "passing")
        assert all(sum(id == machine.id for id, _ in world.probes) <= 1 for machine in many)
