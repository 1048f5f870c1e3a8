"""What a host has promised: room for machines that are about to be made, for a limited time."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated

import msgspec

__all__ = ["Capacity", "Reservations", "Wanted"]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine needs."""

    cpus: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 1
    memory_mb: Annotated[int, msgspec.Meta(ge=0, le=1 << 26)] = 0
    gpus: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    gpu_kind: Annotated[str, msgspec.Meta(max_length=64)] = ""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Room for machines."""

    cpus: int
    memory_mb: int
    gpus: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def without(self, wanted: Wanted) -> Capacity:
        """What is left beside a machine; it may be less than nothing, where more runs than was promised."""
        gpus = dict(self.gpus)
        if wanted.gpus:
            gpus[wanted.gpu_kind] = gpus.get(wanted.gpu_kind, 0) - wanted.gpus
        return Capacity(self.cpus - wanted.cpus, self.memory_mb - wanted.memory_mb, gpus)

    def beside(self, wanted: Wanted) -> Capacity:
        """What there is when a machine is gone."""
        gpus = dict(self.gpus)
        if wanted.gpus:
            gpus[wanted.gpu_kind] = gpus.get(wanted.gpu_kind, 0) + wanted.gpus
        return Capacity(self.cpus + wanted.cpus, self.memory_mb + wanted.memory_mb, gpus)

    @property
    def is_room(self) -> bool:
        """Whether nothing of it is less than nothing."""
        return self.cpus >= 0 and self.memory_mb >= 0 and all(count >= 0 for count in self.gpus.values())


@dataclass(slots=True)
class _Promise:
    wanted: Wanted
    until: float
    machine: str = ""


class Reservations:
    """The promises of one host. What was promised to a machine counts until that machine itself does.

    Args:
        total: All the room there is.
        used: The machines that take room now, by id.
        clock: Seconds that only grow.
    """

    def __init__(
        self, total: Capacity, used: Callable[[], Mapping[str, Wanted]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total = total
        self._used = used
        self._clock = clock
        self._promises: dict[str, _Promise] = {}

    def free(self) -> Capacity:
        """What could still be promised."""
        used = self._used()
        self._drop(used)
        left = self._total
        for wanted in used.values():
            left = left.without(wanted)
        for promise in self._promises.values():
            left = left.without(promise.wanted)
        return left

    def fits_later(self, wanted: Wanted) -> bool:
        """Whether there would be room if nothing of what is only promised were taken."""
        left = self.free()
        for promise in self._promises.values():
            if not promise.machine:
                left = left.beside(promise.wanted)
        return left.without(wanted).is_room

    def promise(self, wanted: Wanted, seconds: float, identity: str = "") -> str | None:
        """Keeps room for a machine for some seconds; None where there is none.

        Args:
            wanted: How much.
            seconds: For how long.
            identity: The promise's id, where it has one already: what is asked twice is promised once. Empty: a new one.

        Returns:
            The promise's id.
        """
        free = self.free()
        if identity in self._promises:
            return None if self._promises[identity].machine else identity
        if not free.without(wanted).is_room:
            return None
        identity = identity or secrets.token_hex(8)
        self._promises[identity] = _Promise(wanted, self._clock() + seconds)
        return identity

    def take(self, identity: str, machine: str, seconds: float) -> bool:
        """Gives what was promised to a machine, which has some seconds to come about; False where the promise is over."""
        self._drop(self._used())
        promise = self._promises.get(identity)
        if promise is None or promise.machine not in ("", machine):
            return False
        promise.machine, promise.until = machine, self._clock() + seconds
        return True

    def release(self, identity: str) -> None:
        """The machine is made elsewhere, or not at all. A promise that was taken stays."""
        promise = self._promises.get(identity)
        if promise is not None and not promise.machine:
            del self._promises[identity]

    def _drop(self, used: Mapping[str, Wanted]) -> None:
        now = self._clock()
        for identity in [
            identity for identity, promise in self._promises.items() if promise.until <= now or promise.machine in used
        ]:
            del self._promises[identity]
