"""Where a layer's chunks can be had from, besides the segment itself."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castoff.image.digest import Digest

__all__ = ["LocationKind", "Locations"]


class LocationKind(enum.IntEnum):
    """How a chunk can be had from a blob."""

    LOCAL = 0
    """From no blob: only from the segment itself, here or at a peer."""
    PACK = 1
    """A zstd frame of its own in a pack."""


@dataclass(frozen=True, slots=True, eq=False)
class Locations:
    """Where each of C chunks lies outside of this host; B blobs."""

    kind: NDArray[np.uint8]
    """[C] of :class:`LocationKind`."""
    blob: NDArray[np.uint32]
    """[C] number of the blob in ``blobs``; 0 where the kind has none."""
    offset: NDArray[np.uint64]
    """[C] first byte in the blob."""
    length: NDArray[np.uint32]
    """[C] bytes in the blob."""
    blobs: tuple[Digest, ...] = ()
    """The B blobs' digests."""

    @classmethod
    def local(cls, count: int) -> Locations:
        """``count`` chunks that are nowhere but here."""
        return cls(np.zeros(count, np.uint8), np.zeros(count, np.uint32), np.zeros(count, np.uint64), np.zeros(count, np.uint32))
