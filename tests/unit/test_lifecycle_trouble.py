"""The lifecycle of machines where something goes wrong, or comes at the wrong moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from castoff.agent.observe import ObservedLauncher
from castoff.api.creates import Creates
from castoff.conformance.launcher import ENDS_WITH, check_launcher
from castoff.errors import Conflict, Internal, Unavailable
from castoff.fakes.launcher import FakeLauncher, World
from castoff.lifecycle.addresses import Addresses
from castoff.lifecycle.config import parse_config
from castoff.lifecycle.database import Database
from castoff.lifecycle.launcher import ExecRequest, Keeping, Launch, Launcher, Suspendable
from castoff.lifecycle.machines import LeaseHeld, Machines, PreconditionFailed
from castoff.lifecycle.ports import Ports
from castoff.lifecycle.states import State
from castoff.machine.model import new_machine_id
from lifecycle import Secrets, Volumes, changed, opened, settled, wanted

APP = "shop"


@pytest.fixture
def world() -> World:
    return World()


async def test_the_launcher_in_memory_is_a_launcher(world: World) -> None:
    """It promises what every launcher does."""

    @contextlib.asynccontextmanager
    async def launcher() -> AsyncIterator[Launcher]:
        yield FakeLauncher(world)

    world.missing.add("no/such")
    world.ending["ends"] = ENDS_WITH
    await check_launcher(
        launcher, stays=parse_config({"image": "stays"}), ends=parse_config({"image": "ends"}), missing="no/such"
    )


async def test_a_launcher_that_is_observed_keeps_memory(world: World) -> None:
    """As the one that it wraps does: the agent has no other."""
    launcher, machine = ObservedLauncher(FakeLauncher(world), Creates()), new_machine_id()
    launch = Launch(machine=machine, name="web", app=APP, version="01A", config=parse_config({"image": "stays"}))
    run = await launcher.launch(launch)
    assert isinstance(launcher, Keeping) and isinstance(run, Suspendable)
    await run.suspend()
    assert await launcher.keeps(machine)
    await launcher.forget(machine)
    assert not await launcher.keeps(machine)


async def test_a_boot_makes_way(tmp_path: Path, world: World) -> None:
    """A boot that hangs: stop ends it, an update replaces it, a forced destroy removes it."""
    world.hanging.add("slow")
    async with opened(tmp_path, world) as machines:
        stopped, updated, destroyed = [await machines.create(APP, wanted("slow")) for _ in range(3)]
        await machines.stop(APP, stopped.id)
        assert (await settled(machines, stopped, State.STOPPED)).events[0].request == {"error": "its start was interrupted"}
        with pytest.raises(PreconditionFailed):
            await machines.update(APP, updated.id, changed(current_version="01OTHER"))
        assert machines.get(APP, updated.id).state == State.STARTING
        await machines.update(APP, updated.id, changed("quick"))
        await settled(machines, updated, State.STARTED)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(machines.destroy(APP, destroyed.id), 0.05)
        await machines.destroy(APP, destroyed.id, force=True)
        await settled(machines, destroyed, State.DESTROYED)
        assert set(world.disks) == {updated.id}


async def test_a_forced_destroy_waits_for_no_command(tmp_path: Path, world: World) -> None:
    """A command that heeds no signal has minutes to end, and is killed at once all the same."""
    world.stubborn.add("deaf")
    async with opened(tmp_path, world) as machines:
        machine = await settled(machines, await machines.create(APP, wanted("deaf")), State.STARTED)
        await machines.stop(APP, machine.id, timeout=600)
        await machines.destroy(APP, machine.id, force=True)
        await settled(machines, machine, State.DESTROYED)
        machine = await settled(machines, await machines.create(APP, wanted("deaf")), State.STARTED)
        await machines.restart(APP, machine.id, force=True)
        await settled(machines, machine, State.STARTED)


async def test_a_restart_that_waits_is_not_lost(tmp_path: Path, world: World) -> None:
    """A request that is refused meanwhile changes nothing; the machine is started again when its pause is over."""
    async with opened(tmp_path, world) as machines:
        machine = await settled(machines, await machines.create(APP, wanted(restart={"policy": "always"})), State.STARTED)
        last = machine.events[0].id
        world.exit(machine.id)
        await machines.wait(APP, machine.id, states={State.STARTED}, from_event_id=last, timeout=10)
        last = machines.get(APP, machine.id).events[0].id
        world.exit(machine.id)
        await machines.wait(APP, machine.id, states={State.RESTARTING}, from_event_id=last, timeout=10)
        with pytest.raises(PreconditionFailed):
            await machines.destroy(APP, machine.id)
        await settled(machines, machine, State.STARTED)
        assert machines.get(APP, machine.id).restarts == 2


async def test_a_lease_is_looked_at_when_it_is_ones_turn(tmp_path: Path, world: World) -> None:
    """A request that waits for another one finds the lease that somebody took meanwhile."""
    world.stubborn.add("deaf")
    async with opened(tmp_path, world) as machines:
        machine = await settled(machines, await machines.create(APP, wanted("deaf")), State.STARTED)
        await machines.stop(APP, machine.id, timeout=600)
        waits = asyncio.create_task(machines.start(APP, machine.id))
        await asyncio.sleep(0)
        lease = await machines.leases.acquire(APP, machine.id, ttl=60, owner="me")
        await world.running[machine.id].kill()
        with pytest.raises(LeaseHeld):
            await waits
        await machines.start(APP, machine.id, nonce=lease.nonce)
        await settled(machines, machine, State.STARTED)


async def test_an_agent_ends_at_once(tmp_path: Path, world: World) -> None:
    """Whatever is under way or waits; the next one finishes it."""
    world.stubborn.add("deaf")
    world.hanging.add("slow")
    async with opened(tmp_path, world) as machines:
        deaf = await settled(machines, await machines.create(APP, wanted("deaf")), State.STARTED)
        slow = await machines.create(APP, wanted("slow"))
        await machines.stop(APP, deaf.id, timeout=600)
        waits = asyncio.create_task(machines.start(APP, deaf.id))
        await asyncio.sleep(0)
    assert isinstance((await asyncio.gather(waits, return_exceptions=True))[0], (Unavailable, asyncio.CancelledError))
    assert set(world.running) == {deaf.id}
    world.stubborn.clear()
    world.hanging.clear()
    async with opened(tmp_path, world) as machines:
        await settled(machines, deaf, State.STOPPED)
        await settled(machines, slow, State.STARTED)


async def test_what_nobody_can_tell_is_not_lost(tmp_path: Path, world: World) -> None:
    """A machine that does not answer the agent's successor is not started a second time, and taken up when it answers."""
    async with opened(tmp_path, world) as machines:
        machine = await settled(machines, await machines.create(APP, wanted()), State.STARTED)
    world.unreachable.add(machine.id)
    async with opened(tmp_path, world) as machines:
        with pytest.raises(PreconditionFailed):
            await machines.running(APP, machine.id)
        assert machines.get(APP, machine.id).state == State.STARTED
    world.unreachable.clear()
    async with opened(tmp_path, world) as machines:
        await (await machines.running(APP, machine.id)).execute(ExecRequest(argv=("true",)))
    assert len(world.launches) == 1


