"""``castoff fleet``: the hosts that share what they have."""

from __future__ import annotations

from typing import Any

import click

from castoff.cli.app import Group
from castoff.cli.globals import Globals
from castoff.cli.orders import command as orders
from castoff.cli.remote import on_agent
from castoff.cli.text import columns, rate, size

__all__ = ["command"]


@click.group(cls=Group)
def command() -> None:
    """Look at the fleet: which hosts are there, what they have, and whether this one is seen."""


command.add_command(orders, "orders")


@command.command()
@click.pass_obj
def status(shared: Globals) -> None:
    """Tell whether this host is in its fleet. Exit code 1: it is cut off, and goes on alone."""
    found = on_agent(shared, lambda client: client.ask("GET", "/v1/fleet"))
    seen = "is seen" if found["seen"] else "is not seen: it goes on alone"
    reached = "a NATS server is reached" if found["connected"] else "no NATS server is reached"
    shared.answer(
        found,
        lambda: f"fleet {found['fleet']}: this host {seen}, {reached}; {found['hosts']} hosts with {found['layers']} layers",
    )
    if not found["seen"]:
        raise click.exceptions.Exit(1)


@command.command()
@click.pass_obj
def hosts(shared: Globals) -> None:
    """List the hosts that are alive."""
    found = on_agent(shared, lambda client: client.ask("GET", "/v1/fleet/hosts"))["hosts"]
    shared.answer(found, lambda: columns([_row(host) for host in found], heads=_HEADS, right=(3, 4, 5, 6, 7)))


_HEADS = ("HOST", "REGION", "ZONE", "CPUS FREE", "MEMORY FREE", "GPUS FREE", "MACHINES", "LAYERS", "PEERS")


def _row(host: dict[str, Any]) -> tuple[str, ...]:
    gpus = " ".join(f"{kind}: {count['free']}/{count['total']}" for kind, count in host["gpus"].items())
    return (
        f"{host['name']} (this)" if host["this"] else host["name"],
        host["region"],
        host["zone"] or "-",
        f"{host['cpus_free']}/{host['cpus']}",
        f"{host['memory_free_mb']}/{host['memory_mb']} MiB",
        gpus or "-",
        str(host["machines"]),
        str(host["layers"]),
        host["peers"] or "-",
    )


@command.command()
@click.pass_obj
def transfers(shared: Globals) -> None:
    """List what hosts send to one another now, the fastest first."""
    found = on_agent(shared, lambda client: client.ask("GET", "/v1/fleet/transfers"))["transfers"]
    rows = [(one["from"], one["to"], rate(one["rate"]), size(one["sent"])) for one in found]
    shared.answer(found, lambda: columns(rows, heads=("FROM", "TO", "NOW", "SINCE ITS START"), right=(2, 3)))


@command.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="Rows at most.")
@click.pass_obj
def layers(shared: Globals, limit: int) -> None:
    """List the layers that the hosts have, those that most have first. A layer is named by the beginning of its digest."""
    found = on_agent(shared, lambda client: client.ask("GET", "/v1/fleet/layers", query={"limit": str(limit)}))
    rows = [(layer["layer"], ", ".join(layer["whole"]) or "-", ", ".join(layer["part"]) or "-") for layer in found["layers"]]
    shared.answer(found, lambda: columns(rows, heads=("LAYER", "WHOLE ON", "IN PART ON")))
