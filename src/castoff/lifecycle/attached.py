"""Volumes while machines have them: larger without a restart, snapshots of what is really on them, a backup a day.

castoff.lifecycle.volumes knows files and rows, castoff.lifecycle.machines what runs; here the two meet.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from castoff.errors import CastoffError, NotFound, Unsupported
from castoff.lifecycle.ids import milliseconds
from castoff.lifecycle.launcher import HasVolumes
from castoff.lifecycle.machines import Machines
from castoff.lifecycle.states import State
from castoff.lifecycle.volume_rows import Snapshot, Volume
from castoff.lifecycle.volumes import Volumes

__all__ = ["Attached", "Backups", "Extended"]

_DAY: Final = 24 * 3600 * 1000
_LOOK: Final = 600.0
"""Seconds between looks at which volume's day is over."""


@dataclass(frozen=True, slots=True)
class Extended:
    """A volume that was made larger.

    Attributes:
        volume: It.
        needs_restart: The machine that has it sees its size when it starts the next time.
        why: Why not at once; empty otherwise, and where the machine does not run.
    """

    volume: Volume
    needs_restart: bool
    why: str = ""


class Attached:
    """Volumes and the machines that have them.

    Args:
        volumes: All volumes.
        machines: All machines.
    """

    def __init__(self, volumes: Volumes, machines: Machines) -> None:
        self._volumes = volumes
        self._machines = machines

    async def extend(self, app: str, id: str, size: int) -> Extended:
        """Makes a volume larger; a machine that runs has it larger at once where its VMM can do that.

        Raises:
            Invalid: It is that large already.
            NoSpace: The disk is full.
        """
        volume = await self._volumes.extend(app, id, size)
        if volume.machine is None:
            return Extended(volume, needs_restart=False)
        if not self._runs(volume.machine):
            return Extended(volume, needs_restart=True)
        try:
            await (await self._running(volume.machine)).grow_volume(self._volumes.file(id), size)
        except CastoffError as error:
            return Extended(volume, needs_restart=True, why=str(error))
        return Extended(volume, needs_restart=False)

    async def snapshot(self, app: str, id: str, *, reflink: bool = False) -> Snapshot:
        """Takes a snapshot, after the machine that has it mounted has flushed it. One that does not answer is not waited for
        long: the snapshot then is what a power cut would leave.

        Args:
            app: Whose.
            id: Of which volume.
            reflink: Only where that costs no copy.

        Raises:
            Conflict: The filesystem cannot reflink, and must.
            NoSpace: The disk is full.
        """
        machine = self._volumes.get(app, id).machine
        if machine is not None and self._runs(machine):
            with contextlib.suppress(CastoffError):  # it ends, hangs or is of an older castoff
                await (await self._running(machine)).sync_volume(self._volumes.file(id))
        return await self._volumes.snapshot(app, id, reflink=reflink)

    async def release_lost(self, on_host: Collection[str]) -> list[Volume]:
        """Gives back the volumes of machines that are no more, which nobody else could give back; those, as they were.

        Args:
            on_host: Machines of which something is on this host: one that nobody knows may run there and write, and keeps its
                volumes.
        """
        lost = [volume for volume in self._volumes.list() if volume.machine and self._is_lost(volume.machine, on_host)]
        for machine in {volume.machine for volume in lost if volume.machine}:
            await self._volumes.detach(machine)
        return lost

    def _is_lost(self, machine: str, on_host: Collection[str]) -> bool:
        try:
            return self._machines.get(None, machine).state == State.DESTROYED and machine not in on_host
        except NotFound:
            return machine not in on_host

    async def _running(self, machine: str) -> HasVolumes:
        run = await self._machines.running(None, machine)
        if not isinstance(run, HasVolumes):
            raise Unsupported("this machine's volumes cannot be looked after while it runs", hint="restart it")
        return run

    def _runs(self, machine: str) -> bool:
        try:
            return self._machines.get(None, machine).state == State.STARTED
        except NotFound:
            return False


class Backups:
    """Takes a snapshot a day of each volume that wants it (``auto_backup_enabled``), and lets go of what is past its retention.

    Only by reflinks: a copy of every volume a day would fill a disk.

    Args:
        volumes: All volumes.
        attached: Takes the snapshots.
        notice: Called with a line for people.
    """

    def __init__(self, volumes: Volumes, attached: Attached, notice: Callable[[str], None] = lambda line: None) -> None:
        self._volumes = volumes
        self._attached = attached
        self._notice = notice
        self._failed: dict[str, int] = {}
        """When it could not be done last: it is not tried again, nor told of, all the time."""

    async def forever(self) -> None:
        """Does so as long as the agent runs."""
        while True:
            await self.look(milliseconds())
            await asyncio.sleep(_LOOK)

    async def look(self, now: int) -> None:
        """Does what is due at ``now``, Unix milliseconds."""
        for volume in self._volumes.list():
            try:
                await self._volumes.expire(volume.id, now)
                if self._is_due(volume, now):
                    await self._attached.snapshot(volume.app, volume.id, reflink=True)
                    self._failed.pop(volume.id, None)
            except CastoffError as error:
                if self._is_over(self._failed.get(volume.id, 0), now):
                    self._failed[volume.id] = now
                    self._notice(f"volume {volume.id} has no backup of today: {error}")

    def _is_due(self, volume: Volume, now: int) -> bool:
        taken = [one.created for one in self._volumes.snapshots(volume.app, volume.id)]
        last = max([volume.created, self._failed.get(volume.id, 0), *taken])
        return volume.auto_backup and self._is_over(last, now)

    @staticmethod
    def _is_over(since: int, now: int) -> bool:
        return now - since >= _DAY
