"""Ports of the host that lead to machines: those of ``config.services``, where the operator lets them. A port leads to one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from castoff.errors import Conflict, Invalid
from castoff.lifecycle.config import MachineConfig
from castoff.lifecycle.model import Machine
from castoff.lifecycle.states import ACTIVE

__all__ = ["Ports", "Published"]


@dataclass(frozen=True, slots=True, order=True)
class Published:
    """A TCP port of the host, and the machine's that it leads to."""

    host_port: int
    guest_port: int


class Ports:
    """Of one host's machines.

    Args:
        first: The lowest that machines may have; lower ones lead nowhere. None: none may.
    """

    def __init__(self, first: int | None = None) -> None:
        self._first = first
        self._owners: dict[int, str] = {}
        self._pending: dict[str, list[frozenset[int]]] = {}
        """Of machines that are being made or updated."""

    def load(self, machines: Iterable[Machine]) -> None:
        """Knows those that machines have."""
        for machine in machines:
            if machine.state in ACTIVE:
                for port in self.published(machine.config):
                    self._owners.setdefault(port.host_port, machine.id)

    def published(self, config: MachineConfig) -> tuple[Published, ...]:
        """What a configuration has the host publish."""
        if self._first is None:
            return ()
        found = {
            Published(port.port, service.internal_port)
            for service in config.services or ()
            if service.internal_port and service.protocol in (None, "tcp")
            for port in service.ports or ()
            if port.port and port.port >= self._first
        }
        return tuple(sorted(found))

    @contextlib.contextmanager
    def claimed(self, machine: str, config: MachineConfig) -> Iterator[None]:
        """For the block a machine has a configuration's ports, on top of those that it has; :meth:`keep` decides afterwards.

        Raises:
            Invalid: It wants one to lead to two of its own.
            Conflict: Another machine has one.
        """
        wanted = frozenset(port.host_port for port in self.published(config))
        if len(wanted) < len(self.published(config)):
            raise Invalid("services: a port of the host is there twice", hint="one leads to one internal_port")
        for port in wanted:
            if self._owners.get(port, machine) != machine:
                raise Conflict(
                    f"services: port {port} of this host leads to machine {self._owners[port]}",
                    hint="take another, or destroy that machine",
                )
        self._owners.update(dict.fromkeys(wanted, machine))
        pending = self._pending.setdefault(machine, [])
        pending.append(wanted)
        try:
            yield
        finally:
            pending.remove(wanted)
            if not pending:
                del self._pending[machine]

    def keep(self, machine: str, config: MachineConfig | None) -> None:
        """A machine has its configuration's ports, and those that are claimed for it; None: it is no more. Idempotent."""
        kept = set() if config is None else {port.host_port for port in self.published(config)}
        kept.update(*self._pending.get(machine, ()))
        for port in [port for port, owner in self._owners.items() if owner == machine and port not in kept]:
            del self._owners[port]
