"""The layout of a segment, and the buffers in which it grows.

Files lie in tar order, each padded with zeros to a block; one of 1 MiB or more starts on a chunk boundary, and
the gap before it is zeros too, as long as all gaps together stay within a bound. So the segment is a function of the
uncompressed tar alone.
"""

from __future__ import annotations

from castoff.layers.blocks import Blocks
from castoff.layers.pipeline import Buffer, Channel, Pool
from castoff.layers.sparse import Regions
from castoff.layers.toc import ALIGNED, BLOCK, CHUNK, GAPS

__all__ = ["STAGING", "Segment"]

STAGING = 4 * CHUNK
"""Bytes of a staging buffer: what is hashed and written at once."""
_ZEROS = memoryview(bytes(CHUNK))

Extents = list[tuple[int, int, int]]


class Segment:
    """Assembles the segment in buffers from ``pool`` and passes each on through ``channel`` when it is full."""

    def __init__(self, channel: Channel[Buffer], pool: Pool) -> None:
        self._channel = channel
        self._pool = pool
        self._gaps = 0
        self._buffer: Buffer | None = None
        self._view = memoryview(b"")
        self._fill = STAGING
        self._base = -STAGING

    @property
    def size(self) -> int:
        """Bytes of the segment so far."""
        return self._base + self._fill

    def file(self, blocks: Blocks, size: int) -> int:
        """Takes ``size`` (not 0) bytes of a file's data; returns the segment's block where they begin."""
        if size > ALIGNED - BLOCK:
            self._align()
        fill = self._fill
        if fill == STAGING:
            self._turn()
            fill = 0
        start = (self._base + fill) // BLOCK
        data = blocks.take(size)
        count = len(data)
        end = fill + count
        if count == size and end <= STAGING:
            self._view[fill:end] = data
            self._fill = end
        else:
            self._put(data)
            self._copy(blocks, size - count)
        if size % BLOCK:
            self._pad()
        return start

    def sparse(self, blocks: Blocks, regions: Regions) -> Extents:
        """Takes the data of a sparse file; returns its extents: first block in the file, in the segment, count."""
        extents: Extents = []
        end = -1
        """The file's block after those that are in the segment."""
        if sum(-(-(at + count) // BLOCK) - at // BLOCK for at, count in regions) >= ALIGNED // BLOCK:
            self._align()
        filled = 0
        """Bytes of the file's block ``end - 1`` that are there."""
        for at, count in regions:
            first, last = at // BLOCK, -(-(at + count) // BLOCK)
            if first == end - 1:  # the region begins in the block where the one before ended
                self._zeros(at % BLOCK - filled)
            else:
                self._pad()
                if self._fill == STAGING:
                    self._turn()
                if first == end:
                    self._zeros(at % BLOCK)
                else:
                    extents.append((first, self.size // BLOCK, 0))
                    self._zeros(at % BLOCK)
            logical, segment, _ = extents[-1]
            extents[-1] = (logical, segment, last - logical)
            self._copy(blocks, count)
            end, filled = last, (at + count) % BLOCK or BLOCK
        self._pad()
        return extents

    def finish(self) -> None:
        """Passes on what is left."""
        if self._buffer is not None and self._fill:
            self._pass_on()
        self._base += self._fill
        self._fill = 0

    def _copy(self, blocks: Blocks, size: int) -> None:
        while size:
            data = blocks.take(size)
            self._put(data)
            size -= len(data)

    def _put(self, data: memoryview) -> None:
        while data:
            if self._fill == STAGING:
                self._turn()
            fill = self._fill
            count = min(len(data), STAGING - fill)
            self._view[fill : fill + count] = data[:count]
            self._fill = fill + count
            data = data[count:]

    def _zeros(self, count: int) -> None:
        while count > 0:
            part = min(count, CHUNK)
            self._put(_ZEROS[:part])
            count -= part

    def _pad(self) -> None:
        rest = -self._fill % BLOCK
        if rest:
            fill = self._fill
            self._view[fill : fill + rest] = _ZEROS[:rest]
            self._fill = fill + rest

    def _align(self) -> None:
        rest = -self._fill % CHUNK
        if rest and self._gaps + rest <= GAPS:
            fill = self._fill
            self._gaps += rest
            self._view[fill : fill + rest] = _ZEROS[:rest]
            self._fill = fill + rest

    def _turn(self) -> None:
        """Passes on the full buffer and takes an empty one."""
        if self._buffer is not None:
            self._pass_on()
        self._base += self._fill
        self._fill = 0
        self._buffer = self._pool.take()
        self._view = self._buffer.view

    def _pass_on(self) -> None:
        assert self._buffer is not None
        self._buffer.offset = self._base
        self._buffer.filled = self._fill
        self._channel.put(self._buffer)
        self._buffer = None
