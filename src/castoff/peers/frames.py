"""Ranges of a pack as frames of a layer's chunks: peers know chunks, sources know ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid
from castoff.image.digest import Digest
from castoff.layers.index import LayerIndex, read_index
from castoff.layers.locations import LocationKind
from castoff.layers.pack import HEAD
from castoff.sources.source import ByteRange
from castoff.store.store import Store

__all__ = ["Book", "Frame", "PackFrames", "indexed", "stored"]


@dataclass(frozen=True, slots=True)
class Frame:
    """A chunk's frame in a pack."""

    number: int
    """Of the chunk."""
    place: ByteRange


class PackFrames:
    """Where a pack's frames are. Keeps three columns of the index, not all of it.

    Args:
        index: Of the layer, with locations.
        pack: The pack among its blobs.
    """

    def __init__(self, index: LayerIndex, pack: Digest) -> None:
        where = index.locations
        mine = where.kind == LocationKind.PACK
        mine &= where.blob == (where.blobs.index(pack) if pack in where.blobs else len(where.blobs))
        numbers = np.flatnonzero(mine)
        order = numbers[np.argsort(where.offset[numbers], kind="stable")]
        self.diff_id = index.diff_id
        self.chunks = len(index.digests)
        self._numbers: NDArray[np.int64] = order
        self._starts = where.offset[order].astype(np.int64)
        self._ends = self._starts + where.length[order].astype(np.int64)
        if (self._ends[:-1] > self._starts[1:]).any():
            raise Invalid(f"the index of layer {index.diff_id} has chunks within others", hint="publish the image again")

    @property
    def size(self) -> int:
        """Bytes up to the last frame's end."""
        return int(self._ends[-1]) if len(self._ends) else len(HEAD)

    def of(self, one: ByteRange) -> list[Frame]:
        """The frames that a range touches, ascending.

        Raises:
            Invalid: It touches bytes that belong to no frame, and are not the pack's head.
        """
        first = int(np.searchsorted(self._ends, one.start, "right"))
        last = int(np.searchsorted(self._starts, one.end, "left"))
        columns = (column[first:last].tolist() for column in (self._numbers, self._starts, self._ends))
        frames = [Frame(number, ByteRange(start, end)) for number, start, end in zip(*columns, strict=True)]
        at = max(one.start, len(HEAD)) if self._starts.size == 0 or self._starts[0] >= len(HEAD) else one.start
        for frame in frames:
            if frame.place.start > at:
                break
            at = max(at, frame.place.end)
        if at < one.end:
            raise Invalid(f"bytes {at} to {one.end} of a pack of layer {self.diff_id} are no chunk's")
        return frames

    @staticmethod
    def cut(one: ByteRange, frames: Sequence[Frame], data: Mapping[int, bytes | memoryview]) -> bytes | memoryview:
        """A range's bytes out of its frames', by number."""
        if len(frames) == 1 and frames[0].place == one:  # what chunks are read by
            return data[frames[0].number]
        parts: list[bytes | memoryview] = [HEAD[one.start : one.end]] if one.start < len(HEAD) else []
        for frame in frames:
            start, end = max(one.start, frame.place.start), min(one.end, frame.place.end)
            parts.append(memoryview(data[frame.number])[start - frame.place.start : end - frame.place.start])
        return b"".join(parts)


Book = Callable[[Digest], PackFrames | None]
"""Knows packs by their digests; None: not this one. Blocks."""


def indexed(packs: Mapping[Digest, LayerIndex]) -> Book:
    """Knows the packs of these indexes."""
    known: dict[Digest, PackFrames] = {}

    def find(pack: Digest) -> PackFrames | None:
        if pack not in known and pack in packs:
            known[pack] = PackFrames(packs[pack], pack)
        return known.get(pack)

    return find


def stored(store: Store, layers: Mapping[Digest, Digest]) -> Book:
    """Knows the packs of layers of the store, each by its layer's diffID."""
    known: dict[Digest, PackFrames] = {}

    def find(pack: Digest) -> PackFrames | None:
        if pack not in known and pack in layers:
            layer = store.layer(layers[pack])
            if layer is None:
                return None
            try:
                known[pack] = PackFrames(read_index(layer.index), pack)
            finally:
                layer.pin.close()
        return known.get(pack)

    return find
