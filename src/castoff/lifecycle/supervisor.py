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

from castoff.errors import CastoffError, Conflict, Unsupported
from castoff.lifecycle.board import Board
from castoff.lifecycle.durations import seconds
from castoff.lifecycle.ids import milliseconds
from castoff.lifecycle.launcher import Launcher, Run, RunExit, Suspendable
from castoff.lifecycle.launches import SecretValues, VolumeFiles, build_launch
from castoff.lifecycle.model import Event, Machine, PreconditionFailed, UpdateRequest
from castoff.lifecycle.restarts import SETTLES_AFTER, back_off, is_fresh, restarts_after
from castoff.lifecycle.states import State

__all__ = ["Supervisor"]

_GRACE: Final = 5.0
"""Seconds from the stop signal to the kill where the configuration says nothing."""
_LOST: Final = RunExit(code=-1, message="the machine was lost while no agent ran")
_ENDED: Final = frozenset({State.CREATED, State.STOPPED, State.SUSPENDED, State.FAILED})


class Supervisor:
    """Of one machine.

    Args:
        machine: Its id.
        board: Where all machines are.
        launcher: Boots it.
        secrets: Of its app.
        volumes: That it mounts.
        notice: Told of what nobody asked for and somebody should know.
    """

    def __init__(
        self,
        machine: str,
        *,
        board: Board,
        launcher: Launcher,
        secrets: SecretValues,
        volumes: VolumeFiles,
        notice: Callable[[str], None],
    ) -> None:
        self._id = machine
        self._board = board
        self._launcher = launcher
        self._secrets = secrets
        self._volumes = volumes
        self._notice = notice
        self._lock = asyncio.Lock()
        self._run: Run | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._launching: asyncio.Task[Run] | None = None
        self._again: asyncio.Task[None] | None = None

    @property
    def machine(self) -> Machine:
        """The machine as it is now."""
        return self._board.get(None, self._id)

    @property
    def run(self) -> Run:
        """Its run.

        Raises:
            PreconditionFailed: It does not run.
        """
        if self._run is None:
            raise PreconditionFailed(f"machine {self._id} is not running: it is {self.machine.state}", hint="start it")
        return self._run

    # --- what clients ask for: each returns when it is written down, and goes on behind ---------------------------------

    async def start(self) -> State:
        """Starts it; the state that it was in."""
        async with self._alone() as held:
            previous = self.machine.state
            if previous == State.STARTED:
                return previous
            resumes = previous == State.SUSPENDED
            fresh = not resumes and is_fresh(self.machine.config, restart=previous == State.RESTARTING)
            await self._put(State.STARTING, "start", "user", wanted=State.STARTED, restarts=0)
            held.hand_over(self._launch(fresh=fresh))
            return previous

    async def stop(self, signal: int | None, timeout: float | None) -> None:
        """Stops it."""
        async with self._alone() as held:
            state = self.machine.state
            if state in (State.STOPPED, State.CREATED):
                return
            if state == State.RESTARTING:
                await self._put(State.STOPPED, "stop", "user", wanted=State.STOPPED)
                return
            await self._put(State.STOPPING, "stop", "user", wanted=State.STOPPED)
            held.hand_over(self._stop(*self._manner(signal, timeout)))

    async def restart(self, *, force: bool, signal: int | None, timeout: float | None) -> None:
        """Stops and starts it."""
        async with self._alone() as held:
            state = self.machine.state
            if state in _ENDED:
                await self._put(State.STARTING, "start", "user", wanted=State.STARTED, restarts=0)
                held.hand_over(self._launch(fresh=state != State.SUSPENDED and is_fresh(self.machine.config, restart=False)))
                return
            await self._put(State.RESTARTING, "restart", "user", wanted=State.STARTED, restarts=0)
            held.hand_over(self._restart(*((signals.SIGKILL, 0.0) if force else self._manner(signal, timeout))))

    async def suspend(self) -> None:
        """Keeps its memory and ends its VMM."""
        async with self._alone() as held:
            if self.machine.state == State.SUSPENDED:
                return
            run = self.run
            if not isinstance(run, Suspendable):
                raise Unsupported("this machine's VMM cannot suspend it", hint="stop it instead")
            await self._put(State.SUSPENDING, "suspend", "user", wanted=State.SUSPENDED)
            held.hand_over(self._suspend(run))

    async def update(self, request: UpdateRequest, digest: str) -> Machine:
        """Gives it another configuration, and starts it with that unless it should not run."""
        async with self._alone() as held:
            machine = self.machine
            if request.current_version not in (None, machine.version):
                raise PreconditionFailed(
                    f"machine {self._id} has version {machine.version}, not {str(request.current_version)[:40]}",
                    hint="somebody else has updated it: look again",
                )
            rests = State.CREATED if machine.state == State.CREATED else State.STOPPED
            wanted = rests if request.skip_launch else State.STARTED
            event = self._board.event("update", State.REPLACING, "user")
            await self._board.put(
                self._id,
                event,
                state=State.REPLACING,
                wanted=wanted,
                restarts=0,
                version=self._board.ulids.next(),
                digest=digest,
                document=request.document,
                config=request.config,
                cordoned=machine.cordoned or request.skip_service_registration,
            )
            held.hand_over(self._replace())
            return self.machine

    async def destroy(self, *, force: bool) -> None:
        """Ends it for good."""
        if force and self._launching is not None:
            self._launching.cancel()
        async with self._alone() as held:
            state = self.machine.state
            if state == State.DESTROYED:
                return
            if not force and state not in _ENDED:
                raise PreconditionFailed(f"machine {self._id} is {state}, it must be stopped first", hint="stop it, or use force")
            await self._put(State.DESTROYING, "destroy", "user", wanted=State.DESTROYED)
            held.hand_over(self._destroy())

    # --- what the agent does by itself ----------------------------------------------------------------------------------

    async def first_start(self) -> None:
        """Starts a machine that was created as STARTING."""
        await self._lock.acquire()
        self._hand_over(self._launch(fresh=True))

    async def recover(self) -> None:
        """Takes it up after an agent that ended, whatever was under way; what takes long goes on behind."""
        await self._lock.acquire()
        state = self.machine.state
        if state in (State.DESTROYED, *(_ENDED - {State.FAILED})):
            self._lock.release()
            return
        self._hand_over(self._recover(state))

    async def close(self) -> None:
        """Lets go of it; it goes on."""
        tasks = [*self._tasks, *filter(None, [self._again])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._run is not None:
            await self._run.detach()

    async def _recover(self, state: State) -> None:
        """Finishes or undoes what was under way. A machine that still runs is taken up, unless it should not run."""
        match state:
            case State.DESTROYING:
                await self._destroy()
                return
            case State.FAILED:
                return
        self._run = await self._reattach()
        match state:
            case State.STOPPING:
                await self._stop(*self._manner(None, None))
            case State.REPLACING:
                await self._replace()
            case State.SUSPENDING if self._run is None:
                await self._put(State.STOPPED, "exit", wanted=State.STOPPED)  # whether its memory was kept, nobody knows
            case _ if self._run is not None:
                if state != State.STARTED:
                    await self._put(State.STARTED, "start", wanted=State.STARTED)
                self._follow(self._run)
            case State.STARTED:
                self._spawn(self._ended(None, _LOST))
            case _:
                await self._launch(fresh=is_fresh(self.machine.config, restart=state == State.RESTARTING))

    async def _reattach(self) -> Run | None:
        try:
            launch = await build_launch(self.machine, secrets=self._secrets, volumes=self._volumes, fresh=False)
            return await self._launcher.reattach(launch)
        except CastoffError as error:
            self._notice(f"machine {self._id} cannot be taken up again: {error}")
            return None

    async def _launch(self, *, fresh: bool) -> None:
        """From STARTING, RESTARTING to STARTED, or to FAILED."""
        try:
            launch = await build_launch(self.machine, secrets=self._secrets, volumes=self._volumes, fresh=fresh)
            self._launching = asyncio.create_task(self._launcher.launch(launch))
            try:
                run = await self._launching
            finally:
                self._launching = None
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            await self._put(State.FAILED, "exit", request={"error": "its start was cancelled"})
            return
        except CastoffError as error:
            await self._put(State.FAILED, "exit", request={"error": str(error)})
            return
        self._run = run
        await self._put(State.STARTED, "start", started=milliseconds())
        self._follow(run)

    async def _stop(self, signal: int, grace: float) -> None:
        """From STOPPING to STOPPED."""
        exit = await self._end_run(signal, grace)
        events = [] if exit is None else [self._exit_event(exit, State.STOPPED, requested=True)]
        await self._board.put(self._id, *events, state=State.STOPPED, wanted=State.STOPPED)
        if self.machine.config.auto_destroy:
            await self._put(State.DESTROYING, "destroy", wanted=State.DESTROYED)
            await self._destroy()

    async def _restart(self, signal: int, grace: float) -> None:
        exit = await self._end_run(signal, grace)
        if exit is not None:
            await self._board.put(self._id, self._exit_event(exit, State.RESTARTING, requested=True, restarting=True))
        await self._launch(fresh=is_fresh(self.machine.config, restart=True))

    async def _suspend(self, run: Suspendable) -> None:
        try:
            await run.suspend()
        except CastoffError as error:
            await self._put(State.STARTED, "suspend", wanted=State.STARTED, request={"error": str(error)})
            return
        self._run = None
        await self._put(State.SUSPENDED, "suspend")

    async def _replace(self) -> None:
        exit = await self._end_run(*self._manner(None, None))
        if exit is not None:
            await self._board.put(self._id, self._exit_event(exit, State.REPLACING, requested=True))
        wanted = self.machine.wanted
        if wanted != State.STARTED:
            await self._put(wanted, "update")
            return
        await self._put(State.STARTING, "start")
        await self._launch(fresh=is_fresh(self.machine.config, restart=True))

    async def _destroy(self) -> None:
        """From DESTROYING to DESTROYED. What cannot be deleted now is tried again at the agent's next start."""
        run, self._run = self._run, None
        if run is not None:
            await run.kill()
        try:
            await self._launcher.discard(self.machine.id)
            await self._volumes.detach(self._id)
        except CastoffError as error:
            self._notice(f"machine {self._id} cannot be deleted: {error}")
            return
        await self._put(State.DESTROYED, "destroy")

    async def _end_run(self, signal: int, grace: float) -> RunExit | None:
        run, self._run = self._run, None
        if run is None:
            return None
        try:
            await run.stop(signal, grace)
        except CastoffError:
            await run.kill()  # it does not even listen
        return await run.wait()

    # --- its command's end ----------------------------------------------------------------------------------------------

    def _follow(self, run: Run) -> None:
        async def follow() -> None:
            await self._ended(run, await run.wait())

        self._spawn(follow())

    async def _ended(self, run: Run | None, exit: RunExit) -> None:
        """The command ended by itself; where an operation ended it, that one has taken the run away."""
        async with self._lock:
            if self._run is not run or self.machine.state != State.STARTED:
                return
            self._run = None
            machine = self.machine
            lived = time.time() - machine.started / 1000
            restarts = 0 if lived >= SETTLES_AFTER else machine.restarts
            again = restarts_after(machine.config, exit, restarts)
            state = State.RESTARTING if again else State.STOPPED
            event = self._exit_event(exit, state, requested=False, restarting=again, restarts=restarts)
            wanted = State.STARTED if again else State.STOPPED
            await self._board.put(self._id, event, state=state, wanted=wanted, restarts=restarts + again)
            if again:
                self._again = asyncio.create_task(self._start_again(back_off(restarts)))
                return
        if self.machine.config.auto_destroy:
            with contextlib.suppress(Conflict):  # somebody was faster
                await self.destroy(force=False)

    async def _start_again(self, pause: float) -> None:
        await asyncio.sleep(pause)
        await self._lock.acquire()
        self._again = None
        if self.machine.state != State.RESTARTING:
            self._lock.release()
            return
        self._hand_over(self._launch(fresh=is_fresh(self.machine.config, restart=True)))

    def _exit_event(self, exit: RunExit, status: State, *, requested: bool, restarting: bool = False, restarts: int = 0) -> Event:
        particulars = {
            "exit_code": exit.code,
            "guest_exit_code": exit.code,
            "guest_signal": exit.signal,
            "signal": exit.signal,
            "oom_killed": exit.out_of_memory,
            "requested_stop": requested,
            "restarting": restarting,
            "exited_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        if exit.message:
            particulars["error"] = exit.message
        return self._board.event("exit", status, request={"exit_event": particulars, "restart_count": restarts})

    # --- how -------------------------------------------------------------------------------------------------------------

    def _manner(self, signal: int | None, timeout: float | None) -> tuple[int, float]:
        """Signal and grace of a stop: those asked for, or the configuration's."""
        config = self.machine.config.stop_config
        if signal is None:
            named = config.signal if config is not None and config.signal else "SIGINT"
            signal = signals.Signals[named].value if named in signals.Signals.__members__ else signals.SIGINT
        if timeout is None:
            timeout = seconds(config.timeout) if config is not None and config.timeout is not None else _GRACE
        return signal, timeout or _GRACE

    async def _put(
        self, state: State, kind: str, source: str = "flyd", request: dict[str, Any] | None = None, **changes: Any
    ) -> None:
        await self._board.put(self._id, self._board.event(kind, state, source, request), state=state, **changes)

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[_Held]:
        """One operation at a time: later ones wait until this one, and what it goes on with behind, are done."""
        if self._again is not None and self._lock.locked() is False:
            self._again.cancel()
            self._again = None
        await self._lock.acquire()
        held = _Held(self)
        try:
            yield held
        finally:
            if not held.given:
                self._lock.release()

    def _hand_over(self, work: Coroutine[Any, Any, None]) -> None:
        """Goes on with ``work`` behind, which has the lock and releases it."""

        async def finish() -> None:
            try:
                await work
            except CastoffError as error:  # the disk, most likely: what is written down says what to do at the next start
                self._notice(f"machine {self._id}: {error}")
            finally:
                self._lock.release()

        self._spawn(finish())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Held:
    """The lock of an operation that may hand it over to what goes on behind."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.given = False

    def hand_over(self, work: Coroutine[Any, Any, None]) -> None:
        self.given = True
        self._supervisor._hand_over(work)
