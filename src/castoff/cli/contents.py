"""Which files lie in which chunks of a layer, for people who ask what a machine reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from castoff.layers.index import read_index
from castoff.layers.pack import chunk_size
from castoff.layers.toc import BLOCK, CHUNK

if TYPE_CHECKING:
    from castoff.image.digest import Digest
    from castoff.layers.index import LayerIndex
    from castoff.store.store import Store

__all__ = ["Contents"]

_BLOCKS = CHUNK // BLOCK


class Contents:
    """A layer's chunks and files."""

    def __init__(self, index: LayerIndex) -> None:
        self._index = index

    @classmethod
    def of(cls, store: Store, diff_id: Digest) -> Contents | None:
        """A layer of the store; None where it is not here. Blocks.

        Raises:
            Invalid: Its index is broken.
        """
        layer = store.layer(diff_id)
        return None if layer is None else cls(read_index(layer.index))

    def size(self, first: int, count: int) -> int:
        """Bytes of ``count`` chunks from ``first`` on; 0 for those that the layer has not."""
        end = min(first + count, len(self._index.digests))
        return sum(chunk_size(self._index, number) for number in range(first, end))

    def files(self, first: int, count: int) -> tuple[str, ...]:
        """The paths of what is in these chunks, the one with most bytes in them first."""
        toc = self._index.toc
        start, end = first * _BLOCKS, (first + count) * _BLOCKS
        begins = toc.extent_segment.astype(np.int64)
        ends = begins + toc.extent_blocks
        inside = np.flatnonzero((begins < end) & (ends > start))
        overlap = np.minimum(ends[inside], end) - np.maximum(begins[inside], start)
        shares: dict[int, int] = {}
        for row, blocks in zip(toc.extent_row[inside].tolist(), overlap.tolist(), strict=True):
            shares[row] = shares.get(row, 0) + blocks
        return tuple(self._path(row) for row in sorted(shares, key=lambda row: (-shares[row], row)))

    def _path(self, row: int) -> str:
        toc = self._index.toc
        at = int(toc.directory[row])
        directory = toc.directory_pool[toc.directory_offsets[at] : toc.directory_offsets[at + 1]].tobytes()
        name = toc.name_pool[toc.name_offsets[row] : toc.name_offsets[row + 1]].tobytes()
        return b"/".join((b"", *filter(None, (directory, name)))).decode(errors="replace")
