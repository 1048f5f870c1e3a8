"""The machines of one agent: what the API asks for, checked, leased, and given to each machine's supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any

from castoff.errors import Conflict, Invalid
from castoff.lifecycle.actions import Means
from castoff.lifecycle.addresses import Addresses
from castoff.lifecycle.admission import check_config
from castoff.lifecycle.board import Board
from castoff.lifecycle.checking import Checking, Probed
from castoff.lifecycle.config import MachineConfig, parse_config
from castoff.lifecycle.creation import new_machine
from castoff.lifecycle.database import Database
from castoff.lifecycle.launcher import Launcher, Run
from castoff.lifecycle.launches import SecretValues, VolumeFiles
from castoff.lifecycle.leases import Leases, check_lease, new_lease
from castoff.lifecycle.model import (
    Change,
    CheckStatus,
    CreateRequest,
    Event,
    Lease,
    LeaseHeld,
    Machine,
    PreconditionFailed,
    UpdateRequest,
    Waited,
    WaitTimeout,
)
from castoff.lifecycle.operations import Operations
from castoff.lifecycle.ports import Ports
from castoff.lifecycle.rows import read_versions
from castoff.lifecycle.states import ACTIVE, State
from castoff.lifecycle.supervisor import Guard, Supervisor
from castoff.lifecycle.upkeep import keep_up
from castoff.machine.model import MachineId, check_name, new_machine_id

__all__ = [
    "Change",
    "CheckStatus",
    "CreateRequest",
    "Event",
    "Lease",
    "LeaseHeld",
    "Machine",
    "Machines",
    "PreconditionFailed",
    "UpdateRequest",
    "WaitTimeout",
    "Waited",
]


class Machines:
    """All machines. Made by :meth:`open`."""

    def __init__(self, means: Means, region: str) -> None:
        self._means = means
        self._board = means.board
        self._launcher = means.launcher
        self._region = region
        self._supervisors: dict[str, Supervisor] = {}
        self._operations = Operations()
        self.leases = Leases(means.board, self._operations)
        """Theirs."""
        self._names: set[tuple[str, str]] = set()
        """Of machines that are being made, and are not on the board yet."""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        database: Database,
        launcher: Launcher,
        *,
        secrets: SecretValues,
        volumes: VolumeFiles,
        region: str = "local",
        notice: Callable[[str], None] = lambda line: None,
        probed: Probed = lambda http, passed, seconds: None,
        addresses: Addresses | None = None,
        ports: Ports | None = None,
    ) -> AsyncIterator[Machines]:
        """Takes up the machines that an earlier agent left, whatever it was doing with them; lets go of all at the end.

        Args:
            database: Where they are written down.
            launcher: Boots them.
            secrets: Of their apps.
            volumes: That they mount.
            region: The one that they are in.
            notice: Called with a line for people.
            probed: Told of every probe of a check.
            addresses: That they get; None: none.
            ports: Of the host, that they get; None: none.
        """
        board = Board(database)
        await board.load()
        checking = Checking(board, notice, probed)
        means = Means(
            board=board,
            launcher=launcher,
            secrets=secrets,
            volumes=volumes,
            notice=notice,
            checking=checking,
            addresses=addresses or Addresses(),
            ports=ports or Ports(),
        )
        means.addresses.load(board)
        means.ports.load(board)
        machines = cls(means, region)
        for machine in board:
            supervisor = machines._supervisors[machine.id] = Supervisor(machine.id, machines._means)
            await supervisor.recover()
        upkeep = asyncio.create_task(keep_up(board, machines._supervisors, notice))
        try:
            yield machines
        finally:
            upkeep.cancel()
            await asyncio.gather(upkeep, return_exceptions=True)
            await asyncio.gather(*(supervisor.close() for supervisor in machines._supervisors.values()))
            await machines._operations.close()

    # --- looking ---------------------------------------------------------------------------------------------------------

    def get(self, app: str | None, machine: str) -> Machine:
        """One machine.

        Raises:
            NotFound: There is none, or it is another app's.
        """
        return self._board.get(app, machine)

    def has(self, machine: str) -> bool:
        """Whether there is a machine of an id."""
        return self._board.has(machine)

    def list(
        self,
        app: str | None = None,
        *,
        include_deleted: bool = False,
        region: str | None = None,
        states: Collection[State] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> Sequence[Machine]:
        """The machines of one app, or of all; the newest last.

        Args:
            app: Which; None: all.
            include_deleted: Destroyed ones too.
            region: Only those there.
            states: Only those in one of them.
            metadata: Only those that have all of it.
        """
        return [
            machine
            for machine in self._board
            if app in (None, machine.app)
            and (include_deleted or machine.state in ACTIVE)
            and region in (None, machine.region)
            and (not states or machine.state in states)
            and all(machine.metadata.get(key) == value for key, value in (metadata or {}).items())
        ]

    def events(self, app: str | None, machine: str, limit: int) -> Sequence[Event]:
        """What happened to a machine, the newest first."""
        return self.get(app, machine).events[:limit]

    async def versions(self, app: str | None, machine: str) -> Sequence[tuple[str, dict[str, Any]]]:
        """A machine's versions with their configurations, the newest first."""
        found = self.get(app, machine)
        return await self._board.database.read(lambda connection: read_versions(connection, found.id))

    async def wait(
        self,
        app: str | None,
        machine: str,
        *,
        states: Collection[State],
        version: str | None = None,
        from_event_id: str | None = None,
        timeout: float = 60.0,
    ) -> Waited:
        """Waits, without polling, until a machine is in one of ``states``; see :meth:`Board.wait`.

        Raises:
            WaitTimeout: It did not get there.
            NotFound: There is none, or it is gone for good.
        """
        return await self._board.wait(
            self.get(app, machine), states=states, version=version, after_event=from_event_id, timeout=timeout
        )

    @property
    def revision(self) -> int:
        """Another number after each change of any machine."""
        return self._board.revision

    def subscribe(self) -> AsyncIterator[Change]:
        """Every change from now on; ends for whoever does not keep up."""
        return self._board.subscribe()

    # --- changing --------------------------------------------------------------------------------------------------------

    async def create(self, app: str, request: CreateRequest, *, id: MachineId | None = None) -> Machine:
        """Makes a machine; it is written down and, unless that is to be skipped, starting when this returns.

        Args:
            app: Its app.
            request: What is asked for.
            id: Its id, where somebody chose one; if the app has that machine already, the answer to its making was lost, and it
                is given again.

        Raises:
            Invalid: The request is broken.
            Conflict: The app has a machine of this name.
            CastoffError: There is no such image, or it cannot be written down.
        """
        if id is not None and self._board.has(id):
            return self.get(app, id)
        return await self._operations.whole(self._create(app, request, id or new_machine_id()), key=f"{app} {id}" if id else "")

    async def update(self, app: str | None, machine: str, request: UpdateRequest, *, nonce: str | None = None) -> Machine:
        """Gives a machine another configuration; one that runs goes on with it.

        Raises:
            PreconditionFailed: It has another version than the client thinks.
            CastoffError: As :meth:`create`.
        """
        supervisor, guard = self._guarded(app, machine, nonce)

        async def update() -> Machine:
            self._admit(supervisor.machine.app, request.config, machine)
            await self._has_secrets(supervisor.machine.app, request.min_secrets_version)
            digest = await self._launcher.resolve(request.config.image)
            try:
                with self._means.ports.claimed(machine, request.config):
                    updated = await supervisor.update(request, digest, guard)
            finally:
                now = supervisor.machine
                self._means.ports.keep(machine, now.config if now.state in ACTIVE else None)
            if request.lease_ttl:
                lease = new_lease(updated, ttl=request.lease_ttl, owner="update", description="")
                updated = await self._board.put(machine, lease=lease)
            return updated

        return await self._operations.whole(update())

    async def start(self, app: str | None, machine: str, *, nonce: str | None = None) -> State:
        """Starts a machine; the state that it was in."""
        supervisor, guard = self._guarded(app, machine, nonce)
        return await self._operations.whole(supervisor.start(guard))

    async def stop(
        self, app: str | None, machine: str, *, signal: int | None = None, timeout: float | None = None, nonce: str | None = None
    ) -> None:
        """Stops a machine: with ``signal``, and by force after ``timeout`` seconds."""
        supervisor, guard = self._guarded(app, machine, nonce)
        await self._operations.whole(supervisor.stop(signal, timeout, guard))

    async def restart(
        self,
        app: str | None,
        machine: str,
        *,
        force: bool = False,
        signal: int | None = None,
        timeout: float | None = None,
        nonce: str | None = None,
    ) -> None:
        """Stops a machine and starts it again."""
        supervisor, guard = self._guarded(app, machine, nonce)
        await self._operations.whole(supervisor.restart(force=force, signal=signal, timeout=timeout, guard=guard))

    async def suspend(self, app: str | None, machine: str, *, nonce: str | None = None) -> None:
        """Keeps a machine's memory, and ends its VMM.

        Raises:
            Unsupported: Its VMM cannot.
        """
        supervisor, guard = self._guarded(app, machine, nonce)
        await self._operations.whole(supervisor.suspend(guard))

    async def destroy(self, app: str | None, machine: str, *, force: bool = False, nonce: str | None = None) -> None:
        """Ends a machine for good, with all that it has.

        Raises:
            PreconditionFailed: It runs, and ``force`` is off.
        """
        supervisor, guard = self._guarded(app, machine, nonce)
        await self._operations.whole(supervisor.destroy(force=force, guard=guard))

    async def running(self, app: str | None, machine: str) -> Run:
        """A machine's run: what is done inside it, and with what it has mounted.

        Raises:
            NotFound: There is no such machine.
            PreconditionFailed: It does not run.
        """
        return await self._supervisors[self.get(app, machine).id].running()

    async def cordon(self, app: str | None, machine: str, *, nonce: str | None = None) -> None:
        """Takes a machine out of what is routed to."""
        await self._cordon(app, machine, nonce, True)

    async def uncordon(self, app: str | None, machine: str, *, nonce: str | None = None) -> None:
        """Puts it back."""
        await self._cordon(app, machine, nonce, False)

    async def _cordon(self, app: str | None, machine: str, nonce: str | None, cordoned: bool) -> None:
        self.get(app, machine)

        def changed(now: Machine) -> dict[str, Any]:
            check_lease(now, nonce)
            return {"cordoned": cordoned}

        await self._operations.whole(self._board.change(machine, changed))

    async def set_metadata(
        self, app: str | None, machine: str, changes: Mapping[str, str | None], *, version: str | None = None
    ) -> None:
        """Sets keys of a machine's metadata; None and the empty string remove one. It makes no new version.

        Raises:
            PreconditionFailed: The machine has another version than ``version``.
        """
        self.get(app, machine)

        def changed(now: Machine) -> dict[str, Any]:
            if version not in (None, now.version):
                raise PreconditionFailed(f"machine {now.id} has another version, {now.version}", hint="look again")
            merged = {**now.metadata, **changes}
            document = {**now.document, "metadata": {key: value for key, value in merged.items() if value}}
            return {"document": document, "config": parse_config(document)}

        await self._operations.whole(self._board.change(machine, changed))

    # --- inside ----------------------------------------------------------------------------------------------------------

    async def _create(self, app: str, request: CreateRequest, id: MachineId) -> Machine:
        self._admit(app, request.config)
        await self._has_secrets(app, request.min_secrets_version)
        name = check_name(request.name) if request.name else f"machine-{id[:8]}"
        if (app, name) in self._names or self._board.named(app, name):
            raise Conflict(f"app {app} has a machine named {name!r}", hint="take another name, or destroy that one")
        if request.region not in (None, "", self._region):
            raise Invalid(f"region {str(request.region)[:40]!r} is not here", hint=f"this host is in {self._region}")
        self._names.add((app, name))
        try:
            digest = await self._launcher.resolve(request.config.image)
            with self._means.ports.claimed(id, request.config):
                machine = await self._written(request, id=id, app=app, name=name, digest=digest)
        except BaseException:
            self._means.ports.keep(id, None)  # not before the claim is over, which would hold them
            raise
        finally:
            self._names.discard((app, name))
        return machine

    async def _written(self, request: CreateRequest, *, id: MachineId, app: str, name: str, digest: str) -> Machine:
        """A new machine, which has a supervisor, and addresses."""
        addresses = self._means.addresses.take(id)
        try:
            machine = new_machine(
                self._board, request, id=id, app=app, name=name, region=self._region, digest=digest, addresses=addresses
            )
            supervisor = Supervisor(id, self._means)
            await supervisor.create(machine)
        except BaseException:
            self._means.addresses.release(id)
            raise
        self._supervisors[id] = supervisor
        return machine

    def _admit(self, app: str, config: MachineConfig, machine: str | None = None) -> None:
        check_config(config)
        self._launcher.check(config)
        for mount in config.mounts or ():
            self._means.volumes.check(app, mount.volume, machine)

    async def _has_secrets(self, app: str, least: int | None) -> None:
        """A client that has just set secrets names their version, so that no machine starts without them."""
        there = await self._means.secrets.version(app) if least else 0
        if least and there < least:
            raise PreconditionFailed(
                f"min_secrets_version: the secrets of app {app} have version {there}, not {least}",
                hint="set them first; a version is what the answer to that says",
            )

    def _guarded(self, app: str | None, machine: str, nonce: str | None) -> tuple[Supervisor, Guard]:
        """A machine's supervisor, and what it asks before it does anything for the holder of ``nonce``."""
        found = self.get(app, machine)
        check_lease(found, nonce)
        return self._supervisors[found.id], functools.partial(check_lease, nonce=nonce)
