"""Which layers each host has, as short lists that all hosts keep.

A layer is known by the first 8 bytes of its diffID: 80 KB for a host with 10,000 layers, told only when the list changes. A list
is a hint where to ask; two layers with one beginning cost a question that is answered with no.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid
from castoff.image.digest import Digest

__all__ = ["MOST_BYTES", "MOST_LAYERS", "Inventory"]

MOST_LAYERS = 100_000
"""Of one list, so that it is one message of a NATS server as it comes (1 MiB)."""
_HEADER = struct.Struct("<4sII")
MOST_BYTES = _HEADER.size + 8 * MOST_LAYERS
"""Of one list."""
_MAGIC = b"cin1"


@dataclass(frozen=True, slots=True, eq=False)
class Inventory:
    """A host's layers, sorted."""

    whole: NDArray[np.uint64]
    part: NDArray[np.uint64]
    """Those that still come in: of each it has some chunks, or will have soon."""

    @classmethod
    def of(cls, whole: Iterable[Digest], part: Iterable[Digest] = ()) -> Inventory:
        """The list of some layers; of more than :data:`MOST_LAYERS` the first."""
        first = _sorted(whole)[:MOST_LAYERS]
        return cls(first, _sorted(part)[: MOST_LAYERS - len(first)])

    def to_bytes(self) -> bytes:
        """``cin1``, two counts (u32, little-endian), then the layers as u64."""
        head = _HEADER.pack(_MAGIC, len(self.whole), len(self.part))
        return head + self.whole.astype("<u8").tobytes() + self.part.astype("<u8").tobytes()

    @classmethod
    def read(cls, data: bytes) -> Inventory:
        """A host's list.

        Raises:
            Invalid: It is none.
        """
        if len(data) < _HEADER.size:
            raise Invalid("a list of layers is cut off")
        magic, whole, part = _HEADER.unpack_from(data)
        if magic != _MAGIC or whole + part > MOST_LAYERS or len(data) != _HEADER.size + 8 * (whole + part):
            raise Invalid("a list of layers is broken, or of another version")
        rows = np.frombuffer(data, dtype="<u8", offset=_HEADER.size).astype(np.uint64)
        for column in (rows[:whole], rows[whole:]):
            if np.any(column[1:] <= column[:-1]):
                raise Invalid("a list of layers is not sorted")
        return cls(rows[:whole], rows[whole:])

    def has(self, layer: Digest) -> bool:
        """Whether all of a layer is there."""
        return _has(self.whole, layer)

    def begins(self, layer: Digest) -> bool:
        """Whether a layer is there in part."""
        return _has(self.part, layer)

    def __len__(self) -> int:
        return len(self.whole) + len(self.part)


def _short(layer: Digest) -> int:
    return int(layer.hex[:16], 16)


def _sorted(layers: Iterable[Digest]) -> NDArray[np.uint64]:
    return np.unique(np.fromiter(map(_short, layers), dtype=np.uint64))


def _has(column: NDArray[np.uint64], layer: Digest) -> bool:
    wanted = np.uint64(_short(layer))
    at = int(column.searchsorted(wanted))
    return at < len(column) and bool(column[at] == wanted)
