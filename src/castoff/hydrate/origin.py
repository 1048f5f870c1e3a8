"""Where chunks come from, and how it is doing: whoever fails is left alone for a little while, longer each time."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from castoff.errors import CastoffError
from castoff.hydrate.pace import Pace
from castoff.layers.index import LayerIndex

__all__ = ["ChunkReader", "Origin"]

_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0


class ChunkReader(Protocol):
    """Verified chunks from anywhere: castoff.sources.chunks."""

    def fetch(self, index: LayerIndex, numbers: Sequence[int]) -> AsyncGenerator[tuple[int, bytes], None]:
        """The chunks, in any order, each verified.

        Raises:
            CastoffError: Those that did not come yet do not come.
        """
        ...

    async def close(self) -> None:
        """Closes connections. Idempotent."""
        ...


class Origin:
    """One repository, as the hydrator reads from it.

    Args:
        name: For people.
        reader: Reads from it.
        changed: Called with one line when it begins to fail, and when it is back.
    """

    def __init__(self, name: str, reader: ChunkReader, changed: Callable[[Origin, str], None]) -> None:
        self.name = name
        self.reader = reader
        self.failing = ""
        """Why nothing comes from it now; empty while it works."""
        self.retry_at = 0.0
        """time.monotonic() from which it may be asked again."""
        self.pace = Pace()
        self._failures = 0
        self._changed = changed

    def worked(self) -> None:
        """Something came."""
        self._failures, self.retry_at = 0, 0.0
        if self.failing:
            self.failing = ""
            self._changed(self, f"{self.name} is back")

    def start_anew(self) -> None:
        """A read was given up: the next one is not to pay for the patience of this one."""
        self._failures, self.retry_at = 0, 0.0

    def failed(self, error: CastoffError, asked_at: float) -> None:
        """It failed a request that began at time.monotonic() ``asked_at``; several at a time count once."""
        if asked_at >= self.retry_at:
            delay = min(_FIRST_DELAY * 2**self._failures, _LONGEST_DELAY)
            self._failures = min(self._failures + 1, 16)
            self.retry_at = time.monotonic() + delay * random.uniform(0.5, 1.0)
        if not self.failing:
            self.failing = str(error)
            self._changed(self, f"{self.name} fails: {error}")
