"""Volumes: files that e2fsck finds in order, rows that survive, and nothing left of what did not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from castoff.disk.volume import copy_volume, filesystem_size, grow_volume, make_volume
from castoff.errors import CastoffError, Conflict, Internal, Invalid, NotFound, Unsupported
from castoff.lifecycle.database import Database
from castoff.lifecycle.ids import milliseconds
from castoff.lifecycle.volume_rows import CREATING, DESTROYING, drop, put
from castoff.lifecycle.volumes import Volumes

MB, GB = 1 << 20, 1 << 30


@contextlib.asynccontextmanager
async def volumes_of(directory: Path) -> AsyncIterator[tuple[Volumes, Database]]:
    """The volumes of a state directory, as an agent that starts finds them."""
    async with Database.open(directory / "castoff.db") as database:
        volumes = Volumes(database, directory / "volumes", region="here")
        await volumes.load()
        yield volumes, database


@pytest.fixture
async def volumes(tmp_path: Path) -> AsyncIterator[Volumes]:
    """Volumes of a new state directory."""
    async with volumes_of(tmp_path) as (found, _):
        yield found


def check(image: Path) -> None:
    """e2fsck has nothing to say."""
    done = subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def data(directory: Path, id: str) -> Path:
    return directory / "volumes" / id / "data.ext4"


def write(image: Path, name: str, text: bytes) -> None:
    """Puts a file into a filesystem that nobody has mounted."""
    source = image.with_name("input")
    source.write_bytes(text)
    subprocess.run(["debugfs", "-w", "-R", f"write {source} {name}", str(image)], check=True, capture_output=True)
    source.unlink()


def read(image: Path, name: str) -> bytes:
    return subprocess.run(["debugfs", "-R", f"cat {name}", str(image)], check=True, capture_output=True).stdout


async def test_an_empty_one_is_sparse_and_whole(volumes: Volumes, tmp_path: Path) -> None:
    """Of the size that was asked for, to grow later, and taking little; private to its owner."""
    volume = await volumes.create("mine", "data", size=20 * GB)
    assert (volume.state, volume.size, volume.region, volume.machine) == ("created", 20 * GB, "here", None)
    assert volumes.list("mine") == [volume] == volumes.list() and volumes.list("other") == []
    image = data(tmp_path, volume.id)
    status = image.stat()
    assert status.st_size == filesystem_size(image) == 20 * GB
    assert status.st_blocks * 512 < 300 * MB and status.st_mode & 0o077 == 0
    check(image)


async def test_growing_keeps_what_is_in_it(volumes: Volumes, tmp_path: Path) -> None:
    """A free one grows at once, an attached one when its machine starts again; none shrinks."""
    volume = await volumes.create("mine", "data", size=1 * GB)
    image = data(tmp_path, volume.id)
    write(image, "kept", b"through it all")
    assert (await volumes.extend("mine", volume.id, 2 * GB)).size == 2 * GB
    assert filesystem_size(image) == 2 * GB
    check(image)
    assert await volumes.attach("mine", volume.id, "m1") == str(image)
    assert (await volumes.extend("mine", volume.id, 5 * GB)).size == 5 * GB
    assert filesystem_size(image) == image.stat().st_size == 2 * GB, "a mounted filesystem was changed"
    with image.open("rb"), pytest.raises(Conflict, match="still open"):  # by a VMM that nobody knows of
        await volumes.attach("mine", volume.id, "m1")
    assert filesystem_size(image) == 2 * GB
    await volumes.attach("mine", volume.id, "m1", grow=False)
    assert filesystem_size(image) == 2 * GB, "a machine that goes on from its memory has it mounted"
    os.truncate(image, 5 * GB)  # as a crash in the middle of growing leaves it
    await volumes.attach("mine", volume.id, "m1")
    assert filesystem_size(image) == 5 * GB
    check(image)
    assert read(image, "kept") == b"through it all"
    for size in (1 * GB, 5 * GB):
        with pytest.raises(Invalid, match="already"):
            await volumes.extend("mine", volume.id, size)


async def test_one_machine_at_a_time(volumes: Volumes) -> None:
    """Of many that ask at once one gets it, again and again, until it gives it back; an attached one is not deleted."""
    volume = await volumes.create("mine", "data", size=1 * GB)
    asked = [volumes.attach("mine", volume.id, f"m{number}") for number in range(8)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(answer, str) for answer in answers) == 1
    assert sum(isinstance(answer, Conflict) for answer in answers) == 7
    owner = volumes.get("mine", volume.id).machine
    assert owner is not None
    await volumes.attach("mine", volume.id, owner)
    with pytest.raises(Conflict, match=owner):
        await volumes.delete("mine", volume.id)
    await volumes.detach(owner)
    await volumes.detach(owner)
    spare = await volumes.create("mine", "spare", size=1 * GB)
    for id in (volume.id, spare.id):
        await volumes.attach("mine", id, "another")
    await volumes.detach("another", keep=[volume.id])
    assert [volumes.get("mine", id).machine for id in (volume.id, spare.id)] == ["another", None]
    with pytest.raises(NotFound):
        await volumes.attach("other", volume.id, "another")


async def test_snapshots_and_forks_are_of_one_instant(volumes: Volumes, tmp_path: Path) -> None:
    """Neither sees what is written later; a restored one may be larger, never smaller; other apps get nothing."""
    volume = await volumes.create("mine", "data", size=1 * GB)
    image = data(tmp_path, volume.id)
    write(image, "then", b"1")
    snapshot = await volumes.snapshot("mine", volume.id)
    fork = await volumes.create("mine", "fork", size=None, source=volume.id)
    write(image, "later", b"2")
    restored = await volumes.create("mine", "back", size=2 * GB, snapshot=snapshot.id)
    assert volumes.snapshots("mine", volume.id) == [snapshot]
    assert (snapshot.status, snapshot.volume_size, fork.size, restored.size) == ("created", 1 * GB, 1 * GB, 2 * GB)
    for copy in (fork, restored):
        copied = data(tmp_path, copy.id)
        assert (read(copied, "then"), read(copied, "later")) == (b"1", b"")
        assert filesystem_size(copied) == copy.size
        check(copied)
    assert read(image, "later") == b"2"
    await volumes.extend("mine", volume.id, 3 * GB)
    with pytest.raises(Invalid, match="less than"):
        await volumes.create("mine", "small", size=1 * GB, source=volume.id)
    for origin in ({"snapshot": snapshot.id}, {"source": volume.id}, {"snapshot": "vs_0"}, {"source": "../etc"}):
        with pytest.raises(NotFound):
            await volumes.create("other", "stolen", size=None, **origin)
    assert len(volumes.list()) == 3
    await volumes.delete("mine", volume.id)
    assert sorted(entry.name for entry in (tmp_path / "volumes").iterdir()) == sorted([fork.id, restored.id])


async def test_a_copy_of_what_is_written_to_is_a_reflink_or_none(tmp_path: Path) -> None:
    """/dev/shm has no reflinks: there a live copy is refused, and nothing is left of it."""
    source = Path(f"/dev/shm/castoff-{os.getpid()}.ext4")
    try:
        await make_volume(source, 64 * MB, "x")
        with pytest.raises(Conflict, match="reflinks"):
            await copy_volume(source, tmp_path / "copy", live=True)
        assert list(tmp_path.iterdir()) == []
        await copy_volume(source, tmp_path / "copy", live=False)
        check(tmp_path / "copy")
    finally:
        source.unlink(missing_ok=True)


async def test_what_cannot_be(volumes: Volumes, tmp_path: Path) -> None:
    """Names, sizes, kinds; what fails leaves neither row nor file; a damaged filesystem is told."""
    for name in ("", "../x", "a" * 64, "a b", "-L"):
        with pytest.raises(Invalid):
            await volumes.create("mine", name, size=1 * GB)
    with pytest.raises(Invalid, match="fstype"):
        await volumes.create("mine", "other", size=1 * GB, fstype="xfs")
    with pytest.raises(Unsupported):
        await volumes.create("mine", "raw", size=1 * GB, fstype="raw")
    with pytest.raises(CastoffError):
        await volumes.create("mine", "tiny", size=4096)
    assert volumes.list() == [] and list((tmp_path / "volumes").iterdir()) == []
    broken = tmp_path / "broken"
    broken.write_bytes(bytes(MB))
    with pytest.raises(Internal, match="no ext4"):
        await grow_volume(broken, 2 * MB)


async def test_a_crash_leaves_what_was_acknowledged(tmp_path: Path) -> None:
    """The next agent has every volume and snapshot that was answered; half-made and half-deleted ones are gone."""
    async with volumes_of(tmp_path) as (volumes, database):
        kept = await volumes.create("mine", "kept", size=1 * GB)
        taken = await volumes.snapshot("mine", kept.id)
        doomed = [await volumes.create("mine", "doomed", size=1 * GB) for _ in range(2)]
        old = await volumes.snapshot("mine", kept.id)
        await volumes.attach("mine", kept.id, "m1")
        half = msgspec.structs.replace(taken, id="vs_half", status="creating")
        past = msgspec.structs.replace(old, created=milliseconds() - 6 * 24 * 3600 * 1000)
        for row in (
            msgspec.structs.replace(doomed[0], state=CREATING),
            msgspec.structs.replace(doomed[1], state=DESTROYING),
            half,
            past,
        ):
            await database.write(put(row))
        (tmp_path / "volumes" / kept.id / "vs_half.ext4").write_bytes(b"half")
    for _ in range(2):
        async with volumes_of(tmp_path) as (volumes, _):
            assert volumes.list() == [msgspec.structs.replace(kept, machine="m1")]
            assert volumes.snapshots("mine", kept.id) == [taken]
            names = sorted(str(path.relative_to(tmp_path / "volumes")) for path in (tmp_path / "volumes").rglob("*"))
            assert names == [kept.id, f"{kept.id}/data.ext4", f"{kept.id}/{taken.id}.ext4"]
            check(data(tmp_path, kept.id))


async def test_what_no_row_tells_of_is_not_removed_unasked(tmp_path: Path) -> None:
    """Files without rows mean that the database was lost or is an old one: the agent refuses to start over them."""
    async with volumes_of(tmp_path) as (volumes, _):
        volume = await volumes.create("mine", "data", size=1 * GB)
        snapshot = await volumes.snapshot("mine", volume.id)
    files = (data(tmp_path, volume.id), tmp_path / "volumes" / volume.id / f"{snapshot.id}.ext4")
    async with Database.open(tmp_path / "castoff.db") as database:
        await database.write(drop(snapshot))
        with pytest.raises(Conflict, match=f"1 volumes or snapshots.*{snapshot.id}"):
            await Volumes(database, tmp_path / "volumes").load()
    (tmp_path / "castoff.db").unlink()
    async with Database.open(tmp_path / "castoff.db") as database:
        lost = Volumes(database, tmp_path / "volumes")
        with pytest.raises(Conflict, match=volume.id):
            await lost.load()
        assert all(file.exists() for file in files)
        await lost.load(discard_unknown=True)
        assert list((tmp_path / "volumes").iterdir()) == []


async def test_a_create_that_is_cancelled_leaves_nothing(volumes: Volumes, tmp_path: Path) -> None:
    """At whatever instant: there is a volume, or no trace of one."""
    for turns in range(0, 60, 3):
        making = asyncio.create_task(volumes.create("mine", "data", size=1 * GB))
        for _ in range(turns):
            await asyncio.sleep(0.001)
        making.cancel()
        await asyncio.gather(making, return_exceptions=True)
        there = {entry.name for entry in (tmp_path / "volumes").iterdir()}
        assert there == {volume.id for volume in volumes.list()}
        for volume in volumes.list():
            assert volume.state == "created"
            await volumes.delete("mine", volume.id)
