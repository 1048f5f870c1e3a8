"""The agent's database, ``STATE/castoff.db``: every table, and how an older file becomes today's.

SQLite in WAL mode with ``synchronous = FULL``: what is committed is on disk. Times are Unix milliseconds, documents are JSON.
``PRAGMA user_version`` counts the steps that a file has had.
"""

from __future__ import annotations

from typing import Final

__all__ = ["STEPS"]

STEPS: Final = (
    """
    CREATE TABLE apps (
        name TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, organization TEXT NOT NULL, network TEXT NOT NULL,
        created INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE machines (
        id TEXT PRIMARY KEY, app TEXT NOT NULL, name TEXT NOT NULL, region TEXT NOT NULL, state TEXT NOT NULL,
        version TEXT NOT NULL, digest TEXT NOT NULL, cordoned INTEGER NOT NULL, restarts INTEGER NOT NULL,
        wanted TEXT NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL, started INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX machines_of_app ON machines (app);
    CREATE TABLE versions (
        machine TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE, version TEXT NOT NULL, config TEXT NOT NULL,
        PRIMARY KEY (machine, version)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE events (
        id TEXT PRIMARY KEY, machine TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE, type TEXT NOT NULL,
        status TEXT NOT NULL, source TEXT NOT NULL, timestamp INTEGER NOT NULL, request TEXT
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX events_of_machine ON events (machine, id);
    CREATE TABLE leases (
        machine TEXT PRIMARY KEY REFERENCES machines (id) ON DELETE CASCADE, nonce TEXT NOT NULL, owner TEXT NOT NULL,
        description TEXT NOT NULL, version TEXT NOT NULL, expires INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE volumes (
        id TEXT PRIMARY KEY, app TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL, size INTEGER NOT NULL,
        region TEXT NOT NULL, fstype TEXT NOT NULL, machine TEXT, snapshot_retention INTEGER NOT NULL,
        auto_backup INTEGER NOT NULL, created INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX volumes_of_app ON volumes (app);
    CREATE TABLE snapshots (
        id TEXT PRIMARY KEY, volume TEXT NOT NULL, size INTEGER NOT NULL, volume_size INTEGER NOT NULL, digest TEXT NOT NULL,
        status TEXT NOT NULL, retention_days INTEGER NOT NULL, created INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX snapshots_of_volume ON snapshots (volume);
    CREATE TABLE secrets (
        app TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL, digest TEXT NOT NULL, created INTEGER NOT NULL,
        updated INTEGER NOT NULL, PRIMARY KEY (app, name)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE secret_versions (app TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE tokens (
        id TEXT PRIMARY KEY, hash BLOB NOT NULL UNIQUE, name TEXT NOT NULL, app TEXT, read_only INTEGER NOT NULL,
        expires INTEGER, created INTEGER NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE releases (
        id TEXT PRIMARY KEY, app TEXT NOT NULL, version INTEGER NOT NULL, image TEXT NOT NULL, strategy TEXT NOT NULL,
        status TEXT NOT NULL, definition TEXT NOT NULL, owner TEXT NOT NULL, created INTEGER NOT NULL, UNIQUE (app, version)
    ) STRICT;
    """,
    """
    ALTER TABLE machines ADD COLUMN address TEXT NOT NULL DEFAULT '';
    ALTER TABLE machines ADD COLUMN address6 TEXT NOT NULL DEFAULT '';
    """,
)
"""SQL scripts, each applied once, in order. Published ones are never changed; a change is a new step."""
