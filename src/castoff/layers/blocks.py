"""The uncompressed tar stream, as the parser sees it: header blocks, and runs of data that lie in the pipeline's buffers."""

from __future__ import annotations

from castoff.errors import Invalid
from castoff.layers.pipeline import Buffer, Channel, Pool

__all__ = ["SIZE", "Blocks"]

SIZE = 512
"""Bytes of a tar block. Buffers are filled to a multiple of it, so no header lies in two buffers."""


class Blocks:
    """A cursor over the buffers that come through ``channel``; each goes back to ``pool`` when it is used up."""

    __slots__ = ("_buffer", "_channel", "_pool", "_start", "at", "end", "view")

    def __init__(self, channel: Channel[Buffer], pool: Pool) -> None:
        self._channel = channel
        self._pool = pool
        self._buffer: Buffer | None = None
        self._start = 0
        self.view = memoryview(b"")
        self.at = 0
        self.end = 0

    @property
    def position(self) -> int:
        """Bytes of the stream before the cursor."""
        return self._start + self.at

    def _next(self) -> bool:
        self._start += self.end
        self.at = self.end = 0
        if self._buffer is not None:
            self._pool.give(self._buffer)
        self._buffer = self._channel.get()
        if self._buffer is None:
            self.view = memoryview(b"")
            return False
        self.view = self._buffer.view
        self.end = self._buffer.filled
        return True

    def header(self) -> bytes:
        """The next block; empty at the stream's end.

        Raises:
            Invalid: The stream ends inside the block.
        """
        at = self.at
        if at == self.end:
            if not self._next():
                return b""
            at = 0
        if self.end - at < SIZE:
            raise Invalid(f"the tar ends inside of the header at byte {self.position}")
        self.at = at + SIZE
        return self.view[at : at + SIZE].tobytes()

    def peek(self) -> bytes:
        """The next block, without moving past it; fewer bytes at the stream's end."""
        if self.at == self.end and not self._next():
            return b""
        return self.view[self.at : min(self.at + SIZE, self.end)].tobytes()

    def take(self, count: int) -> memoryview:
        """At most ``count`` of the next bytes, valid until the next call.

        Raises:
            Invalid: The stream has ended.
        """
        at = self.at
        if at == self.end:
            if not self._next():
                raise Invalid(f"the tar ends inside of an entry's data, {count} bytes short")
            at = 0
        self.at = end = min(at + count, self.end)
        return self.view[at:end]

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes, copied: for headers' own data, after a check of ``count``."""
        data = self.take(count).tobytes()
        while len(data) < count:
            data += self.take(count - len(data))
        return data

    def skip(self, count: int) -> None:
        """Moves past ``count`` bytes."""
        while count:
            count -= len(self.take(count))

    def align(self) -> None:
        """Moves to the next block."""
        self.at = min(-(-self.at // SIZE) * SIZE, self.end)

    def drain(self) -> None:
        """Moves to the stream's end: what follows the archive's end is hashed, not read."""
        while self._next():
            pass
