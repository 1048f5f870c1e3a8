"""An image source in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from castoff.errors import CastoffError, NotFound
from castoff.image.digest import Digest
from castoff.image.image import Image, Layer, Platform
from castoff.image.platforms import fitness
from castoff.image.resolve import wrong_platform

__all__ = ["FakeImageSource"]


class FakeImageSource:
    """Gives one image and the blobs that it was made with.

    Args:
        image: What ``resolve`` answers.
        blobs: The layers' blobs by digest.
        piece: Bytes of a piece.
        breaks_at: Raised in place of a blob's byte at that offset, and of all that follow.
    """

    def __init__(
        self,
        image: Image,
        blobs: Mapping[Digest, bytes],
        *,
        piece: int = 1 << 20,
        breaks_at: tuple[int, CastoffError] | None = None,
    ) -> None:
        self.image = image
        self.opened: list[Layer] = []
        """Every layer whose blob was opened, in that order."""
        self.closed = False
        self._blobs = dict(blobs)
        self._piece = piece
        self._breaks_at = breaks_at

    async def resolve(self, platform: Platform) -> Image:
        if fitness(self.image.platform, platform) is None:
            raise wrong_platform(self.image.reference, platform, [self.image.platform])
        return self.image

    @asynccontextmanager
    async def open_blob(self, layer: Layer) -> AsyncIterator[AsyncIterator[bytes]]:
        self.opened.append(layer)
        if layer.digest not in self._blobs:
            raise NotFound(f"layer {layer.digest} of {self.image.reference} is missing")
        yield self._pieces(self._blobs[layer.digest])

    async def _pieces(self, data: bytes) -> AsyncIterator[bytes]:
        end = len(data) if self._breaks_at is None else min(len(data), self._breaks_at[0])
        for start in range(0, end, self._piece):
            yield data[start : min(end, start + self._piece)]
        if self._breaks_at is not None:
            raise self._breaks_at[1]

    async def close(self) -> None:
        self.closed = True
