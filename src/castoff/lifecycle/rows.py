"""Machines in the database: how they are read at the agent's start, and how each change is written."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from castoff.lifecycle.config import parse_config
from castoff.lifecycle.model import Event, Lease, Machine
from castoff.lifecycle.states import State
from castoff.machine.model import MachineId

__all__ = ["KEPT_EVENTS", "delete_machine", "load_machines", "read_versions", "save_machines"]

_KEPT_VERSIONS: Final = 50
KEPT_EVENTS: Final = 50
"""Events of a machine that are kept, the newest: as many as the API gives out."""


def load_machines(connection: sqlite3.Connection) -> list[Machine]:
    """Every machine, with its present configuration, its events and its lease."""
    events: dict[str, list[Event]] = {}
    for row in connection.execute("SELECT * FROM events ORDER BY id DESC"):
        request = None if row["request"] is None else msgspec.json.decode(row["request"])
        event = Event(
            id=row["id"],
            type=row["type"],
            status=row["status"],
            source=row["source"],
            timestamp=row["timestamp"],
            request=request,
        )
        events.setdefault(row["machine"], []).append(event)
    leases = {
        row["machine"]: Lease(
            nonce=row["nonce"],
            owner=row["owner"],
            description=row["description"],
            version=row["version"],
            expires=row["expires"],
        )
        for row in connection.execute("SELECT * FROM leases")
    }
    return list(_machines(connection, events, leases))


def _machines(connection: sqlite3.Connection, events: dict[str, list[Event]], leases: dict[str, Lease]) -> Iterator[Machine]:
    query = (
        "SELECT machines.*, versions.config FROM machines"
        " JOIN versions ON versions.machine = machines.id AND versions.version = machines.version"
    )
    for row in connection.execute(query):
        document = msgspec.json.decode(row["config"])
        yield Machine(
            id=MachineId(row["id"]),
            app=row["app"],
            name=row["name"],
            region=row["region"],
            state=State(row["state"]),
            version=row["version"],
            digest=row["digest"],
            document=document,
            config=parse_config(document),
            cordoned=bool(row["cordoned"]),
            restarts=row["restarts"],
            wanted=State(row["wanted"]),
            created=row["created"],
            updated=row["updated"],
            started=row["started"],
            address=row["address"],
            address6=row["address6"],
            events=tuple(events.get(row["id"], ())),
            lease=leases.get(row["id"]),
        )


def save_machines(connection: sqlite3.Connection, changes: Sequence[tuple[Machine, Machine | None]]) -> None:
    """Writes what distinguishes each machine from its value that was written last, None for a new one; in order.

    One statement a table, whose rows are a JSON text that SQLite takes apart by itself: see castoff.lifecycle.database. Documents
    are strings in it, so nothing in them is SQLite's to understand.
    """
    _insert(connection, _MACHINES, [[getattr(machine, field) for field in _COLUMNS] for machine, _ in changes])
    fresh = [machine for machine, before in changes if before is None or before.document is not machine.document]
    if fresh:
        _insert(connection, _VERSIONS, [[one.id, one.version, msgspec.json.encode(one.document).decode()] for one in fresh])
    _insert(connection, _EVENTS, [row for machine, before in changes for row in _new_events(machine, before)])
    for machine, before in changes:
        if before is not None and before.document is not machine.document:
            connection.execute(_OLD_VERSIONS, (machine.id, machine.id, _KEPT_VERSIONS))
        if len(machine.events) >= KEPT_EVENTS:
            connection.execute("DELETE FROM events WHERE machine = ? AND id < ?", (machine.id, machine.events[-1].id))
        if machine.lease != (None if before is None else before.lease):
            _save_lease(connection, machine)


def _insert(connection: sqlite3.Connection, statement: str, rows: list[list[Any]]) -> None:
    if rows:
        connection.execute(statement, (msgspec.json.encode(rows).decode(),))


def _new_events(machine: Machine, before: Machine | None) -> list[list[Any]]:
    known = before.events[0].id if before is not None and before.events else ""
    return [
        [
            *(event.id, machine.id, event.type, event.status, event.source, event.timestamp),
            None if event.request is None else msgspec.json.encode(event.request).decode(),
        ]
        for event in reversed(machine.events)
        if event.id > known
    ]


def _save_lease(connection: sqlite3.Connection, machine: Machine) -> None:
    connection.execute("DELETE FROM leases WHERE machine = ?", (machine.id,))
    if (lease := machine.lease) is not None:
        row = (machine.id, lease.nonce, lease.owner, lease.description, lease.version, lease.expires)
        connection.execute("INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?)", row)


_COLUMNS: Final = (
    *("id", "app", "name", "region", "state", "version", "digest", "cordoned", "restarts", "wanted", "created", "updated"),
    *("started", "address", "address6"),
)


def _each(columns: int) -> str:
    """The rows of a JSON text, as a statement's only parameter. ``WHERE true``: else ON would be taken for a join's."""
    values = ", ".join(f"json_extract(value, '$[{column}]')" for column in range(columns))
    return f"SELECT {values} FROM json_each(?) WHERE true"


_MACHINES: Final = (
    f"INSERT INTO machines {_each(len(_COLUMNS))} ON CONFLICT (id) DO UPDATE SET state = excluded.state,"
    " version = excluded.version, digest = excluded.digest, cordoned = excluded.cordoned, restarts = excluded.restarts,"
    " wanted = excluded.wanted, updated = excluded.updated, started = excluded.started,"
    " address = excluded.address, address6 = excluded.address6"
)
_VERSIONS: Final = f"INSERT OR REPLACE INTO versions {_each(3)}"
_EVENTS: Final = f"INSERT OR IGNORE INTO events {_each(7)}"
_OLD_VERSIONS: Final = (
    "DELETE FROM versions WHERE machine = ? AND version <= (SELECT version FROM versions WHERE machine = ?"
    " ORDER BY version DESC LIMIT 1 OFFSET ?)"
)


def delete_machine(connection: sqlite3.Connection, machine: MachineId) -> None:
    """Forgets a machine, with its versions, events and lease."""
    connection.execute("DELETE FROM machines WHERE id = ?", (machine,))


def read_versions(connection: sqlite3.Connection, machine: MachineId) -> list[tuple[str, dict[str, object]]]:
    """A machine's versions with their configurations, the newest first."""
    rows = connection.execute("SELECT version, config FROM versions WHERE machine = ? ORDER BY version DESC", (machine,))
    return [(row["version"], msgspec.json.decode(row["config"])) for row in rows]
