"""Releases of apps: what ``flyctl deploy`` writes down of each deployment, and reads again before the next one.

A release changes no machine. It is the client's record of an image and of the app's configuration, from which later commands
(``secrets set``, ``status``, ``config show``) learn what is deployed.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from castoff.errors import Invalid, NotFound
from castoff.lifecycle.database import Database
from castoff.lifecycle.ids import Ulids, milliseconds

__all__ = ["Release", "Releases"]

_KEPT: Final = 100
"""Releases of an app; older ones are forgotten."""
_STATUS: Final = re.compile(r"[a-z_]{1,32}\Z")
"""running, complete, failed, interrupted, and whatever a newer client says."""


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment."""

    id: str
    app: str
    version: int
    """1 for an app's first one."""
    image: str
    strategy: str
    status: str
    definition: Mapping[str, Any]
    """The app's configuration (fly.toml) as the client sent it."""
    owner: str
    """The name of the token that made it."""
    created: int

    @property
    def in_progress(self) -> bool:
        """Whether it has not come to an end, as far as its client told."""
        return self.status in ("pending", "running")


class Releases:
    """The releases of all apps.

    Args:
        database: Where they are kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ids = Ulids()

    async def list(self, app: str, *, limit: int = _KEPT) -> Sequence[Release]:
        """An app's, the newest first."""
        query = "SELECT * FROM releases WHERE app = ? ORDER BY version DESC LIMIT ?"
        return await self._found(query, app, limit)

    async def current(self, app: str) -> Release | None:
        """An app's newest one; None before the first."""
        found = await self.list(app, limit=1)
        return found[0] if found else None

    async def newest(self) -> Sequence[Release]:
        """The newest one of each app that has any."""
        return await self._found(
            "SELECT * FROM releases AS one WHERE version = (SELECT max(version) FROM releases WHERE app = one.app)"
        )

    async def get(self, id: str) -> Release:
        """One.

        Raises:
            NotFound: There is none.
        """
        found = await self._found("SELECT * FROM releases WHERE id = ?", id)
        if not found:
            raise NotFound(f"release not found: {id[:80]!r}")
        return found[0]

    async def create(self, app: str, *, image: str, strategy: str, definition: Mapping[str, Any], owner: str) -> Release:
        """Writes one down, as the app's newest; it is ``pending``.

        Raises:
            NotFound: There is no such app; also one that is deleted just then leaves no release to its successor.
        """
        text = msgspec.json.encode(definition).decode()

        def insert(connection: sqlite3.Connection) -> Release:
            if connection.execute("SELECT 1 FROM apps WHERE name = ?", (app,)).fetchone() is None:
                raise NotFound(f"app not found: {app[:80]!r}")
            query = "SELECT coalesce(max(version), 0) FROM releases WHERE app = ?"
            release = Release(
                id=self._ids.next(),
                app=app,
                version=1 + int(connection.execute(query, (app,)).fetchone()[0]),
                image=image,
                strategy=strategy,
                status="pending",
                definition=definition,
                owner=owner,
                created=milliseconds(),
            )
            row = {**msgspec.structs.asdict(release), "definition": text}
            connection.execute(
                "INSERT INTO releases VALUES (:id, :app, :version, :image, :strategy, :status, :definition, :owner, :created)",
                row,
            )
            connection.execute("DELETE FROM releases WHERE app = ? AND version <= ?", (app, release.version - _KEPT))
            return release

        return await self._database.write(insert)

    async def set_status(self, id: str, status: str) -> Release:
        """Tells how a release fares.

        Raises:
            NotFound: There is none.
            Invalid: ``status`` is no word.
        """
        if not _STATUS.match(status):
            raise Invalid(f"status {status[:32]!r} is none of a release", hint="running, complete, failed, interrupted")
        release = msgspec.structs.replace(await self.get(id), status=status)
        await self._database.write(
            lambda connection: connection.execute("UPDATE releases SET status = ? WHERE id = ?", (status, id)).close()
        )
        return release

    async def _found(self, query: str, *values: str | int) -> Sequence[Release]:
        rows = await self._database.read(lambda connection: connection.execute(query, values).fetchall())
        return [Release(**{**dict(row), "definition": msgspec.json.decode(row["definition"])}) for row in rows]
