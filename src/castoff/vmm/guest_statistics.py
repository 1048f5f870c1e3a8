"""What a guest's kernel counts, as its init tells (docs/formats.md, "Tasks of init"). The guest is hostile."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from castoff.errors import Invalid
from castoff.vmm.guest import GuestSettings
from castoff.vmm.guest_session import GuestSession
from castoff.vmm.guest_tasks import finish

__all__ = ["GuestFilesystem", "GuestStatistics", "asking_statistics", "parse_statistics", "read_statistics"]

_MACHINE: Final = struct.Struct("<18Q")
_FILESYSTEM: Final = struct.Struct("<3Q")
_TICKS: Final = 100
"""A second's, see castoff.vmm.guest_processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFilesystem:
    """A filesystem of the guest's, in bytes; ``available`` is what others than root may still write."""

    path: str
    size: int
    used: int
    available: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestStatistics:
    """What a guest's kernel counts.

    Attributes:
        memory, memory_available: Bytes that there are, and that programs could still get.
        swap, swap_free: Bytes.
        load: Averages of 1, 5 and 15 minutes.
        up_seconds: Since the guest's boot.
        user_seconds, system_seconds, idle_seconds, waiting_seconds, stolen_seconds: Of all CPUs' time since then; ``waiting``
            for disks, ``stolen`` by the host.
        received, sent: Bytes of all network cards but loopback.
        filesystems: Those that were asked for.
    """

    memory: int
    memory_available: int
    swap: int
    swap_free: int
    load: tuple[float, float, float]
    up_seconds: float
    user_seconds: float
    system_seconds: float
    idle_seconds: float
    waiting_seconds: float
    stolen_seconds: float
    received: int
    sent: int
    filesystems: tuple[GuestFilesystem, ...]


def asking_statistics(paths: Sequence[str]) -> GuestSettings:
    """What a channel executes to get statistics, with those of the filesystems at ``paths``."""
    return GuestSettings(argv=("statistics", *paths), task=True)


async def read_statistics(session: GuestSession, paths: Sequence[str]) -> GuestStatistics:
    """What a session of :func:`asking_statistics` says. The caller sets a time limit: a filesystem may hang.

    Raises:
        Unsupported: The guest's init is of an older castoff.
        CastoffError: It cannot be told, or the machine ended.
    """
    said = bytearray()
    most = _MACHINE.size + len(paths) * _FILESYSTEM.size

    async def take(piece: bytes) -> None:
        said.extend(piece[: most + 1 - len(said)])

    await finish(session, take)
    return parse_statistics(bytes(said), paths)


def parse_statistics(data: bytes, paths: Sequence[str]) -> GuestStatistics:
    """The statistics in ``data``.

    Raises:
        Invalid: They are not as long as they should be.
    """
    if len(data) != _MACHINE.size + len(paths) * _FILESYSTEM.size:
        raise Invalid("the guest's statistics are broken", hint="its init was replaced or crashed; stop the machine")
    memory, available, swap, swap_free, *load, up, user, nice, system, idle, waiting, irq, softirq, stolen, received, sent = (
        _MACHINE.unpack_from(data)
    )
    filesystems = zip(paths, _FILESYSTEM.iter_unpack(data[_MACHINE.size :]), strict=True)
    return GuestStatistics(
        memory=memory,
        memory_available=available,
        swap=swap,
        swap_free=swap_free,
        load=(load[0] / 1000, load[1] / 1000, load[2] / 1000),
        up_seconds=up / 1000,
        user_seconds=(user + nice) / _TICKS,
        system_seconds=(system + irq + softirq) / _TICKS,
        idle_seconds=idle / _TICKS,
        waiting_seconds=waiting / _TICKS,
        stolen_seconds=stolen / _TICKS,
        received=received,
        sent=sent,
        filesystems=tuple(
            GuestFilesystem(path=path, size=size, used=used, available=free) for path, (size, used, free) in filesystems
        ),
    )
