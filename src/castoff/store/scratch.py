"""A directory of the store for files that only this process needs, gone after the block; after a crash the next sweep has it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from castoff.store.builds import uninterrupted
from castoff.store.durable import remove
from castoff.store.locks import lock

__all__ = ["scratch"]


@asynccontextmanager
async def scratch(root: Path) -> AsyncIterator[Path]:
    """An empty directory under ``root``, the store's, for the block, named so that the store's sweep knows its lock."""
    name = f"scratch-{os.urandom(8).hex()}"
    async with lock(root / "locks" / name):
        directory = root / "tmp" / f"{name}.{os.urandom(4).hex()}"
        directory.mkdir(mode=0o700)
        try:
            yield directory
        finally:
            await uninterrupted(remove, directory)