async def test_a_machine_that_does_not_answer_can_be_stopped(tmp_path: Path, world: World) -> None:
    """By force: it could else be neither used nor ended."""
    async with opened(tmp_path, world) as machines:
        machine = await settled(machines, await machines.create(APP, wanted()), State.STARTED)
    world.unreachable.add(machine.id)
    async with opened(tmp_path, world) as machines:
        await machines.stop(APP, machine.id)
        stopped = await settled(machines, machine, State.STOPPED)
        assert not world.running
        exit = next(event for event in stopped.events if event.type == "exit")
        assert "did not answer" in str(exit.request)


async def test_a_resume_is_finished_by_the_next_agent(tmp_path: Path, world: World) -> None:
    """It goes on from its memory, not from a fresh rootfs; a machine that was stopped in between does not."""
    async with opened(tmp_path, world) as machines:
        machine = await settled(machines, await machines.create(APP, wanted()), State.STARTED)
        await machines.suspend(APP, machine.id)
        await settled(machines, machine, State.SUSPENDED)
        world.hanging.add("alpine:3")
        await machines.start(APP, machine.id)
    world.hanging.clear()
    async with opened(tmp_path, world) as machines:
        await settled(machines, machine, State.STARTED)
        assert (world.resumed[machine.id], world.disks[machine.id]) == (1, 1)
        for act, state in ((machines.suspend, State.SUSPENDED), (machines.stop, State.STOPPED), (machines.start, State.STARTED)):
            await act(APP, machine.id)
            await settled(machines, machine, state)
        assert (world.resumed[machine.id], world.disks[machine.id], world.suspended) == (1, 2, set())


