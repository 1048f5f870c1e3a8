"""Who of the fleet does a thing that one host shall do: a lease, in a cell of a bucket that is written by compare-and-set.

Clocks of hosts are not compared. Whoever holds a lease writes the cell again and again, and believes in it for ``ttl``
seconds from when it *sent* its last write that counted; whoever wants it takes it when it has *seen* the same revision for
``ttl`` seconds, each by its own clock. A write comes to the cell after it was sent and is seen after that, so the one stops
to believe before another begins, whatever the network does. Every write names the revision that it follows, so what a host
that was asleep writes is refused: the revision is the fence.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass
from typing import Annotated, Final, Protocol

import msgspec

from castoff.errors import Invalid

__all__ = ["Cell", "Cells", "Claim", "Lease", "LeaseState", "boot_clock", "read_lease"]

_MOST_BYTES: Final = 8192


class LeaseState(enum.StrEnum):
    """What its cell says."""

    HELD = "held"
    FREE = "free"
    """It was given back."""
    DONE = "done"
    """Its work is done."""
    FAILED = "failed"
    """Its work failed, and would again."""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """What is written in the cell."""

    holder: Annotated[str, msgspec.Meta(max_length=64)]
    """The host's id."""
    run: Annotated[str, msgspec.Meta(max_length=64)]
    """Drawn at random by whoever took it: a host that was started again is another."""
    state: LeaseState = LeaseState.HELD
    url: Annotated[str, msgspec.Meta(max_length=255)] = ""
    """Where its holder serves what comes of it."""
    name: Annotated[str, msgspec.Meta(max_length=255)] = ""
    """The holder's, for people."""
    reason: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    """Why it failed."""


_decoder = msgspec.json.Decoder(Lease)


@dataclass(frozen=True, slots=True)
class Cell:
    """A value as it was found."""

    value: bytes
    revision: int


class Cells(Protocol):
    """A bucket."""

    async def get(self, key: str) -> Cell | None:
        """What is there; None: nothing. Raises Unavailable."""

    async def put(self, key: str, value: bytes, after: int) -> int | None:
        """Writes a value that follows revision ``after``; 0: there is none yet.

        Returns:
            Its revision; None: what is there is another.

        Raises:
            Unavailable: It was written, or it was not.
        """


def boot_clock() -> float:
    """Seconds, also those in which the host was suspended: a lease runs out meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def read_lease(cell: Cell) -> Lease:
    """What a cell says.

    Raises:
        Invalid: Nothing that makes sense.
    """
    try:
        return _decoder.decode(cell.value[: _MOST_BYTES + 1])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"a lease cannot be read: {error}") from error


class Claim:
    """One host's side of one lease: what it may write, and whether it holds it. Speaks to nobody.

    Args:
        holder: The host.
        run: What tells this claim from the host's others.
        ttl: Seconds; the same on all hosts.
    """

    def __init__(self, holder: str, run: str, ttl: float) -> None:
        self.holder = holder
        self.run = run
        self.ttl = ttl
        self.revision = 0
        """Of its last write that counted."""
        self._valid_until = float("-inf")
        self._seen = 0
        self._seen_at = float("-inf")

    def is_held(self, now: float) -> bool:
        """Whether this host may do what the lease is for."""
        return now < self._valid_until

    def may_follow(self, found: Cell | None, now: float) -> int | None:
        """The revision after which the cell may be written to take the lease; None: it is another's.

        Args:
            found: What was read just now.
            now: After it was read.
        """
        if found is None:
            return 0
        if found.revision != self._seen:
            self._seen, self._seen_at = found.revision, now
        try:
            lease = read_lease(found)
        except Invalid:
            return found.revision  # rubbish is nobody's
        if lease.state in (LeaseState.DONE, LeaseState.FAILED):
            return None
        if lease.state is LeaseState.FREE or lease.holder == self.holder:
            return found.revision  # of this host: the process that took it is gone, or it was this one, which heard no answer
        return found.revision if now - self._seen_at >= self.ttl else None

    def written(self, revision: int, sent_at: float) -> None:
        """A write that was sent at ``sent_at`` counted."""
        if revision > self.revision:
            self.revision = revision
            self._valid_until = max(self._valid_until, sent_at + self.ttl)

    def lost(self) -> None:
        """It is another's, or is given back."""
        self._valid_until = float("-inf")
