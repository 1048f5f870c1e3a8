"""Commands that talk to an agent: which one, and how they look at it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from castoff.cli.globals import Globals
from castoff.errors import Unavailable

if TYPE_CHECKING:
    from castoff.api.client import ApiClient

__all__ = ["APP", "AppOption", "agent_socket", "find_machine", "has_agent", "on_agent"]

T = TypeVar("T")

APP = "default"
"""The app of machines for which none is named; made when it is needed."""

AppOption = click.option("--app", "-a", envvar="CASTOFF_APP", default=APP, show_default=True, metavar="APP", help="The app.")


def agent_socket(state: Path) -> Path:
    """The socket of the agent over a state directory."""
    return state / "agent" / "agent.sock"


def has_agent(shared: Globals) -> bool:
    """Whether an agent is named, or listens on this host."""
    if os.environ.get("CASTOFF_URL"):
        return True
    try:
        with _reachable(agent_socket(shared.load().state)) as path, socket.socket(socket.AF_UNIX) as probe:
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
            with _reachable(place) as path:
                async with ApiClient.open(socket=path) as client:
                    return await work(client)
        except FileNotFoundError as error:
            raise Unavailable(
                f"no agent answers at {place}", hint="start one with `castoff agent`, or name another by CASTOFF_URL"
            ) from error

    return complete(session())


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[Path]:
    """A short name of a socket, for the block: an address holds 107 bytes, a path may be longer (unix(7), proc(5))."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{directory}") / path.name
    finally:
        os.close(directory)


async def find_machine(client: ApiClient, app: str, name: str) -> dict[str, Any]:
    """A machine by its id or name, of the app or, by its id, of any.

    Raises:
        NotFound: There is none.
    """
    from castoff.errors import NotFound

    machines: list[dict[str, Any]] = []
    if app == APP:
        apps = await client.ask("GET", "/v1/apps")
        names = [str(found["name"]) for found in apps["apps"]]
    else:
        names = [app]
    for one in names:
        machines += [found | {"app": one} for found in await client.ask("GET", f"/v1/apps/{one}/machines")]
    for machine in machines:
        if name in (machine["id"], machine["name"]):
            return machine
    raise NotFound(f"no machine {name[:80]!r}", hint="`castoff machine list` shows those that are here")