async def test_a_suspend_that_was_cut_is_one_where_the_memory_is_kept(tmp_path: Path, world: World) -> None:
    """The agent was killed after the VMM and before it wrote that down; without the memory the machine is stopped."""
    for kept, state in ((True, State.SUSPENDED), (False, State.STOPPED)):
        world.stalling.add("alpine:3")
        async with opened(tmp_path, world) as machines:
            machine = await settled(machines, await machines.create(APP, wanted()), State.STARTED)
            await machines.suspend(APP, machine.id)
            assert machines.get(APP, machine.id).state == State.SUSPENDING
        world.stalling.clear()
        world.exit(machine.id)
        if kept:
            world.suspended.add(machine.id)
        async with opened(tmp_path, world) as machines:
            await settled(machines, machine, state)


async def test_another_image_has_another_rootfs(tmp_path: Path, world: World) -> None:
    """Persistent or not; the same image keeps it. What boots is the image of the version, not of the tag."""
    async with opened(tmp_path, world) as machines:
        config = {"rootfs": {"persist": "always"}}
        machine = await settled(machines, await machines.create(APP, wanted("one", **config)), State.STARTED)
        for image, disks in (("one", 1), ("two", 2), ("two", 2)):
            updated = await machines.update(APP, machine.id, changed(image, **config))
            await machines.wait(APP, machine.id, states={State.STARTED}, version=updated.version, timeout=10)
            assert world.disks[machine.id] == disks
            assert world.launches[-1].digest == updated.digest
        await machines.update(APP, machine.id, changed("three", skip_launch=True, **config))
        for disks in (3, 3):
            await settled(machines, machine, State.STOPPED)
            await machines.start(APP, machine.id)
            await settled(machines, machine, State.STARTED)
            assert world.disks[machine.id] == disks
            await machines.stop(APP, machine.id)


async def test_an_update_is_a_restart_of_what_runs(tmp_path: Path, world: World) -> None:
    """A rootfs that is kept over restarts is kept; one of a machine that had stopped is not."""
    config = {"rootfs": {"persist": "restart"}}
    async with opened(tmp_path, world) as machines:
        machine = await settled(machines, await machines.create(APP, wanted(**config)), State.STARTED)
        for disks in (1, 2):
            updated = await machines.update(APP, machine.id, changed(**config))
            await machines.wait(APP, machine.id, states={State.STARTED}, version=updated.version, timeout=10)
            assert world.disks[machine.id] == disks
            await machines.stop(APP, machine.id)
            await settled(machines, machine, State.STOPPED)


async def test_a_disk_that_refuses(tmp_path: Path, world: World) -> None:
    """What happened to a machine is written down when the disk takes it again; requests are refused meanwhile."""
    said: list[str] = []
    async with (
        Database.open(tmp_path / "castoff.db") as database,
        Machines.open(database, FakeLauncher(world), secrets=Secrets(), volumes=Volumes(), notice=said.append) as machines,
    ):
        machine = await settled(machines, await machines.create(APP, wanted()), State.STARTED)
        refusing = "CREATE TRIGGER refuse BEFORE INSERT ON machines BEGIN SELECT RAISE(ABORT, 'the disk is ill'); END"
        await database.write(lambda connection: connection.execute(refusing).fetchall())
        with pytest.raises(Internal, match="the disk is ill"):
            await machines.create(APP, wanted(name="web"))
        world.exit(machine.id, 0)
        async with asyncio.timeout(10):
            while not said:
                await asyncio.sleep(0.01)
        assert "cannot be written down" in said[0]
        assert machines.get(APP, machine.id).state == State.STARTED
        await database.write(lambda connection: connection.execute("DROP TRIGGER refuse").fetchall())
        await settled(machines, machine, State.STOPPED)
        await machines.create(APP, wanted(name="web"))


