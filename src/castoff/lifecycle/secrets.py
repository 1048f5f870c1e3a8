"""Secrets of apps: variables and files of their machines, which no configuration, event or log ever shows.

They lie in the database, whose file only its owner can read.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import sqlite3
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from castoff.errors import Invalid, LimitExceeded, NotFound
from castoff.lifecycle.database import Database
from castoff.lifecycle.ids import milliseconds

__all__ = ["Secret", "Secrets"]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}\Z")
_LONGEST: Final = 64 * 1024


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """A secret without its value."""

    name: str
    digest: str
    """The first 16 hexadecimal digits of sha256 over app, name and value: tells whether it changed, and not what it is."""
    created: int
    updated: int


class Secrets:
    """The secrets of all apps.

    Args:
        database: Where they are kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._values: dict[str, Mapping[str, str]] = {}
        """What is known of them: each start of a machine asks, and a look into the database is a way to a thread and back."""
        self._changes = 0

    async def list(self, app: str) -> Sequence[Secret]:
        """An app's secrets, by name, without their values."""
        query = "SELECT name, digest, created, updated FROM secrets WHERE app = ? ORDER BY name"
        rows = await self._database.read(lambda connection: connection.execute(query, (app,)).fetchall())
        return [Secret(**dict(row)) for row in rows]

    async def get(self, app: str, name: str) -> Secret:
        """One, without its value.

        Raises:
            NotFound: There is none.
        """
        for secret in await self.list(app):
            if secret.name == name:
                return secret
        raise NotFound(f"app {app} has no secret {name[:80]!r}")

    async def values(self, app: str) -> Mapping[str, str]:
        """An app's secrets with their values."""
        known = self._values.get(app)
        if known is not None:
            return known
        changes = self._changes
        query = "SELECT name, value FROM secrets WHERE app = ?"
        rows = await self._database.read(lambda connection: connection.execute(query, (app,)).fetchall())
        values = MappingProxyType({row["name"]: row["value"].decode() for row in rows})
        if changes == self._changes:  # else it was read before a change of which whoever asks next was told
            self._values[app] = values
        return values

    def forget(self, app: str) -> None:
        """The app's secrets are looked up anew: they have changed, or went with it."""
        self._changes += 1
        self._values.pop(app, None)

    async def version(self, app: str) -> int:
        """The version of an app's secrets: one more with each change, 0 before the first."""
        query = "SELECT version FROM secret_versions WHERE app = ?"
        row = await self._database.read(lambda connection: connection.execute(query, (app,)).fetchone())
        return int(row["version"]) if row is not None else 0

    async def set(self, app: str, values: Mapping[str, str | None]) -> int:
        """Sets several at once; None removes one. Machines see them when they start the next time.

        Returns:
            The version of the app's secrets since then.

        Raises:
            Invalid: A name could not be a variable's.
            LimitExceeded: A value has over 64 KiB.
        """
        for name, value in values.items():
            if not _NAME.match(name):
                raise Invalid(f"{name[:80]!r} is no name of a secret", hint="letters, digits and _, as for a variable")
            if value is not None and len(value.encode()) > _LONGEST:
                raise LimitExceeded(f"the value of secret {name}", limit=_LONGEST, setting="the secret's file in the image")
            if value is not None and "\0" in value:
                raise Invalid(f"the value of secret {name} holds a NUL byte", hint="send it as base64")

        def write(connection: sqlite3.Connection) -> int:
            now = milliseconds()
            for name, value in values.items():
                if value is None:
                    connection.execute("DELETE FROM secrets WHERE app = ? AND name = ?", (app, name))
                    continue
                digest = hashlib.sha256(f"{app}\0{name}\0{value}".encode()).hexdigest()[:16]
                connection.execute(
                    "INSERT INTO secrets VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (app, name) DO UPDATE SET value = excluded.value,"
                    " digest = excluded.digest, updated = excluded.updated",
                    (app, name, value.encode(), digest, now, now),
                )
            connection.execute(
                "INSERT INTO secret_versions VALUES (?, 1) ON CONFLICT (app) DO UPDATE SET version = version + 1", (app,)
            )
            row = connection.execute("SELECT version FROM secret_versions WHERE app = ?", (app,)).fetchone()
            return int(row["version"])

        # A task of its own: where whoever asks is cancelled, the write goes on, and is what must be known here afterwards.
        writing = asyncio.ensure_future(self._database.write(write))
        writing.add_done_callback(lambda _: self.forget(app))
        return await asyncio.shield(writing)
