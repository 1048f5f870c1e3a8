"""The layers' segments as the hydrator fills them: written once for all machines, their ``have`` bits in batches.

A chunk counts as here, for this process, as soon as it is written: clones share its extents from then on. Its bit follows
when the segment was flushed (castoff.store.incoming).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from castoff.errors import NotFound
from castoff.image.digest import Digest
from castoff.layers.index import LayerIndex, read_index
from castoff.layers.toc import BLOCK, CHUNK
from castoff.store.incoming import IncomingSegment
from castoff.store.store import Store

if TYPE_CHECKING:
    from castoff.hydrate.origin import Origin
    from castoff.hydrate.served import Served

__all__ = ["Segment"]


class Segment:
    """One layer's segment, open. It is pinned against pruning until it is closed.

    Attributes:
        index: The layer's.
        takers: Who wants chunks of it, and which row of theirs each is.
        coming: Chunks that are being fetched or are queued to be.
        filling: Threads that write it or share it now.
        origins: Where they can be fetched from.
    """

    def __init__(self, store: Store, diff_id: Digest) -> None:
        """Opens it; blocks.

        Raises:
            NotFound, Invalid: The layer is not in the store, or is broken.
        """
        layer = store.layer(diff_id)
        if layer is None:
            raise NotFound(f"layer {diff_id} is not in the store", hint="it was pruned meanwhile; create the machine again")
        self._layer = layer
        self.diff_id = diff_id
        self.index: LayerIndex = read_index(layer.index)
        self._goes_on = _goes_on(self.index)
        self._file = IncomingSegment(layer)
        self.takers: dict[Served, dict[int, int]] = {}
        self.coming: set[int] = set()
        self.filling = 0
        self.origins: list[Origin] = []

    @property
    def descriptor(self) -> int:
        """The segment's file."""
        return self._file.descriptor

    def has(self, number: int) -> bool:
        """Whether the chunk is here."""
        return self._file.has(number)

    @property
    def unflushed(self) -> int:
        """Chunks that are here without a bit that says so."""
        return self._file.unflushed

    @property
    def is_unused(self) -> bool:
        """Whether nobody needs it, now or soon."""
        return not (self.takers or self.coming or self.filling)

    def run_end(self, number: int) -> int:
        """The chunk after the last one that files reach from this one without a gap: ``number + 1`` where none goes on."""
        return self._goes_on.find(0, number) + 1

    def length(self, number: int) -> int:
        """Bytes of a chunk."""
        return min(CHUNK, self.index.segment_size - number * CHUNK)

    def write(self, number: int, data: bytes) -> None:
        """Writes a verified chunk; blocks.

        Raises:
            OSError: The disk failed, or is full; nothing is lost but the chunk.
        """
        self._file.write(number, data)

    def flush(self) -> None:
        """Has what was written survive the host, then says so in ``have``; blocks.

        Raises:
            OSError: The disk failed: the bits stay unset.
        """
        self._file.flush()

    def end(self) -> None:
        """Finishes it and closes it; blocks."""
        try:
            self._file.finish()
        finally:
            self.close()

    def close(self) -> None:
        """Closes it."""
        self._file.close()
        self._layer.pin.close()


def _goes_on(index: LayerIndex) -> bytes:
    """[chunks] 1 for each chunk from which a file's extent goes on into the next one. The last is 0."""
    first = index.toc.extent_segment.astype(np.int64) * BLOCK // CHUNK
    last = ((index.toc.extent_segment.astype(np.int64) + index.toc.extent_blocks) * BLOCK - 1) // CHUNK
    change = np.zeros(-(-index.segment_size // CHUNK) + 2, np.int64)
    np.add.at(change, first, 1)
    np.add.at(change, last, -1)
    return (np.cumsum(change) > 0).astype(np.uint8).tobytes()
