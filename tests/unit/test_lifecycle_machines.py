"""The lifecycle of machines, with a launcher in memory: what each operation does, and what a crash leaves."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from castoff.errors import Conflict, Invalid, NotFound, Unsupported
from castoff.fakes.launcher import World
from castoff.lifecycle.database import Database
from castoff.lifecycle.launcher import ExecRequest
from castoff.lifecycle.machines import LeaseHeld, PreconditionFailed, WaitTimeout
from castoff.lifecycle.states import SETTLED, TRANSITIONS, State
from lifecycle import Secrets, Volumes, changed, opened, settled, wanted

APP = "shop"


@pytest.fixture
def world() -> World:
    return World()


async def test_a_create_is_written_down_and_starts(tmp_path: Path, world: World) -> None:
    """It comes back starting, with a version and an event, and is started a moment later."""
    async with opened(tmp_path, world) as machines:
        machine = await machines.create(APP, wanted(name="web"))
        assert (machine.state, machine.name, machine.digest[:7]) == (State.STARTING, "web", "sha256:")
        started = await settled(machines, machine, State.STARTED)
        assert [event.type for event in started.events] == ["start", "start", "launch"]
        assert started.events[-1].source == "user"
        assert world.launches[0].env["FLY_MACHINE_ID"] == machine.id == world.launches[0].env["CASTOFF_MACHINE_ID"]


async def test_skip_launch_leaves_it_created(tmp_path: Path, world: World) -> None:
    """Nothing boots until it is started."""
    async with opened(tmp_path, world) as machines:
        machine = await machines.create(APP, wanted(skip_launch=True))
        assert machine.state == State.CREATED
        assert await machines.start(APP, machine.id) == State.CREATED
        await settled(machines, machine, State.STARTED)


async def test_what_cannot_be_is_refused_before_it_is_written(tmp_path: Path, world: World) -> None:
    """An image that is missing, a name that is taken, a file without content, a signal that is none."""
    world.missing.add("no/such")
    async with opened(tmp_path, world) as machines:
        await machines.create(APP, wanted(name="web"))
        with pytest.raises(NotFound):
            await machines.create(APP, wanted("no/such"))
        with pytest.raises(Conflict, match="web"):
            await machines.create(APP, wanted(name="web"))
        with pytest.raises(Invalid, match="raw_value"):
            await machines.create(APP, wanted(files=[{"guest_path": "/x"}]))
        with pytest.raises(Unsupported, match="spot-price"):
            await machines.create(APP, wanted(restart={"policy": "spot-price"}))
        for config in ({"files": [{"guest_path": "x", "raw_value": ""}]}, {"env": {"A=B": ""}}, {"env": {"A": "\0"}}):
            with pytest.raises(Invalid):
                await machines.create(APP, wanted(**config))
        with pytest.raises(Invalid, match="SIGNO"):
            await machines.create(APP, wanted(stop_config={"signal": "SIGNO"}))
        assert len(machines.list()) == 1


async def test_stop_and_start_begin_with_a_fresh_rootfs(tmp_path: Path, world: World) -> None:
    """Unless it is persisted; a restart keeps it where that is asked for."""
    async with opened(tmp_path, world) as machines:
        plain = await settled(machines, await machines.create(APP, wanted()), State.STARTED)
        kept = await settled(machines, await machines.create(APP, wanted(rootfs={"persist": "always"})), State.STARTED)
        halfway = await settled(machines, await machines.create(APP, wanted(rootfs={"persist": "restart"})), State.STARTED)
        for machine in (plain, kept, halfway):
            await machines.stop(APP, machine.id)
            stopped = await settled(machines, machine, State.STOPPED)
            assert stopped.events[0].type == "exit"
            assert stopped.events[0].request is not None
            assert stopped.events[0].request["exit_event"]["requested_stop"] is True
            assert await machines.start(APP, machine.id) == State.STOPPED
            await settled(machines, machine, State.STARTED)
        assert [world.disks[machine.id] for machine in (plain, kept, halfway)] == [2, 1, 2]
        for machine in (plain, kept, halfway):
            last = machines.get(APP, machine.id).events[0].id
            await machines.restart(APP, machine.id)
            await machines.wait(APP, machine.id, states={State.STARTED}, from_event_id=last, timeout=10)
        assert [world.disks[machine.id] for machine in (plain, kept, halfway)] == [3, 1, 2]


@pytest.mark.parametrize(
    ("config", "code", "state", "launches"),
    [
        ({}, 0, State.STOPPED, 1),
        ({}, 3, State.STARTED, 2),
        ({"restart": {"policy": "no"}}, 3, State.STOPPED, 1),
        ({"restart": {"policy": "always"}}, 0, State.STARTED, 2),
        ({"restart": {"policy": "on-failure", "max_retries": 0}}, 3, State.STOPPED, 1),
        ({"schedule": "daily"}, 3, State.STARTED, 2),
        ({"auto_destroy": True}, 3, State.DESTROYED, 1),
    ],
)
async def test_what_follows_a_commands_end(
    tmp_path: Path, world: World, config: dict[str, object], code: int, state: State, launches: int
) -> None:
    """By the restart policy, on-failure where none is named; auto_destroy."""
    async with opened(tmp_path, world) as machines:
        machine = await settled(machines, await machines.create(APP, wanted(**config)), State.STARTED)
        last = machine.events[0].id
        world.exit(machine.id, code)
        await machines.wait(APP, machine.id, states={state}, from_event_id=last, timeout=10)
        assert len(world.launches) == launches


async def test_restarts_end_after_so_many(tmp_path: Path, world: World) -> None:
    """And an out-of-memory kill is told in the event."""
    async with opened(tmp_path, world) as machines:
        machine = await machines.create(APP, wanted(restart={"policy": "on-failure", "max_retries": 1}))
        for _ in range(2):
            last = (await settled(machines, machine, State.STARTED)).events[0].id
            world.exit(machine.id, 137, out_of_memory=True)
            await machines.wait(APP, machine.id, states={State.STARTED, State.STOPPED}, from_event_id=last, timeout=10)
        stopped = await settled(machines, machine, State.STOPPED)
        assert stopped.events[0].request is not None
        assert stopped.events[0].request["exit_event"]["oom_killed"] is True


async def test_a_start_that_fails(tmp_path: Path, world: World) -> None:
    """The machine is failed, the event says why, and it can be destroyed or started again."""
    world.failing.add("bad")
    async with opened(tmp_path, world) as machines:
        machine = await settled(machines, await machines.create(APP, wanted("bad")), State.FAILED)
        assert machine.events[0].request == {"error": "bad does not boot"}
        world.failing.clear()
        await machines.start(APP, machine.id)
        await settled(machines, machine, State.STARTED)


async def test_update_replaces(tmp_path: Path, world: World) -> None:
    """A new version that runs; another current_version is refused; skip_launch leaves it stopped; versions are kept."""
    async with opened(tmp_path, world) as machines:
        machine = await settled(machines, await machines.create(APP, wanted()), State.STARTED)
        with pytest.raises(PreconditionFailed):
            await machines.update(APP, machine.id, changed(current_version="01OTHER"))
        updated = await machines.update(APP, machine.id, changed(current_version=machine.version, env={"A": "1"}))
        assert updated.version > machine.version
        await machines.wait(APP, machine.id, states={State.STARTED}, version=updated.version, timeout=10)
        assert world.launches[-1].config.env == {"A": "1"}
        await machines.update(APP, machine.id, changed(skip_launch=True))
        await settled(machines, machine, State.STOPPED)
        assert [document.get("env") for _, document in await machines.versions(APP, machine.id)] == [None, {"A": "1"}, None]


async def test_destroy(tmp_path: Path, world: World) -> None:
    """One that runs only with force; a destroyed one is listed only where asked for; its name is free again."""
    async with opened(tmp_path, world) as machines:
        machine = await settled(machines, await machines.create(APP, wanted(name="web")), State.STARTED)
        with pytest.raises(PreconditionFailed):
            await machines.destroy(APP, machine.id)
        await machines.destroy(APP, machine.id, force=True)
        await settled(machines, machine, State.DESTROYED)
        assert (world.running, world.disks) == ({}, {})
        assert machines.list(APP) == []
        assert [found.id for found in machines.list(APP, include_deleted=True)] == [machine.id]
        await machines.create(APP, wanted(name="web"))


async def test_suspend_and_resume(tmp_path: Path, world: World) -> None:
    """The memory is kept, and the rootfs with it; stopping it drops both."""
    async with opened(tmp_path, world) as machines:
        machine = await settled(machines, await machines.create(APP, wanted()), State.STARTED)
        await machines.suspend(APP, machine.id)
        await settled(machines, machine, State.SUSPENDED)
        assert await machines.start(APP, machine.id) == State.SUSPENDED
        await settled(machines, machine, State.STARTED)
        assert world.disks[machine.id] == 1
        await machines.suspend(APP, machine.id)
        await settled(machines, machine, State.SUSPENDED)
        await machines.stop(APP, machine.id)
        await settled(machines, machine, State.STOPPED)
        assert world.suspended == set()
        await machines.start(APP, machine.id)
        await settled(machines, machine, State.STARTED)
        await machines.suspend(APP, machine.id)
        await settled(machines, machine, State.SUSPENDED)
        await machines.restart(APP, machine.id)  # begins again
        await settled(machines, machine, State.STARTED)
        assert (world.resumed[machine.id], world.suspended) == (1, set())


async def test_a_suspended_machines_events(tmp_path: Path, world: World) -> None:
    """They tell whether it went on from its memory, or why it was booted; what cannot be suspended is refused at once."""
    async with opened(tmp_path, world) as machines:
        machine = await settled(machines, await machines.create(APP, wanted()), State.STARTED)
        for broken in (set(), {machine.config.image}):
            world.forgetful = broken
            await machines.suspend(APP, machine.id)
            await settled(machines, machine, State.SUSPENDED)
            await machines.start(APP, machine.id)
            event = (await settled(machines, machine, State.STARTED)).events[0]
            assert (event.type, event.status) == ("start", "started") and event.request is not None
            assert (event.request["resumed"], bool(event.request.get("error"))) == (not broken, bool(broken))
        world.unsuspendable.add(machine.config.image)
        with pytest.raises(Unsupported):
            await machines.suspend(APP, machine.id)
        assert machines.get(APP, machine.id).state == State.STARTED


async def test_leases(tmp_path: Path, world: World) -> None:
    """While one is held, nobody else changes the machine; it is refreshed, given back, and ends by itself."""
    async with opened(tmp_path, world) as machines:
        machine = await settled(machines, await machines.create(APP, wanted()), State.STARTED)
        lease = await machines.leases.acquire(APP, machine.id, ttl=60, owner="me")
        assert lease.version == machine.version
        with pytest.raises(LeaseHeld, match="lease currently held by me"):
            await machines.leases.acquire(APP, machine.id, ttl=60, owner="you")
        for refused in (machines.stop, machines.start, machines.cordon, machines.restart, machines.suspend, machines.destroy):
            with pytest.raises(LeaseHeld):
                await refused(APP, machine.id)
        await machines.cordon(APP, machine.id, nonce=lease.nonce)
        again = await machines.leases.refresh(APP, machine.id, nonce=lease.nonce, ttl=3600)
        assert again.nonce == lease.nonce
        assert again.expires > lease.expires
        with pytest.raises(LeaseHeld):
            await machines.leases.release(APP, machine.id, nonce="other")
        await machines.leases.release(APP, machine.id, nonce=lease.nonce)
        with pytest.raises(NotFound, match=" lease not found"):
            machines.leases.get(APP, machine.id)
        for ttl in (-1, 10**18):
            with pytest.raises(Invalid, match="at most a year"):
                await machines.leases.acquire(APP, machine.id, ttl=ttl, owner="me")
        await machines.leases.acquire(APP, machine.id, ttl=0, owner="me")
        await machines.stop(APP, machine.id)


async def test_metadata(tmp_path: Path, world: World) -> None:
    """It changes without a new version, filters lists, and outlives the agent."""
    async with opened(tmp_path, world) as machines:
        machine = await machines.create(APP, wanted(metadata={"a": "1"}))
        await machines.set_metadata(APP, machine.id, {"b": "2", "a": None})
        with pytest.raises(PreconditionFailed):
            await machines.set_metadata(APP, machine.id, {"c": "3"}, version="other")
        assert machines.get(APP, machine.id).version == machine.version
    async with opened(tmp_path, world) as machines:
        assert [found.id for found in machines.list(metadata={"b": "2"})] == [machine.id]
        assert machines.list(metadata={"a": "1"}) == []


async def test_waits(tmp_path: Path, world: World) -> None:
    """500 wait for one change and none polls; a time limit says how the machine is."""
    async with opened(tmp_path, world) as machines:
        machine = await machines.create(APP, wanted(skip_launch=True))
        waiting = [asyncio.create_task(machines.wait(APP, machine.id, states={State.STARTED}, timeout=10)) for _ in range(500)]
        await machines.start(APP, machine.id)
        assert {waited.state for waited in await asyncio.gather(*waiting)} == {State.STARTED}
        with pytest.raises(WaitTimeout, match="currently started"):
            await machines.wait(APP, machine.id, states={State.STOPPED}, timeout=0.01)


async def test_secrets_files_and_volumes_reach_the_launch(tmp_path: Path, world: World) -> None:
    """Secrets are variables and files, never in the configuration; a volume has one machine."""
    volumes = Volumes({"vol_1": None})
    mounts = [{"volume": "vol_1", "path": "/data"}]
    files = [
        {"guest_path": "/etc/a", "raw_value": base64.b64encode(b"plain").decode()},
        {"guest_path": "/etc/b", "secret_name": "TOKEN"},
    ]
    async with opened(tmp_path, world, secrets=Secrets({"TOKEN": "s3cret!"}), volumes=volumes) as machines:
        other = await machines.create(APP, wanted(mounts=mounts, skip_launch=True))
        machine = await settled(machines, await machines.create(APP, wanted(files=files, mounts=mounts)), State.STARTED)
        launch = world.launches[0]
        assert launch.env["TOKEN"] == "s3cret!"
        assert [(file.path, file.data) for file in launch.files] == [("/etc/a", b"plain"), ("/etc/b", b"s3cret!")]
        assert launch.volumes == ("/volumes/vol_1",)
        with pytest.raises(Conflict, match="another machine's"):
            await machines.create(APP, wanted(mounts=mounts))
        with pytest.raises(NotFound):
            await machines.create(APP, wanted(mounts=[{"volume": "vol_2", "path": "/data"}]))
        await machines.start(APP, other.id)
        other = await settled(machines, other, State.FAILED)
        assert "another machine's" in str(other.events[0].request)
        version = (await machines.update(APP, machine.id, changed())).version
        assert version != machine.version
        await settled(machines, machine, State.STARTED)
        assert volumes.owners == {"vol_1": None}, "an update that no longer mounts it gives it back"
        await settled(machines, await machines.update(APP, machine.id, changed(mounts=mounts)), State.STARTED)
        assert volumes.owners == {"vol_1": machine.id}
        await machines.destroy(APP, machine.id, force=True)
        await settled(machines, machine, State.DESTROYED)
        assert volumes.owners == {"vol_1": None}
    assert b"s3cret!" not in (tmp_path / "castoff.db").read_bytes()


async def test_each_process_has_its_own_variables(tmp_path: Path, world: World) -> None:
    """The app's secrets unless it ignores them, those that it names, fields of the machine; its own env wins."""
    processes = [
        {"cmd": ["web"], "env": {"A": "web"}},
        {
            "cmd": ["job"],
            "ignore_app_secrets": True,
            "secrets": [{"env_var": "TOKEN"}, {"env_var": "PASS", "name": "OTHER"}],
            "env_from": [{"env_var": "WHO", "field_ref": "id"}, {"env_var": "WHERE", "field_ref": "region"}],
        },
        {"cmd": ["none"], "ignore_app_secrets": True},
    ]
    secrets = Secrets({"TOKEN": "t0ken", "OTHER": "0ther", "THIRD": "3"})
    async with opened(tmp_path, world, secrets=secrets) as machines:
        machine = await machines.create(APP, wanted(processes=processes, env={"A": "all", "B": "all"}))
        await settled(machines, machine, State.STARTED)
        web, job, none = world.launches[0].processes
        assert (web["A"], web["B"], web["TOKEN"], web["THIRD"]) == ("web", "all", "t0ken", "3")
        assert (job["A"], job["TOKEN"], job["PASS"], job["WHO"], job["WHERE"]) == ("all", "t0ken", "0ther", machine.id, "local")
        assert not {"OTHER", "THIRD"} & job.keys() and not {"TOKEN", "OTHER", "THIRD"} & none.keys()
        assert none["FLY_MACHINE_ID"] == machine.id
        del secrets.known["OTHER"]
        await machines.restart(APP, machine.id)
        failed = await settled(machines, machine, State.FAILED)
        assert "no secret 'OTHER'" in str(failed.events[0].request)
        for broken in (
            {"env_from": [{"env_var": "A", "field_ref": "hostname"}]},
            {"env_from": [{"env_var": "A=B", "field_ref": "id"}]},
            {"secrets": [{"env_var": ""}]},
            {"env": {"A=": "x"}},
        ):
            with pytest.raises(Invalid, match="processes: "):
                await machines.create(APP, wanted(processes=[broken]))


