"""Leases: while a client has one, nobody else changes the machine."""

from __future__ import annotations

import hmac
import secrets
import time
from typing import Final

from castoff.errors import Invalid
from castoff.lifecycle.ids import milliseconds
from castoff.lifecycle.model import Lease, LeaseHeld, Machine

__all__ = ["check_lease", "lease_end", "new_lease"]

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
        expires=lease_end(ttl),
    )


def lease_end(ttl: int) -> int:
    """When a lease of ``ttl`` seconds ends.

    Raises:
        Invalid: That is negative, or over a year.
    """
    if not 0 <= ttl <= _LONGEST:
        raise Invalid(f"a lease cannot be for {str(ttl)[:30]} s", hint="at most a year")
    return milliseconds() + ttl * 1000


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
