"""Who converts a layer: asked before this host does. In a fleet another may be at it already, or have it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

from castoff.image.image import Layer
from castoff.store.layers import StoredLayer

if TYPE_CHECKING:
    from castoff.rootfs.context import ProviderContext

__all__ = ["Alone", "Builds"]


class Builds(Protocol):
    """Hands out conversions."""

    def turn(self, layer: Layer, context: ProviderContext) -> AbstractAsyncContextManager[StoredLayer | None]:
        """The layer, complete and pinned, if another host gave it; None: it is converted within the block.

        Args:
            layer: Not here yet.
            context: The store, and how other hosts are reached.

        Raises:
            Invalid: Another host found that it cannot be converted, and that is an answer to whoever asks.
        """


class Alone:
    """A host that knows of no other."""

    @contextlib.asynccontextmanager
    async def turn(self, layer: Layer, context: ProviderContext) -> AsyncIterator[StoredLayer | None]:
        """It is always converted here."""
        yield None
