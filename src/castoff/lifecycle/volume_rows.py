"""Volumes and their snapshots as values, and as rows of the database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

import msgspec

__all__ = ["CREATED", "CREATING", "DESTROYING", "Snapshot", "Volume", "drop", "load", "put"]

CREATING: Final = "creating"
"""Its file is being made; a crash undoes it."""
CREATED: Final = "created"
DESTROYING: Final = "pending_destroy"
"""Its file is being deleted; after a crash that is finished."""


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A filesystem of an app's that outlives its machines. Fields in the order of the table's columns."""

    id: str
    app: str
    name: str
    state: str
    size: int
    region: str
    fstype: str
    machine: str | None
    """Who has it."""
    snapshot_retention: int
    """Days."""
    auto_backup: bool
    created: int


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as it was. Fields in the order of the table's columns."""

    id: str
    volume: str
    size: int
    """Bytes of data in it when it was taken, which it shares with the volume where the filesystem can."""
    volume_size: int
    digest: str
    """Empty: nobody reads a volume through for it."""
    status: str
    retention_days: int
    created: int


def put(row: Volume | Snapshot) -> Callable[[sqlite3.Connection], None]:
    """Writes a row down; an older one of the same id is replaced."""
    values = msgspec.structs.astuple(row)
    places = ", ".join("?" * len(values))
    statement = f"INSERT OR REPLACE INTO {_table(row)} VALUES ({places})"  # of names in this file alone

    def work(connection: sqlite3.Connection) -> None:
        connection.execute(statement, values)

    return work


def drop(row: Volume | Snapshot) -> Callable[[sqlite3.Connection], None]:
    """Deletes a row; a volume's snapshots with it."""

    def work(connection: sqlite3.Connection) -> None:
        if isinstance(row, Volume):
            connection.execute("DELETE FROM snapshots WHERE volume = ?", (row.id,))
        connection.execute(f"DELETE FROM {_table(row)} WHERE id = ?", (row.id,))

    return work


def load(connection: sqlite3.Connection) -> tuple[list[Volume], list[Snapshot]]:
    """All rows, the oldest first."""
    volumes = connection.execute("SELECT * FROM volumes ORDER BY created, id").fetchall()
    snapshots = connection.execute("SELECT * FROM snapshots ORDER BY created, id").fetchall()
    return (
        [Volume(**{**dict(row), "auto_backup": bool(row["auto_backup"])}) for row in volumes],
        [Snapshot(**dict(row)) for row in snapshots],
    )


def _table(row: Volume | Snapshot) -> str:
    return "volumes" if isinstance(row, Volume) else "snapshots"
