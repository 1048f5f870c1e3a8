"""The agent's database: what is acknowledged is on disk, what fails fails alone."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from castoff.errors import Internal, Invalid
from castoff.fakes.launcher import World
from castoff.lifecycle.config import parse_config
from castoff.lifecycle.database import Database
from castoff.lifecycle.durations import seconds
from castoff.lifecycle.ids import Ulids
from castoff.lifecycle.machines import CreateRequest
from castoff.lifecycle.schema import STEPS
from castoff.lifecycle.secrets import Secrets
from castoff.lifecycle.states import State
from lifecycle import opened


def _app(name: str) -> str:
    return f"INSERT INTO apps VALUES ('{name}', (SELECT count(*) FROM apps), 'personal', 'default', 0)"


def _count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM apps").fetchone()[0])


async def test_writes_at_once_and_one_that_fails(tmp_path: Path) -> None:
    """200 writes queued at once are all there; the one that breaks a rule is told so and the others are kept."""
    async with Database.open(tmp_path / "castoff.db") as database:
        writes = [
            database.write(lambda connection, n=number: connection.execute(_app(f"a{n}")).rowcount) for number in range(200)
        ]
        doubled = database.write(lambda connection: [connection.execute(_app("b")), connection.execute(_app("b"))])
        results = await asyncio.gather(*writes, doubled, return_exceptions=True)
        assert results[:-1] == [1] * 200
        assert isinstance(results[-1], Exception)
        assert await database.read(_count) == 200
    async with Database.open(tmp_path / "castoff.db") as database:
        assert await database.read(_count) == 200
    assert (tmp_path / "castoff.db").stat().st_mode & 0o777 == 0o600


async def test_what_is_no_database_of_ours(tmp_path: Path) -> None:
    """A file of something else, and one of a newer castoff: said so, and left as it is."""
    other = tmp_path / "other.db"
    other.write_bytes(b"this is no database" * 100)
    with pytest.raises(Invalid, match="no database"):
        async with Database.open(other):
            pass
    newer = tmp_path / "newer.db"
    with sqlite3.connect(newer) as connection:
        connection.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
    connection.close()
    with pytest.raises(Invalid, match="newer castoff"):
        async with Database.open(newer):
            pass


async def test_a_cancelled_writer_does_not_undo(tmp_path: Path) -> None:
    """What was queued is written, whoever waits for it."""
    async with Database.open(tmp_path / "castoff.db") as database:
        writing = asyncio.create_task(database.write(lambda connection: connection.execute(_app("a")).rowcount))
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await database.write(lambda connection: None)
        assert await database.read(_count) in (0, 1)
        assert await database.write(_count) == await database.read(_count)


def test_ulids_ascend_also_when_the_clock_does_not() -> None:
    """26 characters; each greater than the one before, and than one of an earlier process."""
    times = iter([1000, 1000, 500, 2000, 0])
    ulids = Ulids(lambda: next(times))
    made = [ulids.next() for _ in range(4)]
    assert made == sorted(set(made))
    assert {len(ulid) for ulid in made} == {26}
    later = Ulids(lambda: 0)
    later.after(made[-1])
    assert later.next() > made[-1]


@pytest.mark.parametrize("text", ["", "s", "1", "1x", "-1s", "1s" * 33, "1s" * 50 + "nonsense", "10000h"])
def test_what_is_no_duration(text: str) -> None:
    """Also where only its end is wrong, and where it is over a year."""
    with pytest.raises(Invalid):
        seconds(text)


def test_durations() -> None:
    """Go's strings with several units, and nanoseconds."""
    assert [seconds("1m30s"), seconds("1.5s"), seconds("0"), seconds(2_000_000_000)] == [90.0, 1.5, 0.0, 2.0]


def _add_apps(connection: sqlite3.Connection, names: Sequence[str]) -> None:
    connection.executemany(
        "INSERT INTO apps VALUES (?, (SELECT count(*) FROM apps), 'personal', 'default', 0)", [(n,) for n in names]
    )


async def test_rows_that_are_written_together_fail_alone(tmp_path: Path) -> None:
    """Of 100 rows queued at once, between which others wait, the one that breaks a rule is told so; all others are there."""
    async with Database.open(tmp_path / "castoff.db") as database:
        await database.write(lambda connection: connection.execute(_app("a50")).rowcount)
        rows = [database.add(_add_apps, f"a{number}") for number in range(100)]
        other = database.write(lambda connection: connection.execute(_app("b")).rowcount)
        results = await asyncio.gather(*rows[:70], other, *rows[70:], return_exceptions=True)
        assert [type(result) for result in results if result not in (None, 1)] == [Internal]
        assert isinstance(results[50], Internal)
        assert await database.read(_count) == 101


async def test_changes_of_a_machine_that_wait_together_are_written_in_order(tmp_path: Path) -> None:
    """Changes that were queued at once, of which the last one counts: what is read back is what was in memory, with its events
    and with strings that JSON or SQLite could mistake."""
    document = {"image": "x", "env": {"A": 'quote " \\ \U0001f600 []{}'}, "of a later castoff": "\0", "metadata": {}}
    async with opened(tmp_path, World()) as machines:
        made = await machines.create("app", CreateRequest(document=document, config=parse_config(document), lease_ttl=60))
        await machines.wait("app", made.id, states=(State.STARTED,))
        changes = [machines.set_metadata("app", made.id, {f"k{number}": str(number)}) for number in range(60)]
        await asyncio.gather(*changes, machines.cordon("app", made.id, nonce=made.lease.nonce if made.lease else None))
        before = machines.get("app", made.id)
        assert len(before.metadata) == 60
    async with opened(tmp_path, World()) as machines:
        after = msgspec.structs.replace(machines.get("app", made.id), state=before.state)
        events = {event.id for event in before.events}
        assert [event for event in after.events if event.id in events] == list(before.events)
        assert (after.document, after.lease, after.cordoned) == (before.document, before.lease, True)


async def test_secrets_are_looked_up_once_and_never_told_old(tmp_path: Path) -> None:
    """What was set is what a start gets, also where whoever set it was cancelled, or the app was deleted and made anew."""
    async with Database.open(tmp_path / "castoff.db") as database:
        secrets = Secrets(database)
        assert await secrets.values("app") == {}
        await secrets.set("app", {"A": "1"})
        assert await secrets.values("app") == {"A": "1"}
        setting = asyncio.create_task(secrets.set("app", {"A": "2"}))
        await asyncio.sleep(0)
        setting.cancel()
        await asyncio.gather(setting, return_exceptions=True)
        await database.write(lambda connection: None)
        await asyncio.sleep(0)
        assert await secrets.values("app") == {"A": "2"}
        await database.write(lambda connection: connection.execute("DELETE FROM secrets").rowcount)
        secrets.forget("app")
        assert await secrets.values("app") == {}
