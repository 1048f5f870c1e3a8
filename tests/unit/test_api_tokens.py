"""Tokens in the agent's database: known, scoped, expired, revoked."""

from __future__ import annotations

from pathlib import Path

import pytest

from castoff.api.auth import Grant
from castoff.api.tokens import Tokens
from castoff.errors import Invalid, NotFound
from castoff.lifecycle.database import Database


async def test_a_token_is_known_until_it_is_revoked(tmp_path: Path) -> None:
    """What it allows is as it was made; its text is nowhere in the database."""
    async with Database.open(tmp_path / "castoff.db") as database:
        tokens = Tokens(database)
        token, text = await tokens.create(name="ci", app="mine", read_only=True, ttl=3600)
        assert await tokens.authenticate(text) == Grant(app="mine", read_only=True, name="ci")
        assert await tokens.authenticate(text[:-1]) is None
        assert await tokens.authenticate(text + "x") is None
        assert await tokens.authenticate("\udcff") is None
        await tokens.revoke(token.id)
        assert await tokens.authenticate(text) is None
        with pytest.raises(NotFound):
            await tokens.revoke(token.id)
    assert text.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


async def test_an_expired_token_is_as_good_as_none(tmp_path: Path) -> None:
    """From the very millisecond on."""
    async with Database.open(tmp_path / "castoff.db") as database:
        tokens = Tokens(database)
        _, text = await tokens.create(ttl=3600)
        await database.write(lambda connection: connection.execute("UPDATE tokens SET expires = 1"))
        assert await tokens.authenticate(text) is None
        for ttl in (0, -1):
            with pytest.raises(Invalid):
                await tokens.create(ttl=ttl)