async def test_exec_signal_and_ps_need_a_running_machine(tmp_path: Path, world: World) -> None:
    """412 otherwise."""
    async with opened(tmp_path, world) as machines:
        machine = await machines.create(APP, wanted(skip_launch=True))
        with pytest.raises(PreconditionFailed, match="not running"):
            await machines.running(APP, machine.id)
        await machines.start(APP, machine.id)
        await settled(machines, machine, State.STARTED)
        run = await machines.running(APP, machine.id)
        assert (await run.execute(ExecRequest(argv=("echo", "hi")))).stdout == b"echo hi"
        await run.signal(10)
        assert world.running[machine.id].signals == [10]
        assert [process.pid for process in await run.processes()] == [1]


async def test_machines_outlive_the_agent(tmp_path: Path, world: World) -> None:
    """The next one takes them up; one that ended meanwhile follows its restart policy."""
    async with opened(tmp_path, world) as machines:
        ended = await settled(machines, await machines.create(APP, wanted(restart={"policy": "no"})), State.STARTED)
        again = await settled(machines, await machines.create(APP, wanted()), State.STARTED)
        lives = await settled(machines, await machines.create(APP, wanted()), State.STARTED)
    assert set(world.running) == {ended.id, again.id, lives.id}
    world.exit(ended.id, 0)
    world.exit(again.id, 1)
    launches = len(world.launches)
    async with opened(tmp_path, world) as machines:
        await settled(machines, ended, State.STOPPED)
        await machines.wait(APP, again.id, states={State.STARTED}, from_event_id=again.events[0].id, timeout=10)
        assert machines.get(APP, lives.id).events == lives.events
        assert len(world.launches) == launches + 1
        world.exit(lives.id, 0)
        await settled(machines, lives, State.STOPPED)


