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
from castoff.fleet.reservations import Capacity, Reservations, Wanted
from castoff.fleet.roster import MachineRow
from castoff.image.digest import Digest
from castoff.lifecycle.config import MachineConfig
from castoff.lifecycle.machines import Machines
from castoff.lifecycle.states import State
from castoff.store.durable import replace_file
from castoff.store.have import Have

__all__ = ["Listing", "host_capacity", "host_identity", "host_records", "machine_rows", "machines_here", "wanted_of"]

_MEMORY: Final = 256
"""MiB of a machine whose guest does not say."""

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


def host_capacity(config: Config) -> Capacity:
    """All the room that this host has for machines."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return Capacity(int(len(os.sched_getaffinity(0)) * config.fleet.cpu_share), memory)


def machines_here(machines: Machines) -> dict[str, Wanted]:
    """The machines that take room now."""
    return {machine.id: wanted_of(machine.config) for machine in machines.list() if machine.state not in _AT_REST}


def wanted_of(config: MachineConfig) -> Wanted:
    """The room that a machine takes."""
    guest = config.guest
    if guest is None:
        return Wanted(cpus=1, memory_mb=_MEMORY)
    return Wanted(
        cpus=guest.cpus or 1,
        memory_mb=guest.memory_mb or _MEMORY,
        gpus=max(0, min(guest.gpus or 0, 64)),
        gpu_kind=(guest.gpu_kind or "")[:64],
    )


def machine_rows(machines: Machines) -> list[MachineRow]:
    """What other hosts are told of this one's machines."""
    return [
        MachineRow(
            id=machine.id,
            app=machine.app,
            name=machine.name,
            state=machine.state.value,
            region=machine.region,
            version=machine.version,
            image=machine.config.image[:512],
            created=machine.created,
            updated=machine.updated,
        )
        for machine in machines.list()
    ]


def host_records(
    config: Config, identity: str, machines: Machines, total: Capacity, reservations: Reservations
) -> Callable[[], HostRecord]:
    """What says of this host what it is now."""
    version = importlib.metadata.version("castoff")

    def describe() -> HostRecord:
        free = reservations.free()
        return HostRecord(
            id=identity,
            name=config.fleet.host_name,
            region=config.agent.region,
            zone=config.fleet.zone,
            labels=config.fleet.labels,
            version=version,
            peers=config.peers.url,
            cpus=total.cpus,
            cpus_free=max(0, free.cpus),
            memory_mb=total.memory_mb,
            memory_free_mb=max(0, free.memory_mb),
            machines=len(machines_here(machines)),
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
