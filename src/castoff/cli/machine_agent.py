"""The commands of ``castoff machine`` that an agent serves: machines that are created, kept and told what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from castoff.cli.app import Command
from castoff.cli.globals import Globals
from castoff.cli.machine_inside import COMMANDS
from castoff.cli.names import machine_names
from castoff.cli.parameters import environment, parse_size
from castoff.cli.remote import AppOption, ensure_app, find_machine, find_volume, has_agent, on_agent
from castoff.cli.settle import reaches
from castoff.errors import Invalid

if TYPE_CHECKING:
    from castoff.api.client import ApiClient

__all__ = ["add_commands", "agents_machines", "moment"]

_FILE = click.Path(dir_okay=False, path_type=Path)


def add_commands(group: click.Group) -> None:
    """Puts them into ``castoff machine``."""
    for one in (run, create, start, stop, restart, suspend, update, destroy, *COMMANDS):
        group.add_command(one)


def agents_machines(shared: Globals) -> list[dict[str, Any]]:
    """All machines of this host's agent; none where no agent runs."""

    async def work(client: ApiClient) -> list[dict[str, Any]]:
        apps = await client.ask("GET", "/v1/apps")
        return [
            machine | {"app": app["name"]}
            for app in apps["apps"]
            for machine in await client.ask("GET", f"/v1/apps/{app['name']}/machines")
        ]

    if not has_agent(shared):
        return []
    return on_agent(shared, work)


def moment(text: str) -> float:
    """Unix seconds of a time of the API."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _mount(text: str) -> dict[str, str]:
    volume, _, path = text.partition(":")
    if not volume or not path.startswith("/"):
        raise click.BadParameter(f"{text!r} is not VOLUME:PATH, like data:/var/lib/data")
    return {"volume": volume, "path": path}


def _config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What a machine is made of."""
    for option in reversed(
        [
            click.option(
                "-e", "--env", multiple=True, metavar="K=V|K", help="Set a variable; K alone takes its value from here."
            ),
            click.option("--env-file", multiple=True, type=_FILE, metavar="FILE", help="Set the variables of a file."),
            click.option("--entrypoint", metavar="PROGRAM", help="Replace the image's entrypoint."),
            click.option("--cpus", type=click.IntRange(1, 128), metavar="N", help="Virtual CPUs."),
            click.option("--memory", type=parse_size, metavar="SIZE", help="Guest memory, like 512M."),
            click.option("--disk-size", type=parse_size, metavar="SIZE", help="Size of the root filesystem, like 8G."),
            click.option("--restart", type=click.Choice(["no", "on-failure", "always"]), help="When its command ends."),
            click.option("--persist", type=click.Choice(["never", "restart", "always"]), help="Whether its rootfs is kept."),
            click.option("--rm", "auto_destroy", is_flag=True, help="Destroy it when its command ends."),
            click.option("--schedule", type=click.Choice(["hourly", "daily", "weekly", "monthly"]), help="Start it so often."),
            click.option(
                "--volume", "mounts", multiple=True, type=_mount, metavar="VOLUME:PATH", help="Mount a volume; name or id."
            ),
            click.option("--metadata", "-m", multiple=True, metavar="K=V", help="Metadata."),
            click.option(
                "--machine-config", type=_FILE, metavar="FILE", help="JSON with the configuration; options win over it."
            ),
            click.argument("image", required=False),
            click.argument("words", nargs=-1, metavar="[COMMAND]..."),
        ]
    ):
        command = option(command)
    return command


def _config(image: str | None, words: tuple[str, ...], **options: Any) -> dict[str, Any]:
    """A configuration of the command line's options, over those of a file."""
    config: dict[str, Any] = {}
    if options["machine_config"] is not None:
        try:
            config = json.loads(options["machine_config"].read_text())
        except (OSError, ValueError) as error:
            raise Invalid(f"{options['machine_config']} is no machine configuration: {error}") from error
    if image:
        config["image"] = image
    if "image" not in config:
        raise click.UsageError("name an image, or a --machine-config that has one")
    variables = dict(word.partition("=")[::2] for word in environment(options["env"], options["env_file"]))
    if variables:
        config["env"] = config.get("env", {}) | variables
    if words or options["entrypoint"]:
        config["init"] = {"entrypoint": [options["entrypoint"]]} if options["entrypoint"] else {}
        config["init"] |= {"cmd": list(words)} if words else {}
    guest = {"cpus": options["cpus"], "memory_mb": options["memory"] and options["memory"] >> 20}
    if any(guest.values()):
        config["guest"] = config.get("guest", {}) | {key: value for key, value in guest.items() if value}
    rootfs = {"persist": options["persist"], "size_gb": options["disk_size"] and -(-options["disk_size"] >> 30)}
    if any(rootfs.values()):
        config["rootfs"] = config.get("rootfs", {}) | {key: value for key, value in rootfs.items() if value}
    if options["mounts"]:
        config["mounts"] = list(options["mounts"])
    if options["restart"]:
        config["restart"] = {"policy": options["restart"]}
    if options["auto_destroy"]:
        config["auto_destroy"] = True
    if options["schedule"]:
        config["schedule"] = options["schedule"]
    if options["metadata"]:
        config["metadata"] = config.get("metadata", {}) | dict(pair.partition("=")[::2] for pair in options["metadata"])
    return config


async def _make(client: ApiClient, app: str, body: dict[str, Any]) -> dict[str, Any]:
    await ensure_app(client, app)
    await _resolve_mounts(client, app, body["config"])
    made: dict[str, Any] = await client.ask("POST", f"/v1/apps/{app}/machines", body=body)
    return made


