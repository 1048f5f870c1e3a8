"""``castoff machine``: machines that run here, and those that were kept."""

from __future__ import annotations

import asyncio
import shlex
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from castoff.cli.app import Group
from castoff.cli.exits import printable
from castoff.cli.globals import Globals
from castoff.cli.names import machine_names
from castoff.cli.session import on_host
from castoff.cli.text import columns, duration

if TYPE_CHECKING:
    from castoff.host import Host
    from castoff.machine.model import MachineRecord

__all__ = ["command"]


@click.group(cls=Group)
def command() -> None:
    """List machines, and remove those that were kept."""


@command.command("list")
@click.pass_obj
def list_(shared: Globals) -> None:
    """List the machines of this host."""

    async def work(host: Host) -> list[MachineRecord]:
        records = await asyncio.to_thread(list, host.machines)
        for directory, error in await asyncio.to_thread(list, host.machines.broken()):
            shared.note(f"{directory}: {error}")
        return sorted(records, key=lambda record: record.created)

    records = on_host(shared, work)
    rows = [
        (record.id, record.name, printable(record.image), _state(record), duration(max(0.0, round(time.time() - record.created))))
        for record in records
    ]
    shared.answer([_as_json(record) for record in records], lambda: columns(rows, heads=("ID", "NAME", "IMAGE", "STATE", "AGE")))


@command.command()
@click.argument("name", shell_complete=machine_names)
@click.pass_obj
def show(shared: Globals, name: str) -> None:
    """Show one machine, by its name or id."""

    async def work(host: Host) -> tuple[MachineRecord, str]:
        record = await asyncio.to_thread(host.machines.get, name)
        return record, str(host.machines.path(record.id))

    record, directory = on_host(shared, work)
    facts = [
        ("id", record.id),
        ("name", record.name),
        ("state", _state(record)),
        ("image", printable(record.image)),
        ("digest", record.digest),
        ("command", printable(shlex.join(record.command))),
        ("vmm", record.vmm or "-"),
        ("directory", directory),
    ]
    shared.answer(_as_json(record), lambda: columns(facts))


@command.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=machine_names)
@click.option("-f", "--force", is_flag=True, help="Also where it runs: end it.")
@click.pass_obj
def remove(shared: Globals, names: tuple[str, ...], force: bool) -> None:
    """Remove machines, by name or id, with all that they have."""

    async def work(host: Host) -> None:
        for name in names:
            await host.remove(name, force=force)

    on_host(shared, work)
    shared.answer({"removed": list(names)}, lambda: "\n".join(names))


def _state(record: MachineRecord) -> str:
    """How it is. A machine whose process is gone is one no more; the next start removes it."""
    if record.exit_code is not None:
        return f"exited {record.exit_code}"
    if record.state != "exited" and not record.owner.alive():
        return "left behind"
    return str(record.state)


def _as_json(record: MachineRecord) -> dict[str, Any]:
    tree: dict[str, Any] = msgspec.to_builtins(record)
    return tree | {"status": _state(record)}
