"""What is done with one machine: each action goes from a state that is written down to the one that follows it.

An action is under way alone: castoff.lifecycle.supervisor sees to that. What it has done is written down as soon as the disk
takes it: a machine that runs and is written down as one that starts would be started twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from castoff.errors import CastoffError, Internal, NoSpace, Unavailable
from castoff.lifecycle.addresses import Addresses
from castoff.lifecycle.board import Board
from castoff.lifecycle.checking import Checking
from castoff.lifecycle.exits import exit_event, stop_manner
from castoff.lifecycle.ids import milliseconds
from castoff.lifecycle.launcher import Ending, Keeping, Launch, Launcher, Remembering, Resumed, Run, RunExit, Suspendable
from castoff.lifecycle.launches import SecretValues, VolumeFiles, begins_anew, build_launch
from castoff.lifecycle.model import Event, Machine
from castoff.lifecycle.ports import Ports
from castoff.lifecycle.states import State

__all__ = ["Actions", "Means"]

_RECOVERED_AT_ONCE: Final = 8
"""Machines that are booted at once when the host itself was started anew."""
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
_SILENT: Final = RunExit(code=137, signal=9, message="it did not answer when it was to end, and was killed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What every machine's supervisor works with.

    Attributes:
        board: Where all machines are.
        launcher: Boots them.
        secrets: Of their apps.
        volumes: That they mount.
        notice: Told of what nobody asked for and somebody should know.
        checking: Asks their checks.
        addresses: That they have.
        ports: Of the host, that lead to them.
        recovering: Held by a boot that nobody waits for.
    """

    board: Board
    launcher: Launcher
    secrets: SecretValues
    volumes: VolumeFiles
    notice: Callable[[str], None]
    checking: Checking
    addresses: Addresses = field(default_factory=Addresses)
    ports: Ports = field(default_factory=Ports)
    recovering: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_RECOVERED_AT_ONCE))


