"""How patient a host is with orders, and what its clock says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from castoff.fleet.holding import TTL

__all__ = ["Pace", "local_time"]


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient a host is; in tests less than in life. Seconds.

    Attributes:
        look: After which the orders are looked at anew where nothing is heard of them.
        back_off: Before the second attempt; twice as many before each further one.
        tell: Between two words of progress.
        ttl: That a lease lasts without its holder; the same on all hosts.
        lead: Between two looks of the host that leads.
        tags: Between two looks at a tag.
    """

    look: float = 30.0
    back_off: float = 10.0
    tell: float = 2.0
    ttl: float = TTL
    lead: float = 1.0
    tags: float = 30.0


def local_time() -> datetime:
    """Now, by this host's clock and zone."""
    return datetime.now().astimezone()
