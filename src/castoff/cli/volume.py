"""``castoff volume``: filesystems that outlive the machines that mount them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import click

from castoff.cli.app import Group
from castoff.cli.exits import printable
from castoff.cli.globals import Globals
from castoff.cli.names import volume_names
from castoff.cli.parameters import parse_size
from castoff.cli.remote import AppOption, ensure_app, find_volume, list_volumes, on_agent
from castoff.cli.text import columns, size

if TYPE_CHECKING:
    from castoff.api.client import ApiClient

__all__ = ["command"]

_name = click.argument("name", shell_complete=volume_names)


def _gigabytes(text: str) -> int:
    """The API counts whole GB of 2**30 bytes: a part of one is one."""
    return -(-parse_size(text) >> 30)


@click.group(cls=Group)
def command() -> None:
    """Create, list, show, extend, copy and delete volumes: filesystems that outlive machines."""


@command.command()
@AppOption
@click.option("--size", type=_gigabytes, metavar="SIZE", help="Like 10G, in whole GiB; 1G, or the snapshot's, by default.")
@click.option("--snapshot", metavar="ID", help="Begin with what a snapshot holds.")
@click.option("--retention", type=click.IntRange(1, 60), metavar="DAYS", help="Days for which its snapshots are kept; 5.")
@click.argument("name")
@click.pass_obj
def create(shared: Globals, app: str, name: str, size: int | None, snapshot: str | None, retention: int | None) -> None:
    """Make a volume; prints its id, which `machine run --volume ID:PATH` takes. It is sparse: it takes what is written to it."""
    body = {"name": name, "size_gb": size, "snapshot_id": snapshot, "snapshot_retention": retention}
    made = _made(shared, app, {key: value for key, value in body.items() if value is not None})
    shared.answer(made, lambda: str(made["id"]))


@command.command()
@AppOption
@click.option("--size", type=_gigabytes, metavar="SIZE", help="Of the copy: at least the volume's.")
@_name
@click.argument("copy", metavar="COPY", required=False)
@click.pass_obj
def fork(shared: Globals, app: str, name: str, copy: str | None, size: int | None) -> None:
    """Copy a volume as it is now to a new one, named as it is, or COPY; prints the copy's id."""

    async def work(client: ApiClient) -> dict[str, Any]:
        origin = await find_volume(client, app, name)
        body = {"name": copy or origin["name"], "source_volume_id": origin["id"]} | ({"size_gb": size} if size else {})
        made: dict[str, Any] = await client.ask("POST", f"/v1/apps/{origin['app']}/volumes", body=body)
        return made

    made = on_agent(shared, work)
    shared.answer(made, lambda: str(made["id"]))


@command.command("list")
@AppOption
@click.pass_obj
def list_(shared: Globals, app: str) -> None:
    """List the volumes of an app; of all apps where none is named."""
    found = on_agent(shared, lambda client: list_volumes(client, app))
    rows = [
        (
            one["id"],
            printable(one["name"]),
            one["app"],
            f"{one['size_gb']} GiB",
            one["state"],
            one.get("attached_machine_id") or "-",
        )
        for one in found
    ]
    shared.answer(found, lambda: columns(rows, heads=("ID", "NAME", "APP", "SIZE", "STATE", "MACHINE"), right=(3,)))


@command.command()
@AppOption
@_name
@click.pass_obj
def show(shared: Globals, app: str, name: str) -> None:
    """Show one volume and its snapshots, by its name or id."""

    async def work(client: ApiClient) -> dict[str, Any]:
        one = await find_volume(client, app, name)
        return one | {"snapshots": await client.ask("GET", f"{_path(one)}/snapshots")}

    one = on_agent(shared, work)
    facts = [(key, printable(str(one[key]))) for key in ("id", "name", "app", "state", "region", "fstype", "created_at")]
    facts += [("size", f"{one['size_gb']} GiB"), ("machine", one.get("attached_machine_id") or "-")]
    facts += [(f"snapshot {taken['id']}", f"{taken['created_at']}, {size(taken['size'])}") for taken in one["snapshots"]]
    shared.answer(one, lambda: columns(facts))


@command.command()
@AppOption
@_name
@click.argument("size", type=_gigabytes)
@click.pass_obj
def extend(shared: Globals, app: str, name: str, size: int) -> None:
    """Make a volume larger: SIZE, like 20G. A machine that has it sees that when it starts the next time."""
    done = _with(shared, app, name, lambda client, one: client.ask("PUT", f"{_path(one)}/extend", body={"size_gb": size}))

    def text() -> str:
        again = ", when its machine starts the next time" if done["needs_restart"] else ""
        return f"{done['volume']['id']} {done['volume']['size_gb']} GiB{again}"

    shared.answer(done, text)


@command.command()
@AppOption
@_name
@click.pass_obj
def snapshot(shared: Globals, app: str, name: str) -> None:
    """Keep a volume as it is now; prints the snapshot's id, which `volume create --snapshot` takes."""
    done = _with(shared, app, name, lambda client, one: client.ask("POST", f"{_path(one)}/snapshots"))
    shared.answer(done, lambda: str(done["id"]))


@command.command()
@AppOption
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=volume_names)
@click.pass_obj
def delete(shared: Globals, app: str, names: tuple[str, ...]) -> None:
    """Delete volumes that no machine has, with their snapshots."""

    async def work(client: ApiClient) -> list[str]:
        done = []
        for name in names:
            one = await find_volume(client, app, name)
            await client.ask("DELETE", _path(one))
            done.append(str(one["id"]))
        return done

    done = on_agent(shared, work)
    shared.answer({"deleted": done}, lambda: "\n".join(done))


def _made(shared: Globals, app: str, body: dict[str, Any]) -> dict[str, Any]:
    async def work(client: ApiClient) -> dict[str, Any]:
        await ensure_app(client, app)
        made: dict[str, Any] = await client.ask("POST", f"/v1/apps/{app}/volumes", body=body)
        return made

    return on_agent(shared, work)


def _with(
    shared: Globals, app: str, name: str, request: Callable[[ApiClient, dict[str, Any]], Coroutine[Any, Any, Any]]
) -> dict[str, Any]:
    """What one request about a volume is answered."""

    async def work(client: ApiClient) -> dict[str, Any]:
        done: dict[str, Any] = await request(client, await find_volume(client, app, name))
        return done

    return on_agent(shared, work)


def _path(volume: dict[str, Any]) -> str:
    return f"/v1/apps/{volume['app']}/volumes/{volume['id']}"