async def test_a_create_that_could_not_be_written_down_leaves_its_port_and_its_address(tmp_path: Path, world: World) -> None:
    """Both are another's then; and those of a machine that was destroyed."""
    services = [{"internal_port": 80, "ports": [{"port": 8080}]}]
    networks = {"ipv4": IPv4Network("10.0.0.0/29"), "ipv6": IPv6Network("fd00::/64")}
    async with (
        Database.open(tmp_path / "castoff.db") as database,
        Machines.open(
            database,
            FakeLauncher(world),
            secrets=Secrets(),
            volumes=Volumes(),
            addresses=Addresses(**networks),
            ports=Ports(1024),
        ) as machines,
    ):
        refusing = "CREATE TRIGGER refuse BEFORE INSERT ON machines BEGIN SELECT RAISE(ABORT, 'the disk is ill'); END"
        await database.write(lambda connection: connection.execute(refusing).fetchall())
        for _ in range(6):  # more often than there are addresses
            with pytest.raises(Internal, match="the disk is ill"):
                await machines.create(APP, wanted(services=services))
        await database.write(lambda connection: connection.execute("DROP TRIGGER refuse").fetchall())
        for _ in range(6):
            machine = await settled(machines, await machines.create(APP, wanted(services=services)), State.STARTED)
            assert machine.address and machine.address6
            with pytest.raises(Conflict, match="port 8080"):
                await machines.create(APP, wanted(services=services))
            await machines.destroy(APP, machine.id, force=True)
            await settled(machines, machine, State.DESTROYED)


async def test_a_state_that_was_passed(tmp_path: Path, world: World) -> None:
    """Whoever waits from an event on is told of a state that the machine has left since."""
    world.ending["job"] = 0
    async with opened(tmp_path, world) as machines:
        machine = await machines.create(APP, wanted("job"))
        await settled(machines, machine, State.STOPPED)
        waited = await machines.wait(APP, machine.id, states={State.STARTED}, from_event_id=machine.events[0].id, timeout=10)
        assert waited.state == State.STARTED


async def test_events_and_versions_are_bounded(tmp_path: Path, world: World) -> None:
    """The last 50, newest first, in memory and on disk."""
    async with opened(tmp_path, world) as machines:
        machine = await machines.create(APP, wanted(skip_launch=True))
        for number in range(60):
            await machines.update(APP, machine.id, changed(skip_launch=True, env={"N": str(number)}))
            await settled(machines, machine, State.CREATED)
        events = machines.events(APP, machine.id, 100)
        assert len(events) == 50
        assert [event.id for event in events] == sorted((event.id for event in events), reverse=True)
        versions = await machines.versions(APP, machine.id)
        assert [document["env"]["N"] for _, document in versions] == [str(number) for number in range(59, 9, -1)]
    async with opened(tmp_path, world) as machines:
        assert machines.events(APP, machine.id, 100) == events


async def test_destroyed_machines_are_forgotten(tmp_path: Path, world: World) -> None:
    """After a day, and earlier where there are more than a thousand; with their rows."""
    async with opened(tmp_path, world) as machines:
        made = await asyncio.gather(*(machines.create(APP, wanted(skip_launch=True)) for _ in range(1010)))
        kept = made.pop()
        await asyncio.gather(*(machines.destroy(APP, machine.id) for machine in made))
        await asyncio.gather(*(settled(machines, machine, State.DESTROYED) for machine in made))
        assert len(machines.list(include_deleted=True)) == 1010
    for left in (1001, 1):
        async with opened(tmp_path, world) as machines, asyncio.timeout(20):
            while len(machines.list(include_deleted=True)) > left:
                await asyncio.sleep(0.01)
            assert machines.list(APP) == [machines.get(APP, kept.id)]
        async with Database.open(tmp_path / "castoff.db") as database:
            for table in ("machines", "versions"):
                counted = await database.read(
                    lambda connection, table=table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                )
                assert counted == left
            await database.write(
                lambda connection: connection.execute("UPDATE machines SET updated = updated - 90000000").rowcount
            )
