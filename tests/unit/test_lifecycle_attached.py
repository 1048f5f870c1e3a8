"""Volumes and the machines that have them: larger at once or later, flushed before a snapshot, a backup a day."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from castoff.errors import Invalid
from castoff.fakes.launcher import FakeLauncher, World
from castoff.lifecycle.attached import Attached, Backups
from castoff.lifecycle.database import Database
from castoff.lifecycle.machines import Machines
from castoff.lifecycle.states import State
from castoff.lifecycle.volumes import Volumes
from lifecycle import Secrets, settled, wanted

APP = "shop"
GB = 1 << 30
DAY = 24 * 3600 * 1000


@dataclass
class Parts:
    """Of an agent."""

    world: World
    volumes: Volumes
    machines: Machines
    attached: Attached

    async def machine_with(self, volume: str, image: str = "alpine") -> str:
        """A machine that runs and has a volume."""
        machine = await self.machines.create(APP, wanted(image, mounts=[{"volume": volume, "path": "/data"}]))
        return (await settled(self.machines, machine, State.STARTED)).id


@contextlib.asynccontextmanager
async def parts_of(directory: Path) -> AsyncIterator[Parts]:
    """An agent's parts over a directory."""
    world = World()
    async with Database.open(directory / "castoff.db") as database:
        volumes = Volumes(database, directory / "volumes")
        await volumes.load()
        async with Machines.open(database, FakeLauncher(world), secrets=Secrets(), volumes=volumes) as machines:
            yield Parts(world, volumes, machines, Attached(volumes, machines))


async def test_a_machine_that_runs_has_a_larger_volume_at_once(tmp_path: Path) -> None:
    """Where its VMM can; else when it starts the next time, and why is told. A free one is larger at once."""
    async with parts_of(tmp_path) as parts:
        free, held, rigid = [(await parts.volumes.create(APP, name, size=GB)).id for name in ("free", "held", "rigid")]
        assert (await parts.attached.extend(APP, free, 2 * GB)).needs_restart is False
        machine = await parts.machine_with(held)
        extended = await parts.attached.extend(APP, held, 3 * GB)
        assert (extended.volume.size, extended.needs_restart, extended.why) == (3 * GB, False, "")
        assert parts.world.grown == [(machine, parts.volumes.file(held), 3 * GB)]
        parts.world.rigid.add("rigid")
        await parts.machine_with(rigid, "rigid")
        extended = await parts.attached.extend(APP, rigid, 3 * GB)
        assert extended.needs_restart and "larger drive" in extended.why
        await parts.machines.stop(APP, machine)
        await settled(parts.machines, parts.machines.get(APP, machine), State.STOPPED)
        extended = await parts.attached.extend(APP, held, 4 * GB)
        assert extended.needs_restart and not extended.why
        with pytest.raises(Invalid):
            await parts.attached.extend(APP, held, 4 * GB)
        assert len(parts.world.grown) == 1


async def test_a_snapshot_has_what_the_machine_wrote(scratch_xfs: Path) -> None:
    """It is flushed before; a machine that does not do that, or does not run, is none the worse."""
    async with parts_of(scratch_xfs) as parts:
        volume = (await parts.volumes.create(APP, "data", size=GB)).id
        await parts.attached.snapshot(APP, volume)
        machine = await parts.machine_with(volume)
        await parts.attached.snapshot(APP, volume)
        assert parts.world.synced == [(machine, parts.volumes.file(volume))]
        await parts.machines.stop(APP, machine)
        await settled(parts.machines, parts.machines.get(APP, machine), State.STOPPED)
        await parts.attached.snapshot(APP, volume)
        assert len(parts.volumes.snapshots(APP, volume)) == 3 and len(parts.world.synced) == 1


async def test_a_backup_a_day(scratch_xfs: Path) -> None:
    """Of each volume that wants one, a day after the last snapshot; those past their retention go."""
    async with parts_of(scratch_xfs) as parts:
        kept = await parts.volumes.create(APP, "kept", size=GB, snapshot_retention=2)
        other = await parts.volumes.create(APP, "other", size=GB, auto_backup=False)
        machine = await parts.machine_with(kept.id)
        said: list[str] = []
        backups = Backups(parts.volumes, parts.attached, said.append)
        await backups.look(kept.created + DAY - 1)
        assert parts.volumes.snapshots(APP, kept.id) == []
        await backups.look(kept.created + DAY)
        (first,) = parts.volumes.snapshots(APP, kept.id)
        assert parts.world.synced == [(machine, parts.volumes.file(kept.id))]
        await backups.look(first.created + DAY - 1)
        assert list(parts.volumes.snapshots(APP, kept.id)) == [first]
        await backups.look(first.created + DAY)
        second = parts.volumes.snapshots(APP, kept.id)[1]
        await backups.look(first.created + 2 * DAY + 1)
        left = parts.volumes.snapshots(APP, kept.id)
        assert first not in left and second.id not in {one.id for one in left[1:]}
        assert parts.volumes.snapshots(APP, other.id) == [] and said == []


async def test_a_backup_is_never_a_copy() -> None:
    """A filesystem without reflinks gets none: it is told once a day, and what a client asks for is still done."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        async with parts_of(Path(directory)) as parts:
            volume = await parts.volumes.create(APP, "data", size=GB)
            said: list[str] = []
            backups = Backups(parts.volumes, parts.attached, said.append)
            for minutes in (0, 10, 20):
                await backups.look(volume.created + DAY + minutes * 60_000)
            assert len(said) == 1 and "no backup" in said[0] and "reflinks" in said[0]
            await backups.look(volume.created + 2 * DAY)
            assert len(said) == 2 and parts.volumes.snapshots(APP, volume.id) == []
            await parts.attached.snapshot(APP, volume.id)
            assert len(parts.volumes.snapshots(APP, volume.id)) == 1


async def test_the_volume_of_a_machine_that_is_no_more_is_given_back(tmp_path: Path) -> None:
    """But not one of a machine of which something is on the host, which may write to it; nor one of a machine that is known,
    whether it runs or not."""
    async with parts_of(tmp_path) as parts:
        running, stopped, vanished, unknown = [
            (await parts.volumes.create(APP, name, size=GB)).id for name in ("running", "stopped", "vanished", "unknown")
        ]
        kept = [await parts.machine_with(running), await parts.machine_with(stopped)]
        await parts.machines.stop(APP, kept[1])
        await settled(parts.machines, parts.machines.get(APP, kept[1]), State.STOPPED)
        for volume, machine in ((vanished, "a" * 14), (unknown, "b" * 14)):
            await parts.volumes.attach(APP, volume, machine)

        assert [lost.id for lost in await parts.attached.release_lost(["b" * 14])] == [vanished]
        held = {volume.id: volume.machine for volume in parts.volumes.list()}
        assert held == {running: kept[0], stopped: kept[1], vanished: None, unknown: "b" * 14}
        assert await parts.attached.release_lost(["b" * 14]) == []
        assert await parts.machine_with(vanished)
        assert [lost.id for lost in await parts.attached.release_lost([])] == [unknown]
