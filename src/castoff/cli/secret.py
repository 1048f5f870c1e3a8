"""``castoff secret``: variables that machines get and nobody else sees."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from castoff.cli.app import Group
from castoff.cli.globals import Globals
from castoff.cli.remote import AppOption, on_agent, parse_name
from castoff.cli.text import columns

if TYPE_CHECKING:
    from castoff.api.client import ApiClient

__all__ = ["command"]


@click.group(cls=Group)
def command() -> None:
    """Set, list and unset the secrets of an app: variables that its machines get."""


@command.command("set")
@AppOption
@click.argument("name", type=parse_name)
@click.option("--from-file", type=click.File("r"), metavar="FILE", help="Where the value is; stdin without.")
@click.pass_obj
def set_(shared: Globals, app: str, name: str, from_file: Any) -> None:
    """Set a secret, from stdin or a file: an argument would be seen by everybody. One line feed at its end is dropped."""
    if from_file is None and sys.stdin.isatty():
        value = click.prompt(name, hide_input=True)
    else:
        value = (from_file or sys.stdin).read().removesuffix("\n")
    done = on_agent(shared, lambda client: client.ask("POST", f"/v1/apps/{app}/secrets/{name}", body={"value": value}))
    shared.answer(done, lambda: f"{name}: machines see it when they start the next time")


@command.command("list")
@AppOption
@click.pass_obj
def list_(shared: Globals, app: str) -> None:
    """List an app's secrets, without their values."""
    found = on_agent(shared, lambda client: client.ask("GET", f"/v1/apps/{app}/secrets"))["secrets"]
    rows = [(secret["name"], secret["digest"], secret["updated_at"]) for secret in found]
    shared.answer(found, lambda: columns(rows, heads=("NAME", "DIGEST", "UPDATED")))


@command.command()
@AppOption
@click.argument("names", nargs=-1, required=True, type=parse_name, metavar="NAME...")
@click.pass_obj
def unset(shared: Globals, app: str, names: tuple[str, ...]) -> None:
    """Remove secrets."""

    async def work(client: ApiClient) -> None:
        for name in names:
            await client.ask("DELETE", f"/v1/apps/{app}/secrets/{name}")

    on_agent(shared, work)
    shared.answer({"unset": list(names)}, lambda: "\n".join(names))
