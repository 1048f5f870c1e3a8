"""The commands of ``castoff machine`` that look into an agent's machines: exec, logs, events, wait, cp, top."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from castoff.cli.app import Command
from castoff.cli.exits import Exit, printable
from castoff.cli.globals import Globals
from castoff.cli.machine_copy import copy
from castoff.cli.machine_proxy import proxy
from castoff.cli.names import machine_names
from castoff.cli.remote import AppOption, find_machine, on_agent
from castoff.cli.settle import particulars
from castoff.cli.statistics import statistics_rows
from castoff.cli.text import columns

if TYPE_CHECKING:
    from castoff.api.client import ApiClient

__all__ = ["COMMANDS"]

_name = click.argument("name", shell_complete=machine_names)


async def _executed(
    client: ApiClient, app: str, name: str, words: list[str], stdin: str = "", timeout: int = 60
) -> dict[str, Any]:
    machine = await find_machine(client, app, name)
    path = f"/v1/apps/{machine['app']}/machines/{machine['id']}/exec"
    done: dict[str, Any] = await client.ask(
        "POST", path, body={"command": words, "stdin": stdin, "timeout": timeout}, patience=timeout + 30
    )
    return done


@click.command("exec", cls=Command, context_settings={"allow_interspersed_args": False})
@AppOption
@click.option("-i", "--interactive", is_flag=True, help="Give it this process's stdin, all of it.")
@click.option("--timeout", type=click.IntRange(1, 3600), default=60, metavar="SECONDS", help="Then it is killed.")
@_name
@click.argument("words", nargs=-1, required=True, metavar="COMMAND...")
@click.pass_obj
def execute(shared: Globals, app: str, name: str, words: tuple[str, ...], interactive: bool, timeout: int) -> None:
    """Execute a command in a machine; ends with its exit code."""
    stdin = sys.stdin.read() if interactive else ""
    done = on_agent(shared, lambda client: _executed(client, app, name, list(words), stdin, timeout))
    if shared.json:
        shared.answer(done, str)
    else:
        sys.stdout.write(done["stdout"])
        sys.stderr.write(done["stderr"])
    sys.exit(done["exit_code"] if not done["exit_signal"] else 128 + done["exit_signal"])


@click.command(cls=Command)
@AppOption
@click.option("-f", "--follow", is_flag=True, help="Go on with what it writes from now on.")
@click.option("-n", "--tail", type=click.IntRange(0, 10_000), default=1000, show_default=True, help="The last lines.")
@click.option("-t", "--timestamps", is_flag=True, help="With their times.")
@_name
@click.pass_obj
def logs(shared: Globals, app: str, name: str, follow: bool, tail: int, timestamps: bool) -> None:
    """Print what a machine's command wrote; its stderr on this one's."""

    async def work(client: ApiClient) -> None:
        machine = await find_machine(client, app, name)
        path = f"/v1/apps/{machine['app']}/machines/{machine['id']}/logs"
        async for line in client.lines(path, query={"tail": str(tail), "follow": str(follow).lower()}):
            if shared.json:
                print(json.dumps(line), flush=True)
                continue
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime(line["t"] / 1000)) if timestamps else ""
            print(f"{when}{printable(line['m'])}", file=sys.stderr if line["s"] == 2 else sys.stdout, flush=True)

    on_agent(shared, work)


@click.command(cls=Command)
@AppOption
@_name
@click.pass_obj
def events(shared: Globals, app: str, name: str) -> None:
    """Show what happened to a machine, the newest first."""

    async def work(client: ApiClient) -> list[dict[str, Any]]:
        machine = await find_machine(client, app, name)
        path = f"/v1/apps/{machine['app']}/machines/{machine['id']}/events"
        found: list[dict[str, Any]] = await client.ask("GET", path, query={"limit": "50"})
        return found

    found = on_agent(shared, work)
    rows = [
        (
            time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event["timestamp"] / 1000)),
            event["type"],
            event["status"],
            event["source"],
            printable(particulars(event.get("request") or {})),
        )
        for event in found
    ]
    shared.answer(found, lambda: columns(rows, heads=("TIME (UTC)", "EVENT", "STATE", "BY", "")))


@click.command(cls=Command)
@AppOption
@click.option("--until", default="settled", show_default=True, metavar="STATE", help="Or several, with commas.")
@click.option("--timeout", type=click.IntRange(1, 60), default=60, show_default=True, metavar="SECONDS", help="How long.")
@_name
@click.pass_obj
def wait(shared: Globals, app: str, name: str, until: str, timeout: int) -> None:
    """Wait until a machine is in a state."""

    async def work(client: ApiClient) -> dict[str, Any]:
        machine = await find_machine(client, app, name)
        path = f"/v1/apps/{machine['app']}/machines/{machine['id']}/wait"
        waited: dict[str, Any] = await client.ask("GET", path, query={"state": until, "timeout": str(timeout)})
        return waited

    waited = on_agent(shared, work)
    shared.answer(waited, lambda: str(waited["state"]))


@click.command(cls=Command)
@AppOption
@_name
@click.pass_obj
def top(shared: Globals, app: str, name: str) -> None:
    """Show what a machine takes, as this host counts it and as its own kernel does, and its processes."""

    async def work(client: ApiClient) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        machine = await find_machine(client, app, name)
        path = f"/v1/apps/{machine['app']}/machines/{machine['id']}"
        return await client.ask("GET", f"{path}/statistics"), await client.ask("GET", f"{path}/ps")

    taken, found = on_agent(shared, work)
    rows = [
        (str(one["pid"]), f"{one['rss'] // 1024}", str(one["cpu"]), printable(one["command"]), printable(one["directory"]))
        for one in found
    ]

    def text() -> str:
        processes = columns(rows, heads=("PID", "KIB", "TICKS", "COMMAND", "DIRECTORY"), right=(0, 1, 2))
        return f"{columns(statistics_rows(taken))}\n\n{processes}"

    shared.answer({"statistics": taken, "processes": found}, text)
    if not found:
        sys.exit(Exit.NO)


COMMANDS = (execute, logs, events, wait, copy, top, proxy)
