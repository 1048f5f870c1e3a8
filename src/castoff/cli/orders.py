"""Orders of the fleet as the command line shows and follows them."""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from castoff.cli.app import Group
from castoff.cli.exits import Exit, printable
from castoff.cli.globals import Globals
from castoff.cli.remote import on_agent
from castoff.cli.text import columns, size

if TYPE_CHECKING:
    from castoff.api.client import ApiClient

__all__ = ["command", "follow", "verdict"]

_LOOK = 0.5
"""Seconds between two looks at an order that is followed."""


@click.group(cls=Group, invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List the orders by which hosts make images ready; or show, or cancel, one."""
    if context.invoked_subcommand is None:
        context.invoke(listed)


@command.command("list")
@click.pass_obj
def listed(shared: Globals) -> None:
    """List the orders, the latest first: `castoff preload --hosts` gives one."""
    found = on_agent(shared, lambda client: client.ask("GET", "/v1/fleet/orders"))["orders"]
    heads = ("ORDER", "STATE", "HOSTS", "DONE", "GIVEN", "IMAGES")
    shared.answer(found, lambda: columns([_row(order) for order in found], heads=heads))


@command.command()
@click.argument("order", metavar="ORDER")
@click.option("--follow", "follows", is_flag=True, help="Until all hosts have done their parts.")
@click.pass_obj
def show(shared: Globals, order: str, follows: bool) -> int:
    """Show an order, and what each host did of it. Exit code 1: it failed, or was cancelled."""
    if follows:
        found = on_agent(shared, lambda client: follow(shared, client, order))
    else:
        found = on_agent(shared, lambda client: client.ask("GET", _path(order)))
    shared.answer(found, lambda: _told(found))
    return Exit.OK if found["state"] in ("new", "open") else Exit.NO


@command.command()
@click.argument("order", metavar="ORDER")
@click.pass_obj
def cancel(shared: Globals, order: str) -> None:
    """Cancel an order: hosts stop where they are, and keep what they have. An order that stands is followed no more."""
    found = on_agent(shared, lambda client: client.ask("DELETE", _path(order)))
    shared.answer(found, lambda: f"order {found['id']}: {found['state']}")


async def follow(shared: Globals, client: ApiClient, order: str) -> dict[str, Any]:
    """Shows an order's progress until nothing more comes of it; the order as it is then."""
    import asyncio  # not before it is needed: --help does without

    found: dict[str, Any] = await client.ask("GET", _path(order))
    with _shown(shared) as show_it:
        while not _is_over(found):
            show_it(found)
            await asyncio.sleep(_LOOK)
            found = await client.ask("GET", _path(order))
        show_it(found)
    return found


def verdict(order: dict[str, Any]) -> str:
    """What has become of an order, in one line."""
    parts = ", ".join(f"{count} {state}" for state, count in order["parts"].items()) or "no host has begun"
    why = f": {order['reason']}" if order["reason"] else ""
    return printable(f"order {order['id']} {order['state']} on {order['hosts']}: {parts}{why}")


def _path(order: str) -> str:
    if not (len(order) == 12 and order.isascii() and order.isalnum()):
        raise click.BadParameter(f"{order!r} is no order: 12 letters and digits, as `castoff fleet orders` shows them")
    return f"/v1/fleet/orders/{order}"


def _is_over(order: dict[str, Any]) -> bool:
    done, failed = (order["parts"].get(state, 0) for state in ("done", "failed"))
    if order["state"] != "open":
        return bool(order["state"] != "new")
    return bool(done >= order["chosen"] or done + failed >= order["matching"])


def _row(order: dict[str, Any]) -> tuple[str, ...]:
    given = datetime.datetime.fromtimestamp(order["created"], datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    state = f"{order['state']}, stands" if order["keep"] and order["state"] != "cancelled" else order["state"]
    done = f"{order['parts'].get('done', 0)}/{order['chosen']}"
    return order["id"], state, printable(order["hosts"]), done, given, printable(" ".join(order["images"]))


def _told(order: dict[str, Any]) -> str:
    rows = [_part(row, order) for row in order["progress"]]
    return "\n".join([verdict(order), *([columns(rows, heads=("HOST", "STATE", "IMAGES", "BYTES", ""))] if rows else [])])


def _part(row: dict[str, Any], order: dict[str, Any]) -> tuple[str, ...]:
    amount = f"{size(row['done'])} of {size(row['total'])}" if row["total"] else size(row["done"])
    images = f"{row['images_done']}/{len(order['images'])}"
    return printable(row["name"]), row["state"], images, amount, printable(row["reason"])


@contextlib.contextmanager
def _shown(shared: Globals) -> Iterator[Any]:
    """Shows orders: in place at a terminal, elsewhere a line where something became of one."""
    if shared.quiet or shared.json:
        yield lambda order: None
        return
    if not sys.stderr.isatty():
        told: list[str] = []

        def line(order: dict[str, Any]) -> None:
            now = verdict(order)
            if now not in told[-1:]:
                told.append(now)
                shared.note(now)

        yield line
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    began = time.monotonic()
    with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as live:
        yield lambda order: live.update(Text(f"{_told(order)}\n{time.monotonic() - began:.0f} s"), refresh=True)
