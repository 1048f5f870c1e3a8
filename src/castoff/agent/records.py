"""What the agent keeps in its database, opened in the order in which one part needs the other."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from castoff.api.tokens import Tokens
from castoff.config import Config
from castoff.lifecycle.apps import Apps
from castoff.lifecycle.database import Database
from castoff.lifecycle.releases import Releases
from castoff.lifecycle.secrets import Secrets
from castoff.lifecycle.volumes import Volumes

__all__ = ["Records", "database_path", "open_records"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """All but the machines, which need a launcher.

    Attributes:
        first_token: The first token's text, at the first start of all; empty later.
    """

    database: Database
    tokens: Tokens
    apps: Apps
    secrets: Secrets
    volumes: Volumes
    releases: Releases
    first_token: str


def database_path(state: Path) -> Path:
    """The agent's database in a state directory."""
    return state / "castoff.db"


@contextlib.asynccontextmanager
async def open_records(config: Config, volumes: Path, *, first_token: bool, discard_unknown: bool) -> AsyncIterator[Records]:
    """The records of ``config.state``, open for the block.

    Args:
        config: The configuration.
        volumes: The directory of the volumes' files.
        first_token: Make one at the first start of all.
        discard_unknown: Remove volumes that are on this host's disk and not in the database.

    Raises:
        Conflict: There are such volumes, and they are not to be removed.
        CastoffError: The database is broken, or of a later version.
    """
    path = database_path(config.state)
    is_first = not path.exists()
    async with Database.open(path) as database:
        tokens, apps = Tokens(database), Apps(database)
        held = Volumes(database, volumes, region=config.agent.region)
        await apps.load()
        await held.load(discard_unknown=discard_unknown)
        yield Records(
            database=database,
            tokens=tokens,
            apps=apps,
            secrets=Secrets(database),
            volumes=held,
            releases=Releases(database),
            first_token=(await tokens.create(name="first"))[1] if is_first and first_token else "",
        )
