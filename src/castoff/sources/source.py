"""The port through which chunks come in that are not on this host.

Words: a *pack* is one blob that holds a layer's chunks, each a zstd frame of its own (castoff.layers.pack); the layer's
index says where each lies (castoff.layers.locations). A *source* answers ranges of packs. What it answers is believed by
nobody: whoever asks checks every chunk (castoff.sources.chunks), so a source needs no trust, only patience.

Lifecycle: opened once, asked by any number of tasks at a time, closed. Combinators (chain, race, single-flight, limit) are
sources themselves. "Not here" is None from ``locate``; "broken" raises, and the next source is asked.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from castoff.image.digest import Digest

__all__ = ["ByteRange", "ChunkSource", "Located", "Piece"]


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """Bytes ``start`` to ``end`` (exclusive) of a blob."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Located:
    """What a source has of a pack."""

    source: str
    """Name of the source that answers, for people."""
    size: int | None = None
    """Bytes of the pack, where that is known."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes of a range, as a source gave them."""

    range: ByteRange
    data: bytes | memoryview = field(repr=False)
    """Exactly as many as the range has."""
    source: str
    """Name of the source that gave them: who is to blame if they are wrong."""


class ChunkSource(Protocol):
    """Answers ranges of packs."""

    @property
    def name(self) -> str:
        """For people, and to tell sources apart: ``registry localhost:5000/app``."""
        ...

    async def locate(self, pack: Digest) -> Located | None:
        """Whether this source has the pack; None: ask another.

        Raises:
            Unavailable, Unauthorized: It could not be asked.
        """
        ...

    def read(self, pack: Digest, ranges: Sequence[ByteRange]) -> AsyncGenerator[Piece, None]:
        """The ranges' bytes, not verified: each range once, in any order, as soon as it is here.

        Whoever stops early closes the generator, and what was under way ends with it. Where it raises, the pieces that came
        before are good, and the next source is asked for the others alone.

        Args:
            pack: The blob's digest.
            ranges: Ascending, not overlapping, not empty.

        Raises:
            NotFound: The source does not have the pack.
            Unavailable, Unauthorized, Invalid: It did not answer, or not with what was asked for.
        """
        ...

    async def close(self) -> None:
        """Closes connections. Idempotent."""
        ...