class Actions:
    """Of one machine.

    Args:
        machine: Its id.
        means: What all work with.
        follow: Called with a run that has begun.
    """

    def __init__(self, machine: str, means: Means, follow: Callable[[Run], None]) -> None:
        self._id = machine
        self._means = means
        self._follow = follow
        self._launching: asyncio.Task[Run] | None = None
        self._ending: Run | None = None
        self.run: Run | None = None
        """Its run, unless that is being ended."""

    @property
    def machine(self) -> Machine:
        """The machine as it is now."""
        return self._means.board.get(None, self._id)

    @property
    def runs(self) -> set[Run]:
        """What must be let go of when the agent ends."""
        return {run for run in (self.run, self._ending) if run is not None}

    def interrupt(self) -> None:
        """A boot that is under way ends now; the machine is stopped then."""
        if self._launching is not None:
            self._launching.cancel()

    async def hasten(self) -> None:
        """A stop that is under way ends now, as does a boot."""
        self.interrupt()
        if self._ending is not None:
            await self._ending.kill()

    async def put(self, *events: Event, **changes: Any) -> None:
        """Writes down what has happened, however long the disk refuses."""
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._means.board.put(self._id, *events, **changes)
                return
            except (Internal, NoSpace) as error:
                self._means.notice(f"machine {self._id}: its state cannot be written down, tried again in {pause:g} s: {error}")
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)

    async def become(self, state: State, kind: str, request: dict[str, Any] | None = None, **changes: Any) -> None:
        """Writes a state down, with an event of it."""
        await self.put(self._means.board.event(kind, state, request=request), state=state, **changes)

    async def reattach(self) -> None:
        """Takes its run up again, where it runs.

        Raises:
            CastoffError: Nobody knows whether it does.
        """
        if self.run is None:
            machine = self.machine
            launch = Launch(
                machine=machine.id,
                name=machine.name,
                app=machine.app,
                version=machine.version,
                config=machine.config,
                address=machine.address,
                address6=machine.address6,
                ports=self._means.ports.published(machine.config),
            )
            self.run = await self._means.launcher.reattach(launch)

    async def last_exit(self) -> RunExit | None:
        """How its last run ended, where the launcher knows though no agent was told."""
        launcher = self._means.launcher
        return await launcher.last_exit(self.machine.id) if isinstance(launcher, Remembering) else None

    async def keeps(self) -> bool:
        """Whether its memory is kept."""
        launcher = self._means.launcher
        return isinstance(launcher, Keeping) and await launcher.keeps(self.machine.id)

    async def launch(self, *, fresh: bool, resume: bool = False) -> None:
        """From STARTING, RESTARTING to STARTED; to FAILED, or to STOPPED where it was interrupted."""
        self._launching = asyncio.create_task(self._boot(fresh=fresh, resume=resume))
        try:
            self.run = await self._launching
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise  # the agent ends: the next one finishes it
            await self.become(State.STOPPED, "exit", {"error": "its start was interrupted"}, wanted=State.STOPPED)
            return
        except CastoffError as error:
            await self.become(State.FAILED, "exit", {"error": str(error)})
            return
        finally:
            self._launching = None
        began = _began(self.run) if resume else None
        await self.become(State.STARTED, "start", began, wanted=State.STARTED, started=milliseconds())
        self._follow(self.run)

    async def _boot(self, *, fresh: bool, resume: bool) -> Run:
        means = self._means
        addresses = means.addresses.take(self._id)
        if addresses != (
            self.machine.address,
            self.machine.address6,
        ):  # made when it could have none
            await self.put(address=addresses[0], address6=addresses[1])
            resume = False  # its memory has the others
        ports = means.ports.published(self.machine.config)
        launch = await build_launch(
            self.machine, secrets=means.secrets, volumes=means.volumes, ports=ports, fresh=fresh, resume=resume
        )
        return await means.launcher.launch(launch)

    async def relaunch(self, *, fresh: bool, resume: bool = False) -> None:
        """As :meth:`launch`, for nobody who waits: few of them at once."""
        async with self._means.recovering:
            await self.launch(fresh=fresh, resume=resume)

    async def stop(self, signal: int | None = None, timeout: float | None = None) -> None:
        """From STOPPING to STOPPED, and on to DESTROYED where the configuration says so."""
        exit = await self._end(signal, timeout)
        events = [] if exit is None else [self._exited(exit, State.STOPPED)]
        await self.put(*events, state=State.STOPPED, wanted=State.STOPPED)
        if self.machine.config.auto_destroy:
            await self.become(State.DESTROYING, "destroy", wanted=State.DESTROYED)
            await self.destroy()

    async def restart(self, signal: int | None = None, timeout: float | None = None) -> None:
        """From RESTARTING to STARTED."""
        exit = await self._end(signal, timeout)
        if exit is not None:
            await self.put(self._exited(exit, State.RESTARTING, restarting=True))
        await self.launch(fresh=begins_anew(self.machine, restart=True))

    async def suspend(self, run: Suspendable) -> None:
        """From SUSPENDING to SUSPENDED; back to STARTED where it cannot be."""
        try:
            await run.suspend()
        except CastoffError as error:
            await self.become(State.STARTED, "suspend", {"error": str(error)}, wanted=State.STARTED)
            return
        self.run = None
        await self.become(State.SUSPENDED, "suspend")

    async def replace(self) -> None:
        """From REPLACING to what the update asked for."""
        exit = await self._end(None, None)
        if exit is not None:
            await self.put(self._exited(exit, State.REPLACING))
        machine = self.machine
        if machine.wanted != State.STARTED:
            await self.become(machine.wanted, "update")
            return
        fresh = begins_anew(machine, restart=_ran(machine))
        await self.become(State.STARTING, "start", {"fresh": fresh})
        await self.launch(fresh=fresh)

    async def destroy(self) -> None:
        """From DESTROYING to DESTROYED.

        Raises:
            CastoffError: Something of it cannot be deleted.
        """
        run, self.run = self.run, None
        if run is not None:
            await run.kill()
        await self._means.launcher.discard(self.machine.id)
        await self._means.volumes.detach(self._id)
        await self.become(State.DESTROYED, "destroy")
        self._means.addresses.release(self._id)
        self._means.ports.keep(self._id, None)

    async def _end(self, signal: int | None, timeout: float | None) -> RunExit | None:
        """Ends its run, also one that no earlier reattach found; None: it has none. What was kept of its memory is dropped."""
        launcher = self._means.launcher
        try:
            await self.reattach()
        except Unavailable:
            if not isinstance(launcher, Ending):
                raise
            await launcher.end(self.machine.id)  # it runs, and does not even listen
            return _SILENT
        run, self.run = self.run, None
        if run is None:
            if isinstance(launcher, Keeping):
                await launcher.forget(self.machine.id)
            return None
        self._ending = run
        try:
            try:
                await run.stop(*stop_manner(self.machine.config, signal, timeout))
            except CastoffError:
                await run.kill()  # it does not even listen
            return await run.wait()
        finally:
            self._ending = None

    def _exited(self, exit: RunExit, status: State, *, restarting: bool = False) -> Event:
        return exit_event(self._means.board, exit, status, requested=True, restarting=restarting)


def _began(run: Run) -> dict[str, Any]:
    """How a machine that was suspended was started, for its event."""
    why = run.began_cold if isinstance(run, Resumed) else ""
    return {"resumed": False, "error": why} if why else {"resumed": True}


def _ran(machine: Machine) -> bool:
    """Whether it ran when its last update came: then this was a restart."""
    update = next((event.request for event in machine.events if event.type == "update" and event.request), {})
    return bool(update.get("running"))
