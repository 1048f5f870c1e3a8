"""What this host says of itself: who it is, what it has room for, and which layers it has."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from castoff.config import Config
from castoff.errors import CastoffError, Invalid
from castoff.fleet.inventory import Inventory
from castoff.fleet.record import HostRecord
from castoff.image.digest import Digest
from castoff.lifecycle.machines import Machines
from castoff.lifecycle.states import State
from castoff.store.durable import replace_file
from castoff.store.have import Have

__all__ = ["Listing", "host_identity", "host_records"]

_AT_REST: Final = {State.CREATED, State.STOPPED, State.SUSPENDED, State.FAILED}


def host_identity(directory: Path) -> str:
    """This host's id: made at the first start, kept in the agent's directory.

    Raises:
        Invalid: What is kept is none.
    """
    path = directory / "host-id"
    try:
        identity = path.read_text().strip()
    except FileNotFoundError:
        identity = secrets.token_hex(8)
        replace_file(path, f"{identity}\n".encode())
    if len(identity) != 16 or not set(identity) <= set("0123456789abcdef"):
        raise Invalid(f"{path} holds no id of a host", hint="remove it: this host then joins its fleet as another one")
    return identity


def host_records(config: Config, identity: str, machines: Machines) -> Callable[[], HostRecord]:
    """What says of this host what it is now."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    cpus = len(os.sched_getaffinity(0))
    version = importlib.metadata.version("castoff")

    def describe() -> HostRecord:
        running = [machine for machine in machines.list() if machine.state not in _AT_REST]
        guests = [machine.config.guest for machine in running if machine.config.guest is not None]
        used_cpus = sum(guest.cpus or 1 for guest in guests)
        used_memory = sum(guest.memory_mb or 0 for guest in guests)
        return HostRecord(
            id=identity,
            name=config.fleet.host_name,
            region=config.agent.region,
            zone=config.fleet.zone,
            labels=config.fleet.labels,
            version=version,
            peers=config.peers.url,
            cpus=cpus,
            cpus_free=max(0, cpus - used_cpus),
            memory_mb=memory,
            memory_free_mb=max(0, memory - used_memory),
            machines=len(running),
            clock=int(time.time()),
        )

    return describe


class Listing:
    """The layers of this host; a layer that is whole is read once.

    Args:
        root: The store's.
    """

    def __init__(self, root: Path) -> None:
        self._layers = root / "layers"
        self._whole: set[str] = set()

    async def __call__(self) -> Inventory:
        """The list as it is now."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> Inventory:
        found = {path.name for path in self._layers.iterdir()}
        self._whole &= found
        part: list[Digest] = []
        for name in sorted(found - self._whole):
            with contextlib.suppress(CastoffError):  # a builder's directory, or one that is broken: not for others
                layer, have = Digest.parse(f"sha256:{name}"), Have.read(self._layers / name / "have")
                if have is None:
                    continue
                if have.complete:
                    self._whole.add(name)
                else:
                    part.append(layer)
        return Inventory.of(map(Digest, self._whole), part)
