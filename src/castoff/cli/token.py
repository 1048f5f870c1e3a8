"""``castoff token``: who may use the agent's API. Works on the agent's database, whether the agent runs or not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from castoff.cli.app import Group
from castoff.cli.globals import Globals
from castoff.cli.text import columns

if TYPE_CHECKING:
    from castoff.api.tokens import Token, Tokens

__all__ = ["command"]

T = TypeVar("T")


@click.group(cls=Group)
def command() -> None:
    """Make, list and revoke the tokens of the agent's API."""


@command.command()
@click.option("--name", default="token", metavar="NAME", help="For people; the owner of leases that it takes.")
@click.option("--app", metavar="APP", help="Only for this app.")
@click.option("--read-only", is_flag=True, help="It changes nothing, and is shown no secret.")
@click.option("--ttl", metavar="TIME", help="How long it is good: 90m, 24h, 30d.")
@click.pass_obj
def create(shared: Globals, name: str, app: str | None, read_only: bool, ttl: str | None) -> None:
    """Make a token. It is printed once; only its hash is kept."""
    seconds = None if ttl is None else _seconds(ttl)
    token, text = _on_tokens(shared, lambda tokens: tokens.create(name=name, app=app, read_only=read_only, ttl=seconds))
    shared.note(f"token {token.id}; it is not told again")
    shared.answer({"id": token.id, "token": text}, lambda: text)


@command.command("list")
@click.pass_obj
def list_(shared: Globals) -> None:
    """List the tokens, without their text."""
    tokens = _on_tokens(shared, lambda tokens: tokens.list())
    heads = ("ID", "NAME", "APP", "MAY", "EXPIRES")
    shared.answer(
        [msgspec.to_builtins(token) for token in tokens], lambda: columns([_row(token) for token in tokens], heads=heads)
    )


@command.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.pass_obj
def revoke(shared: Globals, ids: tuple[str, ...]) -> None:
    """Make tokens worthless, at once."""

    async def work(tokens: Tokens) -> None:
        for id in ids:
            await tokens.revoke(id)

    _on_tokens(shared, work)
    shared.answer({"revoked": list(ids)}, lambda: "\n".join(ids))


def _on_tokens(shared: Globals, work: Callable[[Tokens], Coroutine[Any, Any, T]]) -> T:
    from castoff.agent.records import database_path
    from castoff.api.tokens import Tokens
    from castoff.lifecycle.database import Database

    path = database_path(shared.load().state)

    async def session() -> T:
        async with Database.open(path) as database:
            return await work(Tokens(database))

    return asyncio.run(session())


def _row(token: Token) -> tuple[str, str, str, str, str]:
    expires = "never" if token.expires is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(token.expires / 1000))
    return token.id, token.name, token.app or "all", "read" if token.read_only else "all", expires


def _seconds(text: str) -> int:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isascii() or not number.isdigit() or not 0 < int(number) < 10**6:
        raise click.UsageError(f"--ttl {text!r} is no time: write 90m, 24h or 30d")
    return int(number) * units[unit]
