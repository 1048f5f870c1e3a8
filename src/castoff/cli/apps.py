"""``castoff app``: what machines, volumes and secrets belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castoff.cli.app import Group
from castoff.cli.globals import Globals
from castoff.cli.remote import on_agent, parse_name
from castoff.cli.text import columns

if TYPE_CHECKING:
    from castoff.api.client import ApiClient

__all__ = ["command"]


@click.group(cls=Group)
def command() -> None:
    """Create, list, show and delete apps: what machines, volumes and secrets belong to."""


@command.command()
@click.argument("name", type=parse_name)
@click.pass_obj
def create(shared: Globals, name: str) -> None:
    """Make an app."""
    made = on_agent(shared, lambda client: client.ask("POST", "/v1/apps", body={"name": name}))
    shared.answer(made, lambda: name)


@command.command("list")
@click.pass_obj
def list_(shared: Globals) -> None:
    """List the apps."""
    found = on_agent(shared, lambda client: client.ask("GET", "/v1/apps"))["apps"]
    rows = [(app["name"], str(app["machine_count"]), app["status"]) for app in found]
    shared.answer(found, lambda: columns(rows, heads=("NAME", "MACHINES", "STATUS"), right=(1,)))


@command.command()
@click.argument("name", type=parse_name)
@click.pass_obj
def show(shared: Globals, name: str) -> None:
    """Show one app."""
    found = on_agent(shared, lambda client: client.ask("GET", f"/v1/apps/{name}"))
    rows = [(key, str(found[key])) for key in ("name", "id", "network", "status", "machine_count")]
    shared.answer(found, lambda: columns(rows))


@command.command()
@click.argument("names", nargs=-1, required=True, type=parse_name, metavar="NAME...")
@click.pass_obj
def delete(shared: Globals, names: tuple[str, ...]) -> None:
    """Delete apps that have neither machines nor volumes any more, with their secrets."""

    async def work(client: ApiClient) -> None:
        for name in names:
            await client.ask("DELETE", f"/v1/apps/{name}")

    on_agent(shared, work)
    shared.answer({"deleted": list(names)}, lambda: "\n".join(names))
