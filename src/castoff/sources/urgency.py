"""Whether somebody waits for what is read now: told to sources beside the port's arguments, as a deadline would be.

It belongs to the task that reads, and to those that it starts. A source that knows no haste need not look.
"""

from __future__ import annotations

import enum
from contextvars import ContextVar

__all__ = ["URGENCY", "Urgency"]


class Urgency(enum.IntEnum):
    """The lower is the more urgent."""

    WAITED_FOR = 0
    """A guest waits for it."""
    SOON = 1
    """A guest is known to want it."""
    BULK = 2


URGENCY: ContextVar[Urgency] = ContextVar("castoff.urgency", default=Urgency.BULK)
