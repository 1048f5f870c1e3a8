"""Tokens: who may use the API. Only their hashes are kept; each request looks them up, so that a revoked one is known at once.

A token is 256 random bits, so its plain sha256 is as good as any slower hash: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
from collections.abc import Sequence
from typing import Final

import msgspec

from castoff.api.auth import Grant
from castoff.errors import Invalid, NotFound
from castoff.lifecycle.database import Database
from castoff.lifecycle.ids import milliseconds

__all__ = ["Token", "Tokens"]

_PREFIX: Final = "castoff_"
_NAME: Final = re.compile(r"[\w .@:-]{1,64}\Z")


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token without its text."""

    id: str
    name: str
    app: str | None
    """The one app that it is for; None: all."""
    read_only: bool
    expires: int | None
    """Unix milliseconds; None: never."""
    created: int


class Tokens:
    """The tokens. Implements castoff.api.auth.Authenticator.

    Args:
        database: Where their hashes are kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self, *, name: str = "token", app: str | None = None, read_only: bool = False, ttl: int | None = None
    ) -> tuple[Token, str]:
        """Makes a token; its text is told here and never again.

        Args:
            name: For people; the owner of leases that it takes.
            app: The one app that it is for.
            read_only: It changes nothing.
            ttl: Seconds for which it is good.

        Raises:
            Invalid: The name or the time is not usable.
        """
        if not _NAME.match(name):
            raise Invalid(f"token name {name[:80]!r} is not usable", hint="letters, digits, spaces and .@:-; at most 64")
        if ttl is not None and ttl <= 0:
            raise Invalid("a token's time must be positive")
        text = _PREFIX + secrets.token_urlsafe(32)
        now = milliseconds()
        expires = None if ttl is None else now + ttl * 1000
        token = Token(id=secrets.token_hex(4), name=name, app=app, read_only=read_only, expires=expires, created=now)
        row = (token.id, _hash(text), name, app, int(read_only), expires, now)
        await self._database.write(lambda connection: connection.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?)", row))
        return token, text

    async def list(self) -> Sequence[Token]:
        """All, the oldest first."""
        query = "SELECT id, name, app, read_only, expires, created FROM tokens ORDER BY created, id"
        rows = await self._database.read(lambda connection: connection.execute(query).fetchall())
        return [_token(row) for row in rows]

    async def revoke(self, id: str) -> None:
        """Makes a token worthless.

        Raises:
            NotFound: There is none of this id.
        """
        count = await self._database.write(
            lambda connection: connection.execute("DELETE FROM tokens WHERE id = ?", (id,)).rowcount
        )
        if not count:
            raise NotFound(f"there is no token {id[:40]!r}", hint="`castoff token list` shows those that are")

    async def authenticate(self, presented: str) -> Grant | None:
        """See castoff.api.auth.Authenticator. The hash is what is compared, and its time tells nothing of the token."""
        query, given = "SELECT id, name, app, read_only, expires, created FROM tokens WHERE hash = ?", _hash(presented)
        row = await self._database.read(lambda connection: connection.execute(query, (given,)).fetchone())
        if row is None:
            return None
        token = _token(row)
        if token.expires is not None and token.expires <= milliseconds():
            return None
        return Grant(app=token.app, read_only=token.read_only, name=token.name)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()


def _token(row: sqlite3.Row) -> Token:
    return Token(**{**dict(row), "read_only": bool(row["read_only"])})
