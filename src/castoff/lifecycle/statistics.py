"""What a machine that runs takes, as its host counts it and as its guest does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from castoff.vmm.cgroups import Usage
from castoff.vmm.guest_statistics import GuestStatistics

__all__ = ["Measured", "Statistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What a machine takes.

    Attributes:
        host: Of its VMM's control group; None: it has none.
        memory_limit: Bytes that the VMM may take; -1: there is no limit.
        guest: What the guest says; None: it does not.
        why: Why it does not; empty otherwise.
    """

    host: Usage | None
    memory_limit: int = -1
    guest: GuestStatistics | None = None
    why: str = ""


@runtime_checkable
class Measured(Protocol):
    """A run that can be measured."""

    async def statistics(self) -> Statistics:
        """What it takes now. A guest that does not answer is not waited for long, and told of in the answer."""
        ...
