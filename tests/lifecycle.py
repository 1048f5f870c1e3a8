"""An agent's machines without an agent: over a database in a directory, and a world in memory."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from castoff.errors import Conflict, NotFound
from castoff.fakes.launcher import FakeLauncher, World
from castoff.lifecycle.config import parse_config
from castoff.lifecycle.database import Database
from castoff.lifecycle.machines import CreateRequest, Machine, Machines, UpdateRequest
from castoff.lifecycle.states import State


@dataclass
class Secrets:
    """Secrets of every app."""

    known: dict[str, str] = field(default_factory=dict)

    async def values(self, app: str) -> Mapping[str, str]:
        return self.known

    async def version(self, app: str) -> int:
        return len(self.known)


@dataclass
class Volumes:
    """Volumes and who has them."""

    owners: dict[str, str | None] = field(default_factory=dict)

    def check(self, app: str, volume: str, machine: str | None = None) -> None:
        if volume not in self.owners:
            raise NotFound(f"no volume {volume}")
        if self.owners[volume] not in (None, machine):
            raise Conflict(f"volume {volume} is another machine's")

    async def attach(self, app: str, volume: str, machine: str, *, grow: bool = True) -> str:
        self.check(app, volume, machine)
        self.owners[volume] = machine
        return f"/volumes/{volume}"

    async def detach(self, machine: str, *, keep: Collection[str] = ()) -> None:
        for volume, owner in self.owners.items():
            if owner == machine and volume not in keep:
                self.owners[volume] = None


@contextlib.asynccontextmanager
async def opened(
    directory: Path, world: World, *, secrets: Secrets | None = None, volumes: Volumes | None = None
) -> AsyncIterator[Machines]:
    """The machines of one agent."""
    async with (
        Database.open(directory / "castoff.db") as database,
        Machines.open(
            database, FakeLauncher(world), secrets=secrets or Secrets(), volumes=volumes or Volumes(), region="local"
        ) as machines,
    ):
        yield machines


def wanted(image: str = "alpine:3", *, name: str | None = None, skip_launch: bool = False, **config: Any) -> CreateRequest:
    """A create of an image with further fields of its configuration."""
    document = {"image": image, **config}
    return CreateRequest(document=document, config=parse_config(document), name=name, skip_launch=skip_launch)


def changed(
    image: str = "alpine:3", *, current_version: str | None = None, skip_launch: bool = False, **config: Any
) -> UpdateRequest:
    """An update."""
    document = {"image": image, **config}
    return UpdateRequest(
        document=document, config=parse_config(document), current_version=current_version, skip_launch=skip_launch
    )


async def settled(machines: Machines, machine: Machine, *states: State) -> Machine:
    """The machine once it is in one of ``states``."""
    await machines.wait(None, machine.id, states=states, timeout=10)
    return machines.get(None, machine.id)