async def _resolve_mounts(client: ApiClient, app: str, config: dict[str, Any]) -> None:
    """The API knows volumes by their ids alone; people by their names, too."""
    for mount in config.get("mounts") or ():
        if not str(mount["volume"]).startswith("vol_"):
            mount["volume"] = (await find_volume(client, app, mount["volume"]))["id"]


@click.command(cls=Command, context_settings={"allow_interspersed_args": False})
@AppOption
@click.option("--name", metavar="NAME", help="The machine's name.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait until it has started.")
@_config_options
@click.pass_obj
def run(shared: Globals, /, app: str, name: str | None, detach: bool, **options: Any) -> None:
    """Make a machine and start it; prints its id when its command runs."""
    config = _config(options.pop("image"), options.pop("words"), **options)

    async def work(client: ApiClient) -> dict[str, Any]:
        made = await _make(client, app, {"config": config, "name": name or ""})
        if not detach:
            await reaches(client, app, made["id"], "started")
        return made

    made = on_agent(shared, work)
    shared.answer(made, lambda: str(made["id"]))


@click.command(cls=Command, context_settings={"allow_interspersed_args": False})
@AppOption
@click.option("--name", metavar="NAME", help="The machine's name.")
@_config_options
@click.pass_obj
def create(shared: Globals, /, app: str, name: str | None, **options: Any) -> None:
    """Make a machine without starting it."""
    config = _config(options.pop("image"), options.pop("words"), **options)
    body = {"config": config, "name": name or "", "skip_launch": True}
    made = on_agent(shared, lambda client: _make(client, app, body))
    shared.answer(made, lambda: str(made["id"]))


def _each(
    shared: Globals, app: str, names: tuple[str, ...], method: str, suffix: str, state: str = "", body: Any = None, **query: str
) -> None:
    """One request a machine; waits for the state that it leads to, if any."""

    async def work(client: ApiClient) -> list[str]:
        done = []
        for name in names:
            machine = await find_machine(client, app, name)
            await client.ask(method, f"/v1/apps/{machine['app']}/machines/{machine['id']}{suffix}", body=body, query=query)
            if state:
                await reaches(client, machine["app"], machine["id"], state)
            done.append(str(machine["id"]))
        return done

    done = on_agent(shared, work)
    shared.answer(done, lambda: "\n".join(done))


_names = click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=machine_names)
_name = click.argument("name", shell_complete=machine_names)


@click.command(cls=Command)
@AppOption
@_names
@click.pass_obj
def start(shared: Globals, app: str, names: tuple[str, ...]) -> None:
    """Start machines, and wait until they have."""
    _each(shared, app, names, "POST", "/start", "started")


@click.command(cls=Command)
@AppOption
@click.option("--signal", "-s", metavar="SIGNAL", help="What asks the command to end; SIGINT by default.")
@click.option("--timeout", type=click.IntRange(1, 3600), metavar="SECONDS", help="Then it is forced.")
@_names
@click.pass_obj
def stop(shared: Globals, app: str, names: tuple[str, ...], signal: str | None, timeout: int | None) -> None:
    """Stop machines, and wait until they have."""
    body = {"signal": signal, "timeout": f"{timeout or 0}s"}
    _each(shared, app, names, "POST", "/stop", "stopped", {key: value for key, value in body.items() if value})


@click.command(cls=Command)
@AppOption
@click.option("--force", is_flag=True, help="Without asking the command to end.")
@_names
@click.pass_obj
def restart(shared: Globals, app: str, names: tuple[str, ...], force: bool) -> None:
    """Stop machines and start them again."""
    _each(shared, app, names, "POST", "/restart", "started", force_stop=str(force).lower())


@click.command(cls=Command)
@AppOption
@_names
@click.pass_obj
def suspend(shared: Globals, app: str, names: tuple[str, ...]) -> None:
    """Keep machines' memory on disk, and end their VMMs."""
    _each(shared, app, names, "POST", "/suspend", "suspended")


@click.command(cls=Command)
@AppOption
@click.option("-f", "--force", is_flag=True, help="Also where it runs.")
@_names
@click.pass_obj
def destroy(shared: Globals, app: str, names: tuple[str, ...], force: bool) -> None:
    """End machines for good, with all that they have."""
    _each(shared, app, names, "DELETE", "", "destroyed", force=str(force).lower())


@click.command(cls=Command)
@AppOption
@click.option("--skip-start", is_flag=True, help="Leave it stopped.")
@_name
@_config_options
@click.pass_obj
def update(shared: Globals, /, app: str, name: str, skip_start: bool, **options: Any) -> None:
    """Give a machine another configuration: its present one with what the options change. A COMMAND with options follows `--`."""
    image, words = options.pop("image"), options.pop("words")

    async def work(client: ApiClient) -> dict[str, Any]:
        machine = await find_machine(client, app, name)
        base = machine["config"] if options["machine_config"] is None else {}
        config = base | _config(image or base.get("image"), words, **options)
        await _resolve_mounts(client, machine["app"], config)
        body = {"config": config, "skip_launch": skip_start, "current_version": machine["version"]}
        path = f"/v1/apps/{machine['app']}/machines/{machine['id']}"
        updated: dict[str, Any] = await client.ask("POST", path, body=body)
        await reaches(client, machine["app"], machine["id"], *(("stopped", "created") if skip_start else ("started",)))
        return updated

    updated = on_agent(shared, work)
    shared.answer(updated, lambda: f"{updated['id']} version {updated['version']}")
