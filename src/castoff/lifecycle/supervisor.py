"""One machine's supervisor: does one thing at a time with it, and follows its run.

What an operation does is written down before it is done (castoff.lifecycle.board), so a supervisor of a later process finds in
the state what was under way: :meth:`Supervisor.recover` has a rule for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal as signals
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final

from castoff.errors import CastoffError, Conflict, NotFound, Unavailable, Unsupported
from castoff.lifecycle.actions import Actions, Means
from castoff.lifecycle.exits import exit_event
from castoff.lifecycle.launcher import Run, RunExit, Suspendable
from castoff.lifecycle.launches import begins_anew
from castoff.lifecycle.model import Machine, PreconditionFailed, UpdateRequest
from castoff.lifecycle.restarts import SETTLES_AFTER, back_off, restarts_after
from castoff.lifecycle.states import SETTLED, State

__all__ = ["Guard", "Supervisor"]

Guard = Callable[[Machine], None]
"""Refuses who may not change the machine as it is when it is their turn."""

_LOST: Final = RunExit(code=-1, message="the machine was lost while no agent ran")
_AT_REST: Final = SETTLED - {State.STARTED, State.DESTROYED}
"""Settled states in which nothing of it runs."""


def _anybody(_: Machine) -> None:
    """The agent itself needs no lease."""


class Supervisor:
    """Of one machine.

    Args:
        machine: Its id.
        means: What all work with.
    """

    def __init__(self, machine: str, means: Means) -> None:
        self._id = machine
        self._means = means
        self._board = means.board
        self._actions = Actions(machine, means, self._follow)
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pausing: asyncio.Task[None] | None = None
        self._known = asyncio.Event()
        self._known.set()
        self._closing = False

    @property
    def machine(self) -> Machine:
        """The machine as it is now."""
        return self._board.get(None, self._id)

    async def running(self) -> Run:
        """Its run; after the agent's start, once it is known whether it runs.

        Raises:
            PreconditionFailed: It does not run.
        """
        await self._known.wait()
        if self._actions.run is None:
            raise PreconditionFailed(f"machine {self._id} is not running: it is {self.machine.state}", hint="start it")
        return self._actions.run

    # --- what clients ask for: each returns when it is written down, and goes on behind ---------------------------------

    async def create(self, machine: Machine) -> None:
        """Writes it down, before anybody else knows of it."""
        await self._lock.acquire()
        try:
            await self._board.add(machine)
        except BaseException:
            self._lock.release()
            raise
        if machine.state == State.STARTING:
            self._hand_over(self._actions.launch(fresh=True))
        else:
            self._lock.release()

    async def start(self, guard: Guard = _anybody) -> State:
        """Starts it; the state that it was in."""
        async with self._alone(guard) as held:
            previous = self.machine.state
            if previous != State.STARTED:
                await self._begin(held, resume=previous == State.SUSPENDED)
            return previous

    async def stop(self, signal: int | None, timeout: float | None, guard: Guard = _anybody) -> None:
        """Stops it. One that is being booted is not booted to its end."""
        async with self._alone(guard, interrupts=True) as held:
            match self.machine.state:
                case State.STOPPED | State.CREATED:
                    return
                case State.RESTARTING:  # it waits to be started again
                    await self._ask(State.STOPPED, "stop", wanted=State.STOPPED)
                case _:
                    await self._ask(State.STOPPING, "stop", wanted=State.STOPPED)
                    held.hand_over(self._actions.stop(signal, timeout))

    async def restart(self, *, force: bool, signal: int | None, timeout: float | None, guard: Guard = _anybody) -> None:
        """Stops and starts it."""
        async with self._alone(guard) as held:
            state = self.machine.state
            if state in _AT_REST:
                await self._begin(held, resume=False)  # what was suspended was to go on; this is to begin again
                return
            await self._ask(State.RESTARTING, "restart", wanted=State.STARTED, restarts=0)
            held.hand_over(self._actions.restart(signals.SIGKILL if force else signal, timeout))

    async def suspend(self, guard: Guard = _anybody) -> None:
        """Keeps its memory and ends its VMM."""
        async with self._alone(guard) as held:
            if self.machine.state == State.SUSPENDED:
                return
            run = await self.running()
            if not isinstance(run, Suspendable):
                raise Unsupported("this machine's VMM cannot suspend it", hint="stop it instead")
            run.check_suspend()
            await self._ask(State.SUSPENDING, "suspend", wanted=State.SUSPENDED)
            held.hand_over(self._actions.suspend(run))

    async def update(self, request: UpdateRequest, digest: str, guard: Guard = _anybody) -> Machine:
        """Gives it another configuration, and starts it with that unless it should not run."""

        def check(machine: Machine) -> None:
            guard(machine)
            if request.current_version not in (None, machine.version):
                raise PreconditionFailed(
                    f"machine {self._id} has version {machine.version}, not {str(request.current_version)[:40]}",
                    hint="somebody else has updated it: look again",
                )

        async with self._alone(check, interrupts=True) as held:
            machine = self.machine
            rests = State.CREATED if machine.state == State.CREATED else State.STOPPED
            running = machine.state in (State.STARTED, State.RESTARTING)
            changed = {"image_changed": digest != machine.digest, "running": running}
            await self._board.put(
                self._id,
                self._board.event("update", State.REPLACING, "user", changed),
                state=State.REPLACING,
                wanted=rests if request.skip_launch else State.STARTED,
                restarts=0,
                version=self._board.ulids.next(),
                digest=digest,
                document=request.document,
                config=request.config,
                cordoned=machine.cordoned or request.skip_service_registration,
            )
            held.hand_over(self._actions.replace())
            return self.machine

    async def destroy(self, *, force: bool, guard: Guard = _anybody) -> None:
        """Ends it for good; by force also what is under way with it."""
        if force:
            guard(self.machine)
            with contextlib.suppress(CastoffError):  # what cannot be killed is discarded below
                await self._actions.hasten()
        async with self._alone(guard) as held:
            state = self.machine.state
            if state == State.DESTROYED:
                return
            if not force and state not in _AT_REST:
                raise PreconditionFailed(f"machine {self._id} is {state}, it must be stopped first", hint="stop it, or use force")
            await self._ask(State.DESTROYING, "destroy", wanted=State.DESTROYED)
            held.hand_over(self._actions.destroy())

    async def _begin(self, held: _Held, *, resume: bool) -> None:
        previous = self.machine.state
        fresh = not resume and begins_anew(self.machine, restart=previous == State.RESTARTING)
        event = self._board.event("start", State.STARTING, "user", {"fresh": fresh, "resume": resume})
        await self._board.put(self._id, event, state=State.STARTING, wanted=State.STARTED, restarts=0)
        held.hand_over(self._actions.launch(fresh=fresh, resume=resume))

    async def _ask(self, state: State, kind: str, **changes: Any) -> None:
        await self._board.put(self._id, self._board.event(kind, state, "user"), state=state, **changes)

    # --- what the agent does by itself ----------------------------------------------------------------------------------

    async def look_after(self) -> None:
        """Takes it up again where nobody does anything with it, though something is to be done: the disk was full, say."""
        state = self.machine.state
        settled = state in SETTLED and (state != State.STARTED or self._actions.run is not None)
        if not (settled or self._lock.locked() or self._pausing is not None):
            await self.recover()

    async def recover(self) -> None:
        """Takes it up after an agent that ended, whatever was under way; what takes long goes on behind."""
        await self._lock.acquire()
        state = self.machine.state
        if state in _AT_REST or state == State.DESTROYED:
            self._lock.release()
            return
        self._known.clear()
        self._hand_over(self._recover(state))

    async def _recover(self, state: State) -> None:
        """Finishes what was under way, or undoes it where nobody can know how far it was."""
        do = self._actions
        try:
            if state != State.DESTROYING:
                await do.reattach()
        finally:
            self._known.set()
        machine, run = self.machine, do.run
        last = machine.events[0] if machine.events else None
        match state:
            case State.DESTROYING:
                await do.destroy()
            case State.STOPPING:
                await do.stop()
            case State.REPLACING:
                await do.replace()
            case State.STARTED if run is None:
                self._spawn(self._ended(None, await do.last_exit() or _LOST))
            case State.RESTARTING if run is not None and last is not None and last.type == "restart":
                await do.restart()  # a client asked for it, and this may still be the run of before
            case State.SUSPENDING if isinstance(run, Suspendable):
                await do.suspend(run)
            case State.SUSPENDING if run is None and await do.keeps():
                await do.become(State.SUSPENDED, "suspend")
            case State.SUSPENDING if run is None:
                await do.become(State.STOPPED, "exit", wanted=State.STOPPED)
            case _ if run is not None:
                if state != State.STARTED:
                    await do.become(State.STARTED, "start", wanted=State.STARTED)
            case _:
                asked = (last.request if last is not None and last.type == "start" else None) or {}
                fresh = asked.get("fresh", begins_anew(machine, restart=state == State.RESTARTING))
                await do.relaunch(fresh=bool(fresh), resume=bool(asked.get("resume")))
                return
        if run is not None and do.run is run:
            self._follow(run)

    async def close(self) -> None:
        """Lets go of it; it goes on."""
        self._closing = True
        self._known.set()
        runs = self._actions.runs
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for run in runs | self._actions.runs:
            await run.detach()

    # --- its command's end ----------------------------------------------------------------------------------------------

    def _follow(self, run: Run) -> None:
        async def follow() -> None:
            async with self._means.checking.beside(self.machine, run):
                exit = await run.wait()
            await self._ended(run, exit)

        self._spawn(follow())

    async def _ended(self, run: Run | None, exit: RunExit) -> None:
        """The command ended by itself; where an operation ended it, that one has taken the run away."""
        async with self._lock:
            if self._actions.run is not run or self.machine.state != State.STARTED:
                return
            self._actions.run = None
            machine = self.machine
            restarts = 0 if time.time() - machine.started / 1000 >= SETTLES_AFTER else machine.restarts
            again = restarts_after(machine.config, exit, restarts)
            state = State.RESTARTING if again else State.STOPPED
            event = exit_event(self._board, exit, state, requested=False, restarting=again, restarts=restarts)
            wanted = State.STARTED if again else State.STOPPED
            await self._actions.put(event, state=state, wanted=wanted, restarts=restarts + again)
            if again:
                self._pausing = self._spawn(self._start_again(back_off(restarts), event.id))
                return
        if machine.config.auto_destroy:
            with contextlib.suppress(Conflict, NotFound):  # somebody was faster
                await self.destroy(force=False)

    async def _start_again(self, pause: float, cause: str) -> None:
        """Starts it after a pause, unless something else has happened to it since the event ``cause``."""
        try:
            await asyncio.sleep(pause)
            await self._lock.acquire()
        finally:
            if self._pausing is asyncio.current_task():
                self._pausing = None
        if self.machine.state == State.RESTARTING and self.machine.events[0].id == cause:
            self._hand_over(self._actions.launch(fresh=begins_anew(self.machine, restart=True)))
        else:
            self._lock.release()

    # --- one at a time ---------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _alone(self, guard: Guard, *, interrupts: bool = False) -> AsyncIterator[_Held]:
        """One operation at a time: later ones wait until this one, and what it goes on with behind, are done.

        Args:
            guard: Asked before anything happens, and again when it is this operation's turn.
            interrupts: Whether a boot that is under way makes way.
        """
        guard(self.machine)
        if interrupts:
            self._actions.interrupt()
        await self._lock.acquire()
        held = _Held(self._hand_over)
        try:
            if self._closing:
                raise Unavailable("the agent ends", hint="ask its successor")
            guard(self.machine)
            yield held
        finally:
            if not held.given:
                self._lock.release()

    def _hand_over(self, work: Coroutine[Any, Any, None]) -> None:
        """Goes on with ``work`` behind, which has the lock and releases it."""

        async def finish() -> None:
            try:
                await work
            except Exception as error:  # whatever it is must not end the agent; look_after tries again
                self._means.notice(f"machine {self._id} stays {self.machine.state}, and is looked after again: {error!r}")

        def over(_: object = None) -> None:
            work.close()  # where it was cancelled before it began
            self._lock.release()

        if self._closing:  # it is written down: the next agent does it
            over()
        else:
            self._spawn(finish()).add_done_callback(over)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Held:
    """The lock of an operation that may hand it over to what goes on behind."""

    def __init__(self, hand_over: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._hand_over = hand_over
        self.given = False

    def hand_over(self, work: Coroutine[Any, Any, None]) -> None:
        self.given = True
        self._hand_over(work)