async def test_another_apps_machine_is_not_there(tmp_path: Path, world: World) -> None:
    """404, as if it did not exist."""
    async with opened(tmp_path, world) as machines:
        machine = await machines.create(APP, wanted())
        with pytest.raises(NotFound, match="machine not found"):
            machines.get("other", machine.id)
        with pytest.raises(NotFound):
            await machines.stop("other", machine.id)


async def test_changes_are_told(tmp_path: Path, world: World) -> None:
    """Whoever subscribes sees every state that is written down, in order."""
    async with opened(tmp_path, world) as machines:
        seen: list[State] = []

        async def read() -> None:
            async for change in machines.subscribe():
                seen.append(change.machine.state)  # noqa: PERF401 - what is read is looked at before its end

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        machine = await settled(machines, await machines.create(APP, wanted()), State.STARTED)
        await machines.destroy(APP, machine.id, force=True)
        await settled(machines, machine, State.DESTROYED)
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert seen == [State.STARTING, State.STARTED, State.DESTROYING, State.DESTROYED]


async def test_a_schedule_starts_a_stopped_machine(tmp_path: Path, world: World) -> None:
    """At the agent's first look after its time has come."""
    async with opened(tmp_path, world) as machines:
        machine = await settled(machines, await machines.create(APP, wanted(schedule="hourly")), State.STARTED)
        world.exit(machine.id, 0)
        await settled(machines, machine, State.STOPPED)
    async with Database.open(tmp_path / "castoff.db") as database:
        await database.write(lambda connection: connection.execute("UPDATE machines SET started = started - 3600000").rowcount)
    async with opened(tmp_path, world) as machines:
        await settled(machines, machine, State.STARTED)


def test_every_state_has_its_edges() -> None:
    """All can be destroyed, and none leads nowhere but the last."""
    assert set(TRANSITIONS) == set(State)
    assert set(State) >= SETTLED
    for state, following in TRANSITIONS.items():
        assert (State.DESTROYING in following) == (state not in (State.DESTROYING, State.DESTROYED))


async def test_a_vmm_that_cannot_suspend(tmp_path: Path, world: World) -> None:
    """Is told at once, and the machine goes on."""
    async with opened(tmp_path, world) as machines:
        machine = await machines.create(APP, wanted(skip_launch=True))
        with pytest.raises((Unsupported, PreconditionFailed)):
            await machines.suspend(APP, machine.id)
        assert machines.get(APP, machine.id).state == State.CREATED
