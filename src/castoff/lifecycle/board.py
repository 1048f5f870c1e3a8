"""All machines as they are now, in memory; every change goes through here: to disk, then to whoever waits for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from typing import Any, Final

import msgspec

from castoff.errors import NotFound
from castoff.lifecycle.database import Database
from castoff.lifecycle.ids import Ulids, milliseconds
from castoff.lifecycle.model import CHECK_EVENT, Change, CheckStatus, Event, Machine, Waited, WaitTimeout
from castoff.lifecycle.rows import KEPT_EVENTS, delete_machine, load_machines, save_machines
from castoff.lifecycle.states import State, check_transition

__all__ = ["Board"]

_PENDING_CHANGES: Final = 4096
"""Changes that a subscriber may be behind; one that is farther is dropped."""


class Board:
    """The machines of one agent. For one event loop.

    Args:
        database: Where they are kept.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.ulids = Ulids()
        self._machines: dict[str, Machine] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._subscribers: set[asyncio.Queue[Change | None]] = set()
        self.revision = 0
        """One more with each change of any machine."""

    async def load(self) -> None:
        """Reads what an earlier agent wrote."""
        for machine in await self.database.read(load_machines):
            self._keep(machine)
            for known in (machine.version, *(event.id for event in machine.events[:1])):
                self.ulids.after(known)

    def __iter__(self) -> Iterator[Machine]:
        return iter(list(self._machines.values()))

    def get(self, app: str | None, machine: str) -> Machine:
        """One machine.

        Raises:
            NotFound: There is none, or it is of another app.
        """
        found = self._machines.get(machine)
        if found is None or app not in (None, found.app):
            raise NotFound(f"machine not found: {machine[:80]!r}", hint="list the app's machines")
        return found

    def has(self, machine: str) -> bool:
        """Whether there is a machine of an id."""
        return machine in self._machines

    def named(self, app: str, name: str) -> bool:
        """Whether an app has a machine of a name, which a destroyed one has not."""
        return (app, name) in self._names

    def event(self, kind: str, status: str, source: str = "flyd", request: dict[str, Any] | None = None) -> Event:
        """An event of now."""
        return Event(
            id=self.ulids.next(), type=kind, status=str(status), source=source, timestamp=milliseconds(), request=request
        )

    async def add(self, machine: Machine) -> None:
        """Writes a new machine down."""
        await self._write(machine, None)

    async def put(self, machine: str, *events: Event, **changes: Any) -> Machine:
        """Writes a change of a machine down; returns it as it is then. All who wait look again.

        Args:
            machine: Its id.
            events: Happened with the change, in order.
            changes: Fields that change; ``state`` only as the table of states allows.

        Raises:
            Conflict: The table has no such change of state.
            CastoffError: It could not be written; nothing changed.
        """
        return await self.change(machine, lambda _: changes, *events)

    async def change(self, machine: str, changed: Callable[[Machine], Mapping[str, Any]], *events: Event) -> Machine:
        """As :meth:`put`, with changes that depend on how the machine is then.

        Args:
            machine: Its id.
            changed: Gives the changes; what it raises is raised, and nothing changed.
            events: Happened with the change, in order.
        """
        async with self._locks.setdefault(machine, asyncio.Lock()):
            before = self.get(None, machine)
            changes = changed(before)
            if "state" in changes and changes["state"] != before.state:
                check_transition(before.id, before.state, changes["state"])
            kept = (*reversed(events), *before.events)[:KEPT_EVENTS]
            after = msgspec.structs.replace(before, events=kept, updated=milliseconds(), **changes)
            if after.checks and after.state != State.STARTED:  # what checks found was of what ran
                after = msgspec.structs.replace(after, checks=())
            await self._write(after, before)
            return after

    def note(self, machine: str, checks: tuple[CheckStatus, ...]) -> None:
        """Keeps what checks found, in memory only: it is found again after the agent's next start."""
        after = msgspec.structs.replace(self.get(None, machine), checks=checks)
        self._keep(after)
        self._tell(Change(machine=after))

    async def _write(self, after: Machine, before: Machine | None) -> None:
        await self.database.add(save_machines, (after, before))
        self._keep(after)
        self._tell(Change(machine=after))

    def _keep(self, machine: Machine) -> None:
        self._machines[machine.id] = machine
        named = (machine.app, machine.name)
        if machine.state != State.DESTROYED:
            self._names[named] = machine.id
        elif self._names.get(named) == machine.id:
            del self._names[named]

    async def forget(self, machine: Machine) -> None:
        """Drops a machine that was destroyed."""
        await self.database.write(lambda connection: delete_machine(connection, machine.id))
        self._machines.pop(machine.id, None)
        self._locks.pop(machine.id, None)
        self._tell(Change(machine=machine, gone=True))

    async def wait(
        self, machine: Machine, *, states: Collection[State], version: str | None, after_event: str | None, timeout: float
    ) -> Waited:
        """Waits, without polling, until a machine is in one of ``states``.

        Args:
            machine: Which.
            states: Those.
            version: Only as this version of it; None: any.
            after_event: Only by an event after this one, also where the machine has left that state meanwhile; None: as it is.
            timeout: Seconds.

        Raises:
            WaitTimeout: It did not get there.
            NotFound: It is gone for good.
        """
        woken = asyncio.Event()
        waiting = self._waiting.setdefault(machine.id, set())
        waiting.add(woken)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    now = self.get(None, machine.id)
                    reached = _reached(now, states, after_event) if version in (None, now.version) else None
                    if reached is not None:
                        return reached
                    woken.clear()
                    await woken.wait()
        except TimeoutError as error:
            state = self.get(None, machine.id).state
            raise WaitTimeout(f"machine {machine.id} is currently {state}", hint="wait again") from error
        finally:
            waiting.discard(woken)
            if not waiting:
                self._waiting.pop(machine.id, None)

    async def subscribe(self) -> AsyncIterator[Change]:
        """Every change from now on; ends for whoever does not keep up: what it missed, it must look up."""
        queue: asyncio.Queue[Change | None] = asyncio.Queue()
        self._subscribers.add(queue)
        try:
            while (change := await queue.get()) is not None:
                yield change
        finally:
            self._subscribers.discard(queue)

    def _tell(self, change: Change) -> None:
        self.revision += 1
        for woken in self._waiting.get(change.machine.id, ()):
            woken.set()
        for queue in list(self._subscribers):
            if queue.qsize() < _PENDING_CHANGES:
                queue.put_nowait(change)
                continue
            self._subscribers.discard(queue)
            with contextlib.suppress(asyncio.QueueEmpty):
                while True:
                    queue.get_nowait()
            queue.put_nowait(None)


def _reached(machine: Machine, states: Collection[State], after_event: str | None) -> Waited | None:
    """What a waiter is told, or None while it has to wait."""
    last = next((event.id for event in machine.events if event.type != CHECK_EVENT), "")
    if machine.state in states and last > (after_event or ""):
        return Waited(state=machine.state, version=machine.version, event_id=last)
    if after_event is not None:
        for event in machine.events:
            if event.id > after_event and event.status in states:
                return Waited(state=State(event.status), version=machine.version, event_id=event.id)
    return None
