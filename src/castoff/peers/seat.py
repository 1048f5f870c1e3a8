"""What one peer has of one layer, as it last said: shared by all reads of the layer, asked for once at a time."""

from __future__ import annotations

import asyncio
import time

import numpy as np
from numpy.typing import NDArray

from castoff.peers.frames import PackFrames
from castoff.peers.peer import Peer

__all__ = ["Seat"]

_WAIT = 1.0
"""Seconds that a peer is asked to wait until it has more."""
_FIRST_REST, _LONGEST_REST = 0.05, 1.0
"""Seconds after which a peer that has nothing new to say is asked again, twice as many each time: hosts that were told to
begin together do so within moments."""
_SELDOM = 0.05
"""Part of the time since the first question that lies between two of them at least: what goes on for long needs fewer."""
_SLACK = 3
"""Shares that a peer may leave to others before nobody counts on it any more."""


class Seat:
    """A peer at a layer.

    Attributes:
        have: [C] what it says that it has; None: it does not know the layer, or was not asked yet.
        shares_left: How often others had to do what was its share.
    """

    def __init__(self, peer: Peer, frames: PackFrames) -> None:
        self.peer = peer
        self.have: NDArray[np.bool_] | None = None
        self.shares_left = 0
        self._frames = frames
        self._grew = float("-inf")
        self._looked = float("-inf")
        self._asked_first: float | None = None
        self._rest = _FIRST_REST
        self._looking: asyncio.Task[None] | None = None

    @property
    def is_known(self) -> bool:
        """Whether it has been asked at all."""
        return self._looked > float("-inf")

    def brings(self, patience: float) -> bool:
        """Whether it is worth waiting for: it has all, or had more than before within ``patience`` seconds."""
        if self.have is None or self.shares_left >= _SLACK:
            return False
        return bool(self.have.all()) or time.monotonic() - self._grew < patience

    async def look(self) -> None:
        """Asks it what it has by now; returns when that is known, which is at once where nothing can have changed.

        Raises:
            CastoffError: It did not answer, or with nonsense.
        """
        await asyncio.shield(self._begin())

    def refresh(self) -> None:
        """Asks it, where that may tell something new, and waits for nothing."""
        if not self.is_known or (self.have is not None and not self.have.all()):
            self._begin()

    def _begin(self) -> asyncio.Task[None]:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())  # also where nobody waits
        return self._looking

    def forget(self) -> None:
        """It failed: what it said does not count."""
        self.have = None

    async def close(self) -> None:
        """Ends what is under way."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look(self) -> None:
        now = time.monotonic()
        if self._asked_first is None:
            self._asked_first = now
        await asyncio.sleep(min(_LONGEST_REST, _SELDOM * (now - self._asked_first)) - (now - self._looked))
        if self.is_known and (self.have is None or self.have.all()):
            await asyncio.sleep(max(0.0, self._looked + self._rest - time.monotonic()))
            self._rest = min(2 * self._rest, _LONGEST_REST)
        known = -1 if self.have is None else int(self.have.sum())
        try:
            have = await self.peer.have(self._frames, known=known, wait=_WAIT if known >= 0 else 0.0)
        except BaseException:
            self.have = None
            raise
        finally:
            self._looked = time.monotonic()
        if have is not None and (self.have is None or int(have.sum()) != known):
            self._grew = self._looked
        self.have = have
