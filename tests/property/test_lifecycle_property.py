"""Machines under any sequence of requests, exits and killed agents, against a small model."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from castoff.errors import CastoffError, Conflict
from castoff.fakes.launcher import FakeLauncher, World
from castoff.lifecycle.database import Database
from castoff.lifecycle.machines import LeaseHeld, Machines
from castoff.lifecycle.states import SETTLED, State
from lifecycle import Secrets, Volumes, changed, wanted

APP = "shop"
RUNS = State.STARTED
STEPS = int(os.environ.get("CASTOFF_LIFECYCLE_STEPS", "30"))
EXAMPLES = int(os.environ.get("CASTOFF_LIFECYCLE_EXAMPLES", "15"))


class Lifecycle(RuleBasedStateMachine):
    """The model: for each machine that was acknowledged, the state in which it must settle."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = Path(tempfile.mkdtemp(prefix="castoff-lifecycle-"))
        self.world = World()
        self.expected: dict[str, State] = {}
        self.leases: dict[str, str] = {}
        self.run(self.open())

    async def open(self) -> None:
        self.stack = Database.open(self.directory / "castoff.db")
        self.database = await self.stack.__aenter__()
        self.opened = Machines.open(self.database, FakeLauncher(self.world), secrets=Secrets(), volumes=Volumes())
        self.machines = await self.opened.__aenter__()

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    async def settle(self, machine: str) -> None:
        if machine in self.expected:
            await self.machines.wait(APP, machine, states={self.expected[machine]}, timeout=10)

    def nonce(self, machine: str) -> str | None:
        return self.leases.get(machine)

    @rule(target=ids, skip=st.booleans(), policy=st.sampled_from(["no", "always"]))
    def create(self, skip: bool, policy: str) -> str:
        machine = self.run(self.machines.create(APP, wanted(skip_launch=skip, restart={"policy": policy})))
        self.expected[machine.id] = State.CREATED if skip else RUNS
        self.run(self.settle(machine.id))
        return str(machine.id)

    @rule(machine=ids)
    def start(self, machine: str) -> None:
        self.run(self.machines.start(APP, machine, nonce=self.nonce(machine)))
        self.expected[machine] = RUNS
        self.run(self.settle(machine))

    @rule(machine=ids)
    def stop(self, machine: str) -> None:
        self.run(self.machines.stop(APP, machine, nonce=self.nonce(machine)))
        if self.expected[machine] != State.CREATED:
            self.expected[machine] = State.STOPPED
        self.run(self.settle(machine))

    @rule(machine=ids)
    def suspend(self, machine: str) -> None:
        if self.expected[machine] != RUNS:
            return
        self.run(self.machines.suspend(APP, machine, nonce=self.nonce(machine)))
        self.expected[machine] = State.SUSPENDED
        self.run(self.settle(machine))

    @rule(machine=ids, skip=st.booleans())
    def update(self, machine: str, skip: bool) -> None:
        policy = self.machines.get(APP, machine).document["restart"]
        self.run(self.machines.update(APP, machine, changed(skip_launch=skip, restart=policy), nonce=self.nonce(machine)))
        if not skip:
            self.expected[machine] = RUNS
        elif self.expected[machine] != State.CREATED:
            self.expected[machine] = State.STOPPED
        self.run(self.settle(machine))

    @rule(machine=ids)
    def exits(self, machine: str) -> None:
        if self.expected[machine] != RUNS:
            return
        last = self.machines.get(APP, machine).events[0].id
        policy = self.machines.get(APP, machine).document["restart"]["policy"]
        self.world.exit(machine, 1)
        if policy == "no":
            self.expected[machine] = State.STOPPED
            self.run(self.settle(machine))
        else:
            states = {State.RESTARTING, State.STARTED}  # it may wait before it starts again
            self.run(self.machines.wait(APP, machine, states=states, from_event_id=last, timeout=10))
            self.run(self.machines.start(APP, machine, nonce=self.nonce(machine)))
            self.run(self.settle(machine))

    @rule(machine=ids)
    def lease(self, machine: str) -> None:
        if machine in self.leases:
            try:
                self.run(self.machines.stop(APP, machine))
            except LeaseHeld:
                self.run(self.machines.leases.release(APP, machine, nonce=self.leases.pop(machine)))
            else:
                raise AssertionError("a lease was not honoured")
        else:
            self.leases[machine] = self.run(self.machines.leases.acquire(APP, machine, ttl=3600, owner="me")).nonce

    @rule(machine=consumes(ids))
    def destroy(self, machine: str) -> None:
        self.run(self.machines.destroy(APP, machine, force=True, nonce=self.nonce(machine)))
        self.expected[machine] = State.DESTROYED
        self.run(self.settle(machine))

    @rule(machine=ids, what=st.sampled_from(["start", "stop", "restart", "update", "suspend"]), moments=st.integers(0, 40))
    def kill_the_agent_in_mid(self, machine: str, what: str, moments: int) -> None:
        """The agent dies some moments after a request came in: what it acknowledged is finished by the next one."""
        before = self.expected[machine]
        nonce = self.nonce(machine)
        restart = self.machines.get(APP, machine).document["restart"]
        work, after = {
            "start": (lambda: self.machines.start(APP, machine, nonce=nonce), RUNS),
            "stop": (lambda: self.machines.stop(APP, machine, nonce=nonce), State.STOPPED),
            "restart": (lambda: self.machines.restart(APP, machine, nonce=nonce), RUNS),
            "update": (lambda: self.machines.update(APP, machine, changed(restart=restart), nonce=nonce), RUNS),
            "suspend": (lambda: self.machines.suspend(APP, machine, nonce=nonce), State.SUSPENDED),
        }[what]
        if what == "stop" and before == State.CREATED:
            after = before
        if what == "suspend" and before not in (RUNS, State.SUSPENDED):
            return
        acknowledged = self.run(self.some_moments(work(), moments))
        self.die()
        self.run(self.open())
        settled = self.run(self.machines.wait(APP, machine, states=SETTLED, timeout=10)).state
        possible = {after} if acknowledged else {before, after}
        if what == "suspend":
            possible.add(before)
        assert settled in possible, f"{what} of a machine that was {before}: it is {settled}"
        self.expected[machine] = settled
        for one in self.expected:
            self.run(self.settle(one))

    @rule(moments=st.integers(0, 20))
    def kill_the_agent_at_a_create(self, moments: int) -> None:
        """A machine that was acknowledged is there and runs; one that was not may be there, whole."""
        work = self.machines.create(APP, wanted(restart={"policy": "no"}))
        acknowledged = self.run(self.some_moments(work, moments))
        self.die()
        self.run(self.open())
        found = {machine.id for machine in self.machines.list(include_deleted=True)}
        new = found - set(self.expected)
        assert found >= set(self.expected)
        assert len(new) == 1 if acknowledged else len(new) <= 1
        for machine in new:
            self.run(self.machines.wait(APP, machine, states={RUNS}, timeout=10))
            self.run(self.machines.destroy(APP, machine, force=True))
            self.expected[machine] = State.DESTROYED
            self.run(self.settle(machine))

    async def some_moments(self, work: Any, moments: int) -> bool:
        """Goes on with the loop so often; whether ``work`` was done meanwhile."""
        task = asyncio.ensure_future(work)
        for _ in range(moments):
            await asyncio.sleep(0 if moments % 2 else 0.0001)  # the database answers from its thread
            if task.done():
                task.result()
                return True
        return False

    def die(self) -> None:
        """All tasks of the agent end where they are; the database's thread has what it was given."""
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.run_until_complete(self.stack.__aexit__(None, None, None))

    @invariant()
    def what_is_said_is_so(self) -> None:
        for machine, state in self.expected.items():
            try:
                found = self.machines.get(APP, machine)
            except CastoffError:
                raise AssertionError(f"{machine} was acknowledged and is lost") from None
            assert found.state == state
            assert (machine in self.world.running) == (state == RUNS)
            assert state in SETTLED

    def teardown(self) -> None:
        try:
            self.run(self.opened.__aexit__(None, None, None))
        except Conflict as error:
            raise AssertionError from error
        finally:
            self.run(self.stack.__aexit__(None, None, None))
            self.loop.close()
            shutil.rmtree(self.directory)


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
)
