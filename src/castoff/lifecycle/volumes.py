"""Volumes: filesystems that outlive machines, one file each, and snapshots of them beside it.

``DIRECTORY/ID/data.ext4`` is a volume, ``DIRECTORY/ID/SNAPSHOT.ext4`` a snapshot of it. A row in the database says what a file
is worth: it is written before the file is begun and once it is on disk, so whatever a crash leaves is told from what was
acknowledged, and removed (``load``).

A machine that has a volume may have it mounted, and nobody else may then write to its file. So the file of one that is attached
grows when its machine starts the next time, unless that grows it itself (castoff.lifecycle.attached), and snapshots of it are
reflinks: one instant, as after a power cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from castoff.errors import Conflict, Invalid, NotFound, Unsupported
from castoff.lifecycle.database import Database
from castoff.lifecycle.ids import milliseconds
from castoff.lifecycle.volume_files import VolumeDirectory
from castoff.lifecycle.volume_rows import CREATED, CREATING, DESTROYING, Snapshot, Volume, drop, load, put

__all__ = ["Volumes"]

T = TypeVar("T")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z")
_GB: Final = 1 << 30
_DEFAULT: Final = 1 * _GB
_DAY: Final = 24 * 3600 * 1000


class Volumes:
    """The volumes of this host: castoff.api.ports.Volumes and castoff.lifecycle.launches.VolumeFiles.

    Args:
        database: Where rows are kept.
        directory: Where files are kept; best on a filesystem with reflinks.
        region: That volumes say they are in.
    """

    def __init__(self, database: Database, directory: Path, *, region: str = "local") -> None:
        self._database = database
        self._files = VolumeDirectory(directory)
        self._region = region
        self._volumes: dict[str, Volume] = {}
        self._snapshots: dict[str, dict[str, Snapshot]] = defaultdict(dict)
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def load(self, *, discard_unknown: bool = False) -> None:
        """Reads the rows, and removes what a crash left half made or half deleted, and what is past its retention.

        Args:
            discard_unknown: Remove files that no row tells of. No crash leaves such: the row is written first and goes last. So
                the database was lost or is an old backup, and they may be somebody's only copy.

        Raises:
            Conflict: There are such files, and they are not to be removed.
        """
        volumes, snapshots = await self._database.read(load)
        await self._files.prepare()
        for volume in volumes:
            if volume.state == CREATED:
                self._volumes[volume.id] = volume
            else:
                await self._erase(volume)
        for snapshot in snapshots:
            if snapshot.status == CREATED and snapshot.volume in self._volumes:
                self._snapshots[snapshot.volume][snapshot.id] = snapshot
            else:
                await self._forget(snapshot)
        for id in self._volumes:
            await self._expire(id, milliseconds())
        unknown = await self._files.unknown(self._volumes, self._snapshots)
        if unknown and not discard_unknown:
            raise Conflict(
                f"{len(unknown)} volumes or snapshots are on this host that castoff.db does not know: {', '.join(unknown[:5])}",
                hint="was it lost, or is it an old backup? Put the right one there; or remove them with --discard-unknown",
            )
        await self._files.discard(unknown)

    def list(self, app: str | None = None) -> Sequence[Volume]:
        """Those of an app; None: of all."""
        return [volume for volume in self._volumes.values() if app in (None, volume.app)]

    def get(self, app: str | None, id: str) -> Volume:
        """One.

        Raises:
            NotFound: The app has no such volume.
        """
        found = self._volumes.get(id)
        if found is None or app not in (None, found.app):
            raise NotFound(f"volume not found: {id[:80]!r}", hint="`castoff volume list` shows those that there are")
        return found

    async def create(
        self,
        app: str,
        name: str,
        *,
        size: int | None,
        fstype: str = "ext4",
        snapshot: str | None = None,
        source: str | None = None,
        snapshot_retention: int = 5,
        auto_backup: bool = True,
    ) -> Volume:
        """Makes one: empty, of a snapshot, or as a fork of another volume. It is on disk when this returns.

        Args:
            app: Whose.
            name: Need not be unique.
            size: Bytes; None: the origin's, or 1 GiB.
            fstype: ``ext4``.
            snapshot: Id of the snapshot that it begins with.
            source: Id of the volume that it begins with, as that is now.
            snapshot_retention: Days for which snapshots of it are kept.
            auto_backup: A snapshot of it is taken every day (castoff.lifecycle.attached).

        Raises:
            Invalid: The name or the kind is not usable, or the size is less than the origin's.
            Unsupported: It shall have no filesystem.
            NotFound: The app has no such origin.
            Conflict: The origin is attached, and the filesystem cannot reflink.
            NoSpace: The disk is full.
        """
        if not _NAME.match(name):
            raise Invalid(f"volume name {name[:80]!r} is not usable", hint="letters, digits, _ and -; at most 63")
        if fstype == "raw":
            raise Unsupported("fstype: raw volumes are not served", hint="leave it away: ext4")
        if fstype != "ext4":
            raise Invalid(f"fstype {fstype[:40]!r} is not known", hint="leave it away: ext4")
        if snapshot is not None and source is not None:
            raise Invalid("snapshot_id and source_volume_id exclude each other")
        async with self._origin(app, snapshot, source) as (origin, least, live):
            volume = Volume(
                id=_new_id("vol"),
                app=app,
                name=name,
                state=CREATING,
                size=size or least or _DEFAULT,
                region=self._region,
                fstype=fstype,
                machine=None,
                snapshot_retention=snapshot_retention,
                auto_backup=auto_backup,
                created=milliseconds(),
            )
            if volume.size < least:
                raise Invalid(f"size_gb: {volume.size} bytes are less than the origin's {least}", hint="a volume only grows")
            try:
                await self._put(volume)
                await self._files.make(volume, origin, live=live)
            except BaseException:
                await _to_its_end(self._erase(volume))
                raise
        return await self._put(msgspec.structs.replace(volume, state=CREATED))

    async def update(self, app: str, id: str, *, snapshot_retention: int | None, auto_backup: bool | None) -> Volume:
        """Changes what is not None."""
        async with self._held(app, id) as volume:
            changes = {"snapshot_retention": snapshot_retention, "auto_backup": auto_backup}
            given = {field: value for field, value in changes.items() if value is not None}
            return await self._put(msgspec.structs.replace(volume, **given))

    async def delete(self, app: str, id: str) -> Volume:
        """Deletes one, its snapshots with it.

        Raises:
            Conflict: A machine has it.
        """
        async with self._held(app, id) as volume:
            if volume.machine is not None:
                raise Conflict(f"volume {id} is attached to machine {volume.machine}", hint="destroy the machine first")
            doomed = msgspec.structs.replace(volume, state=DESTROYING)
            await _to_its_end(self._destroy(doomed))
        self._locks.pop(id, None)
        return doomed

    async def extend(self, app: str, id: str, size: int) -> Volume:
        """Makes one larger: now where it is free, when its machine starts the next time where it is attached.

        Raises:
            Invalid: It is that large already.
            NoSpace: The disk is full.
        """
        async with self._held(app, id) as volume:
            if size <= volume.size:
                raise Invalid(f"size_gb: the volume has {volume.size} bytes already", hint="a volume only grows")
            if volume.machine is None:
                await self._files.grow(id, size)
            return await self._put(msgspec.structs.replace(volume, size=size))

    def snapshots(self, app: str, id: str) -> Sequence[Snapshot]:
        """Its snapshots, the oldest first."""
        return [one for one in self._snapshots.get(self.get(app, id).id, {}).values() if one.status == CREATED]

    def file(self, id: str) -> str:
        """The file that holds a volume, as :meth:`attach` gives it."""
        return str(self._files.data(id))

    async def expire(self, id: str, now: int) -> None:
        """Deletes the snapshots of a volume that are past their retention at ``now``; of one that is gone, none."""
        with contextlib.suppress(NotFound):
            async with self._held(None, id):
                await self._expire(id, now)

    async def snapshot(self, app: str, id: str, *, reflink: bool = False) -> Snapshot:
        """Takes one, which is on disk when this returns.

        Args:
            app: Whose.
            id: Of which volume.
            reflink: Refuse to copy it.

        Raises:
            Conflict: The volume is attached or must not be copied, and the filesystem cannot reflink.
            NoSpace: The disk is full.
        """
        async with self._held(app, id) as volume:
            await self._expire(id, milliseconds())
            snapshot = Snapshot(
                id=_new_id("vs"),
                volume=id,
                size=0,
                volume_size=volume.size,
                digest="",
                status=CREATING,
                retention_days=volume.snapshot_retention,
                created=milliseconds(),
            )
            await self._database.write(put(snapshot))
            try:
                held = await self._files.take(snapshot, live=reflink or volume.machine is not None)
            except BaseException:
                await _to_its_end(self._forget(snapshot))
                raise
            snapshot = msgspec.structs.replace(snapshot, status=CREATED, size=held)
            await self._database.write(put(snapshot))
            self._snapshots[id][snapshot.id] = snapshot
            return snapshot

    async def attach(self, app: str, volume: str, machine: str, *, grow: bool = True) -> str:
        """Reserves a volume for a machine, which has it until ``detach``; the file that holds it.

        Args:
            app: Whose volume.
            volume: Its id.
            machine: Who gets it.
            grow: Make the file as large as it shall be: no machine has it mounted, nor in a memory that was kept.

        Raises:
            NotFound: The app has no such volume.
            Conflict: Another machine has it.
        """
        async with self._held(app, volume) as found:
            self.check(app, volume, machine)
            if found.machine is None:
                found = await self._put(msgspec.structs.replace(found, machine=machine))
            if grow:
                await self._files.grow(volume, found.size)
            return str(self._files.data(volume))

    def check(self, app: str, volume: str, machine: str | None = None) -> None:
        """Refuses a volume that a machine, or a new one, could not have now.

        Raises:
            NotFound: The app has no such volume.
            Conflict: Another machine has it.
        """
        found = self.get(app, volume)
        if found.machine not in (None, machine):
            raise Conflict(f"volume {volume} is attached to machine {found.machine}", hint="destroy that machine first")

    async def detach(self, machine: str, *, keep: Collection[str] = ()) -> None:
        """Gives back all that a machine has, but ``keep``. Idempotent."""
        attached = [volume for volume in self._volumes.values() if volume.machine == machine]
        for volume in attached:
            if volume.id in keep:
                continue
            async with self._held(None, volume.id) as found:
                await self._put(msgspec.structs.replace(found, machine=None))

    @contextlib.asynccontextmanager
    async def _held(self, app: str | None, id: str) -> AsyncIterator[Volume]:
        """One volume, which nobody else changes during the block."""
        self.get(app, id)
        async with self._locks[id]:
            found = self.get(app, id)
            if found.state != CREATED:
                raise Conflict(f"volume {id} is not there yet", hint="try again in a moment")
            yield found

    @contextlib.asynccontextmanager
    async def _origin(self, app: str, snapshot: str | None, source: str | None) -> AsyncIterator[tuple[Path | None, int, bool]]:
        """The file that a new volume begins with, its bytes, and whether a machine may be writing to it."""
        if snapshot is not None:
            owner = next((id for id, taken in self._snapshots.items() if snapshot in taken), "")
            if not owner or self._volumes[owner].app != app:
                raise NotFound(f"snapshot not found: {snapshot[:80]!r}", hint="`castoff volume show` lists a volume's")
            async with self._held(app, owner):
                if snapshot not in self._snapshots[owner]:
                    raise NotFound(f"snapshot not found: {snapshot[:80]!r}", hint="it was past its retention")
                taken = self._snapshots[owner][snapshot]
                yield self._files.snapshot(taken), taken.volume_size, False
        elif source is not None:
            async with self._held(app, source) as found:
                yield self._files.data(source), found.size, found.machine is not None
        else:
            yield None, 0, False

    async def _put(self, volume: Volume) -> Volume:
        """Writes it down. A caller that is cancelled undoes neither the row nor what is known of it here."""

        async def write() -> Volume:
            await self._database.write(put(volume))
            self._volumes[volume.id] = volume
            return volume

        return await _to_its_end(write())

    async def _destroy(self, volume: Volume) -> None:
        await self._put(volume)
        await self._erase(volume)

    async def _erase(self, volume: Volume) -> None:
        """Deletes a volume's files, then its row."""
        await self._files.remove(volume)
        await self._database.write(drop(volume))
        self._snapshots.pop(volume.id, None)
        self._volumes.pop(volume.id, None)

    async def _forget(self, snapshot: Snapshot) -> None:
        """Deletes a snapshot's file, then its row."""
        await self._files.remove(snapshot)
        await self._database.write(drop(snapshot))
        self._snapshots[snapshot.volume].pop(snapshot.id, None)

    async def _expire(self, id: str, now: int) -> None:
        for snapshot in [*self._snapshots[id].values()]:
            if now - snapshot.created > snapshot.retention_days * _DAY:
                await self._forget(snapshot)


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Does ``work``; who is cancelled meanwhile is so when it is done."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(8)}"
