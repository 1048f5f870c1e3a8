"""``castoff run`` by an agent: a machine of its own that outlives this process, or one whose output is followed to its end."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from castoff.cli.exits import Exit, printable
from castoff.cli.globals import Globals
from castoff.cli.remote import APP, ensure_app, on_agent
from castoff.cli.settle import particulars, reaches
from castoff.errors import NotFound
from castoff.machine.model import MachineRequest

if TYPE_CHECKING:
    from castoff.api.client import ApiClient

__all__ = ["run_detached", "run_followed"]

_ON_DISK: Final = ("oci", "oci-archive", "docker-archive")
_REFUSED: Final = {
    "interactive": "--interactive",
    "tty": "--tty",
    "working_dir": "--workdir",
    "hostname": "--hostname",
    "platform": "--platform",
    "vmm": "--vmm",
    "kernel": "--kernel",
    "ports": "--publish",
    "network": "--network",
    "keep": "--keep",
}
"""What the Machines API has no word for."""


def run_detached(shared: Globals, request: MachineRequest, *, others: tuple[str, ...]) -> int:
    """Makes a machine that goes on by itself, and prints its id when its command runs.

    Args:
        shared: The command line's global options.
        request: What to run.
        others: Further options of the command line that no agent knows.
    """
    config = _config(request, others)

    async def work(client: ApiClient) -> dict[str, Any]:
        made = await _make(client, request, config)
        await reaches(client, APP, made["id"], "started")
        return made

    made = on_agent(shared, work)
    shared.answer(made, lambda: str(made["id"]))
    return Exit.OK


def run_followed(shared: Globals, request: MachineRequest, *, others: tuple[str, ...]) -> int:
    """Makes a machine, prints what its command writes, line by line, and destroys it; its command's exit code.

    Args:
        shared: The command line's global options.
        request: What to run.
        others: Further options of the command line that no agent knows.
    """
    config = _config(request, others)

    async def work(client: ApiClient) -> int:
        made = await _make(client, request, config)
        path = f"/v1/apps/{APP}/machines/{made['id']}"
        try:
            async for line in client.lines(f"{path}/logs", query={"tail": "10000", "follow": "true", "until": "rest"}):
                print(printable(line["m"]), file=sys.stderr if line["s"] == 2 else sys.stdout, flush=True)
            return _code(shared, await client.ask("GET", path))
        finally:
            await asyncio.shield(_destroy(client, path))

    return on_agent(shared, work)


async def _make(client: ApiClient, request: MachineRequest, config: dict[str, Any]) -> dict[str, Any]:
    await ensure_app(client, APP)
    made: dict[str, Any] = await client.ask(
        "POST", f"/v1/apps/{APP}/machines", body={"config": config, "name": request.name or ""}
    )
    return made


async def _destroy(client: ApiClient, path: str) -> None:
    """Also of one that runs still, where this process was asked to end."""
    with contextlib.suppress(NotFound):
        await client.ask("DELETE", path, query={"force": "true"})


def _code(shared: Globals, machine: dict[str, Any]) -> int:
    exit = next((event for event in machine["events"] if event["type"] == "exit"), None)
    told = ((exit or {}).get("request") or {}).get("exit_event")
    if told is None:
        why = next((text for event in machine["events"][:2] if (text := particulars(event.get("request") or {}))), "")
        shared.note(f"machine {machine['id']} is {machine['state']}{why and ': '}{why}")
        return Exit.RUN_FAILED
    if told.get("oom_killed") or told.get("error"):
        shared.note(particulars({"exit_event": told}))
    code = int(told["exit_code"])
    return code if 0 <= code <= 255 else Exit.RUN_FAILED


def _config(request: MachineRequest, others: tuple[str, ...]) -> dict[str, Any]:
    """What is asked for in the API's words.

    Raises:
        UsageError: It has none for something.
    """
    given = [flag for field, flag in _REFUSED.items() if getattr(request, field) not in (None, False, (), "")]
    if given or others:
        raise click.UsageError(
            f"an agent's machine has no {', '.join([*given, *others])}: leave it away, or run it attached and without an agent"
        )
    config: dict[str, Any] = {"image": _absolute(request.image), "restart": {"policy": "no"}}
    config["env"] = dict(variable.partition("=")[::2] for variable in request.env)
    words = {"cmd": list(request.command), "entrypoint": list(request.entrypoint or ()), "user": request.user}
    process = {field: value for field, value in words.items() if value}
    if process:
        config["processes"] = [process]
    guest = {"cpus": request.cpus, "memory_mb": request.memory and request.memory >> 20}
    config["guest"] = {field: value for field, value in guest.items() if value}
    provider = {"file": str(request.rootfs)} if not isinstance(request.rootfs, str | None) else {"provider": request.rootfs}
    rootfs = {
        **provider,
        "size_gb": request.disk_size and -(-request.disk_size >> 30),
        "clone": request.clone,
        "lazy": request.lazy,
    }
    config["rootfs"] = {field: value for field, value in rootfs.items() if value}
    return config


def _absolute(image: str) -> str:
    """An agent has another working directory than the command line."""
    kind, colon, rest = image.partition(":")
    if not colon or kind not in _ON_DISK:
        return image
    return f"{kind}:{Path(rest).absolute()}"
