"""The port through which images come in: registries, layouts on disk, archives.

Lifecycle: a source is opened for one reference (``castoff.image.open_source``), asked to ``resolve`` it once, then its
layers' blobs are opened, several at a time, and it is closed. A source checks digest and size of every manifest and
config; the bytes of a blob it hands on as they come, in order, each once, also after a broken transfer was resumed:
whoever reads a blob checks it (:class:`castoff.image.verify.Verifier`), off the event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from castoff.image.image import Image, Layer, Platform

__all__ = ["ImageSource"]


class ImageSource(Protocol):
    """Where one image comes from."""

    async def resolve(self, platform: Platform) -> Image:
        """Resolves the source's reference to the manifest for ``platform``.

        Raises:
            NotFound: No such image, tag or platform.
            Invalid: A manifest or config that is broken, hostile or of an unknown kind.
            Unavailable, Unauthorized: The registry did not answer, or refused.
        """
        ...

    def open_blob(self, layer: Layer) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Opens a layer's blob: an iterator of its bytes in pieces of at most 1 MiB, ``layer.size`` in all or an error."""
        ...

    async def close(self) -> None:
        """Closes connections and files; the source is not used after it."""
        ...
