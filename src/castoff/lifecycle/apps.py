"""Apps: names under which machines, volumes and secrets belong together."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from castoff.errors import Conflict, Invalid, NotFound
from castoff.lifecycle.database import Database
from castoff.lifecycle.ids import milliseconds

__all__ = ["App", "Apps"]

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")


class App(msgspec.Struct, frozen=True, kw_only=True):
    """An app."""

    name: str
    number: int
    """Its numeric id, which clients want beside its name."""
    organization: str
    network: str
    created: int


class Apps:
    """The apps of this host.

    Args:
        database: Where they are kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._apps: dict[str, App] = {}

    async def load(self) -> None:
        """Reads them."""
        rows = await self._database.read(lambda connection: connection.execute("SELECT * FROM apps ORDER BY number").fetchall())
        self._apps = {row["name"]: App(**dict(row)) for row in rows}

    def get(self, name: str) -> App:
        """One app.

        Raises:
            NotFound: There is none.
        """
        found = self._apps.get(name)
        if found is None:
            raise NotFound(f"app not found: {name[:80]!r}", hint="`castoff app create` makes one")
        return found

    def list(self) -> Sequence[App]:
        """All, the oldest first."""
        return list(self._apps.values())

    async def create(self, name: str, *, organization: str, network: str = "default") -> App:
        """Makes an app.

        Raises:
            Invalid: The name could not be part of a host name.
            Conflict: There is one of that name.
        """
        if not _NAME.match(name):
            raise Invalid(f"app name {name[:80]!r} is not usable", hint="small letters, digits, dashes inside; at most 63")

        def insert(connection: sqlite3.Connection) -> App:
            if connection.execute("SELECT 1 FROM apps WHERE name = ?", (name,)).fetchone() is not None:
                raise Conflict(f"an app named {name!r} exists", hint="take another name")
            number = 1 + int(connection.execute("SELECT coalesce(max(number), 0) FROM apps").fetchone()[0])
            app = App(name=name, number=number, organization=organization, network=network, created=milliseconds())
            connection.execute("INSERT INTO apps VALUES (?, ?, ?, ?, ?)", msgspec.structs.astuple(app))
            return app

        app = self._apps[name] = await self._database.write(insert)
        return app

    async def delete(self, name: str, *, used: Callable[[], str]) -> None:
        """Deletes an app, its secrets and its releases.

        Args:
            name: Its name.
            used: Says what still belongs to it; empty: nothing.

        Raises:
            NotFound: There is none.
            Conflict: Something belongs to it.
        """
        self.get(name)

        def remove(connection: sqlite3.Connection) -> None:
            for table in ("secrets", "secret_versions", "releases"):
                connection.execute(f"DELETE FROM {table} WHERE app = ?", (name,))
            connection.execute("DELETE FROM apps WHERE name = ?", (name,))

        if reason := used():
            raise Conflict(f"app {name} has {reason}", hint="destroy them first")
        await self._database.write(remove)
        self._apps.pop(name, None)
