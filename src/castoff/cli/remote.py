"""Commands that talk to an agent: which one, and how they look at it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from castoff.cli.globals import Globals
from castoff.errors import Conflict, Invalid, NotFound, Unavailable

if TYPE_CHECKING:
    from castoff.api.client import ApiClient

__all__ = [
    "APP",
    "AppOption",
    "agent_socket",
    "ensure_app",
    "find_machine",
    "find_volume",
    "has_agent",
    "list_volumes",
    "on_agent",
    "parse_name",
    "reachable",
]

T = TypeVar("T")

APP = "default"
"""The app of machines for which none is named; made when it is needed."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}\Z")


def parse_name(text: str) -> str:
    """A name as apps and secrets have it: it becomes a part of a URL's path."""
    if not _NAME.match(text):
        raise click.BadParameter(f"{text!r} is not a name: letters, digits, dashes and underscores")
    return text


AppOption = click.option(
    "--app", "-a", envvar="CASTOFF_APP", default=APP, show_default=True, type=parse_name, metavar="APP", help="The app."
)


def agent_socket(state: Path) -> Path:
    """The socket of the agent over a state directory."""
    return state / "agent" / "agent.sock"


def has_agent(shared: Globals) -> bool:
    """Whether an agent is named, or listens on this host."""
    if os.environ.get("CASTOFF_URL"):
        return True
    try:
        with reachable(agent_socket(shared.load().state)) as path, socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
    except OSError:
        return False
    return True


def on_agent(shared: Globals, work: Callable[[ApiClient], Coroutine[Any, Any, T]]) -> T:
    """Does ``work`` with the agent of ``CASTOFF_URL`` (and ``CASTOFF_TOKEN``), or with this host's.

    Raises:
        CastoffError: It refuses, or none answers.
    """
    from castoff.api.client import ApiClient
    from castoff.cli.loop import complete

    async def session() -> T:
        url, token = os.environ.get("CASTOFF_URL", ""), os.environ.get("CASTOFF_TOKEN", "")
        if url:
            async with ApiClient.open(url=url, token=token) as client:
                return await work(client)
        place = agent_socket(shared.load().state)
        try:
            with reachable(place) as path:
                async with ApiClient.open(socket=path) as client:
                    return await work(client)
        except FileNotFoundError as error:
            raise Unavailable(
                f"no agent answers at {place}", hint="start one with `castoff agent`, or name another by CASTOFF_URL"
            ) from error

    return complete(session())


@contextlib.contextmanager
def reachable(path: Path) -> Iterator[Path]:
    """A short name of a socket, for the block: an address holds 107 bytes, a path may be longer (unix(7), proc(5))."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{directory}") / path.name
    finally:
        os.close(directory)


async def ensure_app(client: ApiClient, app: str) -> None:
    """Makes the app of things for which none was named, where it is not there."""
    if app == APP:
        with contextlib.suppress(Conflict, Invalid):  # it is there
            await client.ask("POST", "/v1/apps", body={"name": app})


async def _apps(client: ApiClient, app: str) -> list[str]:
    """The app that was named; all where none was."""
    return [app] if app != APP else [str(found["name"]) for found in (await client.ask("GET", "/v1/apps"))["apps"]]


async def find_machine(client: ApiClient, app: str, name: str) -> dict[str, Any]:
    """A machine by its id or name, of the app that was named, or of any.

    Raises:
        NotFound: There is none.
        Conflict: There are several of that name, of several apps.
    """
    found: list[dict[str, Any]] = []
    for one in await _apps(client, app):
        for machine in await client.ask("GET", f"/v1/apps/{one}/machines"):
            if name == machine["id"]:
                return dict(machine, app=one)
            if name == machine["name"]:
                found.append(dict(machine, app=one))
    return _only(found, f"machine {name[:80]!r}", "`castoff machine list` shows those that are here")


async def list_volumes(client: ApiClient, app: str) -> list[dict[str, Any]]:
    """The volumes of the app that was named, or of all."""
    return [
        volume | {"app": one} for one in await _apps(client, app) for volume in await client.ask("GET", f"/v1/apps/{one}/volumes")
    ]


async def find_volume(client: ApiClient, app: str, name: str) -> dict[str, Any]:
    """A volume by its id or name, of the app that was named, or of any.

    Raises:
        NotFound: There is none.
        Conflict: There are several of that name.
    """
    volumes = await list_volumes(client, app)
    found = [volume for volume in volumes if volume["id"] == name] or [volume for volume in volumes if volume["name"] == name]
    return _only(found, f"volume {name[:80]!r}", "`castoff volume list` shows those that are here")


def _only(found: list[dict[str, Any]], what: str, hint: str) -> dict[str, Any]:
    if len(found) > 1:
        raise Conflict(f"there are {len(found)} of {what}: {', '.join(one['id'] for one in found)}", hint="name one by its id")
    if not found:
        raise NotFound(f"no {what}", hint=hint)
    return found[0]
