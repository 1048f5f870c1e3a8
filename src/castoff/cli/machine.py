"""``castoff machine``: machines that run here, those that were kept, and those of the agent."""

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
from castoff.cli.machine_agent import add_commands, agents_machines, moment
from castoff.cli.names import machine_names
from castoff.cli.session import on_host
from castoff.cli.text import columns, duration

if TYPE_CHECKING:
    from castoff.host import Host
    from castoff.machine.model import MachineRecord

__all__ = ["command"]


@click.group(cls=Group)
def command() -> None:
    """Make machines, look at them, and tell them what to do."""


@command.command("list")
@click.pass_obj
def list_(shared: Globals) -> None:
    """List the machines of this host: the agent's by their names in it, and those of `castoff run`."""

    async def work(host: Host) -> list[MachineRecord]:
        records = await asyncio.to_thread(list, host.machines)
        for directory, error in await asyncio.to_thread(list, host.machines.broken()):
            shared.note(f"{directory}: {error}")
        return sorted(records, key=lambda record: record.created)

    records = [record for record in on_host(shared, work) if not record.agent]
    kept = agents_machines(shared)
    rows = [
        (record.id, record.name, "-", printable(record.image), _state(record), "-", _age(record.created)) for record in records
    ]
    for one in kept:
        image, age = printable(one["config"]["image"]), _age(moment(one["created_at"]))
        rows.append((one["id"], one["name"], one["app"], image, one["state"], _passing(one), age))
    answer = [*(_as_json(record) for record in records), *(one | {"agent": True} for one in kept)]
    shared.answer(answer, lambda: columns(rows, heads=("ID", "NAME", "APP", "IMAGE", "STATE", "CHECKS", "AGE")))


@command.command()
@click.argument("name", shell_complete=machine_names)
@click.pass_obj
def show(shared: Globals, name: str) -> None:
    """Show one machine, by its name or id."""
    for one in agents_machines(shared):
        if name in (one["id"], one["name"]):
            facts = [(key, printable(str(one[key]))) for key in ("id", "name", "app", "state", "region", "version", "created_at")]
            facts += [("image", printable(one["config"]["image"])), ("digest", one["image_ref"]["digest"])]
            facts += [
                (f"check {printable(check['name'])}", f"{check['status']}: {printable(check['output'])}")
                for check in one["checks"]
            ]
            shared.answer(one, lambda: columns(facts))  # noqa: B023 - called before the loop goes on
            return

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


def _passing(machine: dict[str, Any]) -> str:
    """How many of its checks pass."""
    statuses = [check["status"] for check in machine["checks"]]
    return f"{statuses.count('passing')}/{len(statuses)}" if statuses else "-"


def _age(created: float) -> str:
    return duration(max(0.0, round(time.time() - created)))


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


add_commands(command)
