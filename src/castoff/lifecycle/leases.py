"""Leases: while a client has one, nobody else changes the machine."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from castoff.errors import Invalid, NotFound
from castoff.lifecycle.board import Board
from castoff.lifecycle.ids import milliseconds
from castoff.lifecycle.model import Lease, LeaseHeld, Machine
from castoff.lifecycle.operations import Operations

__all__ = ["Leases", "check_lease", "new_lease"]

_LONGEST: Final = 366 * 86400


def new_lease(machine: Machine, *, ttl: int, owner: str, description: str) -> Lease:
    """A lease of a machine for ``ttl`` seconds from now.

    Raises:
        Invalid: That is negative, or over a year.
    """
    return Lease(
        nonce=secrets.token_hex(8),
        owner=owner,
        description=description,
        version=machine.version,
        expires=_lease_end(ttl),
    )


def check_lease(machine: Machine, nonce: str | None) -> None:
    """Lets whoever has the machine's lease through, and everybody where nobody has one.

    Raises:
        LeaseHeld: Somebody else has it.
    """
    lease = machine.lease
    if lease is None or lease.expires <= milliseconds():
        return
    if nonce is not None and hmac.compare_digest(lease.nonce.encode(), nonce.encode()):
        return
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(lease.expires / 1000))
    raise LeaseHeld(
        f"machine ID {machine.id} lease currently held by {lease.owner}, expires at {until}", hint="wait, or give its nonce"
    )


class Leases:
    """Of all machines.

    Args:
        board: Where the machines are.
        operations: Those that are under way.
    """

    def __init__(self, board: Board, operations: Operations) -> None:
        self._board = board
        self._operations = operations

    def get(self, app: str | None, machine: str) -> Lease:
        """A machine's lease.

        Raises:
            NotFound: It has none.
        """
        lease = self._board.get(app, machine).lease
        if lease is None or lease.expires <= milliseconds():
            raise NotFound(f" lease not found: machine {machine[:80]!r} has none")
        return lease

    async def acquire(self, app: str | None, machine: str, *, ttl: int, owner: str, description: str = "") -> Lease:
        """Takes a machine's lease for ``ttl`` seconds.

        Raises:
            LeaseHeld: Somebody has it.
        """
        return await self._change(app, machine, None, lambda now: new_lease(now, ttl=ttl, owner=owner, description=description))

    async def refresh(self, app: str | None, machine: str, *, nonce: str, ttl: int) -> Lease:
        """Makes a lease end ``ttl`` seconds from now."""
        expires = _lease_end(ttl)
        held = self.get(app, machine)
        return await self._change(app, machine, nonce, lambda now: msgspec.structs.replace(now.lease or held, expires=expires))

    async def release(self, app: str | None, machine: str, *, nonce: str) -> None:
        """Gives a lease back.

        Raises:
            NotFound: There is none.
            LeaseHeld: It is not this one.
        """
        self.get(app, machine)

        def changed(now: Machine) -> dict[str, Any]:
            check_lease(now, nonce)
            return {"lease": None}

        await self._operations.whole(self._board.change(machine, changed))

    async def _change(self, app: str | None, machine: str, nonce: str | None, make: Callable[[Machine], Lease]) -> Lease:
        self._board.get(app, machine)

        def changed(now: Machine) -> dict[str, Any]:
            check_lease(now, nonce)
            return {"lease": make(now)}

        lease = (await self._operations.whole(self._board.change(machine, changed))).lease
        assert lease is not None
        return lease


def _lease_end(ttl: int) -> int:
    """When a lease of ``ttl`` seconds ends.

    Raises:
        Invalid: That is negative, or over a year.
    """
    if not 0 <= ttl <= _LONGEST:
        raise Invalid(f"a lease cannot be for {str(ttl)[:30]} s", hint="at most a year")
    return milliseconds() + ttl * 1000
