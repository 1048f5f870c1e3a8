"""Reads in a thread, one batch ahead of the task that takes the pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor

__all__ = ["PIECE", "read_ahead", "settle"]

PIECE = 1 << 20
"""Bytes: the largest piece of a blob that a source hands on."""


async def read_ahead(
    read: Callable[[], list[bytes]],
    *,
    stop: Callable[[], None] = lambda: None,
    executor: Executor | None = None,
) -> AsyncGenerator[bytes, None]:
    """Yields the pieces that ``read`` returns, call after call, until it returns none.

    A hop to a thread costs some 50 to 100 µs, so a batch should be a MiB or more where the bytes are there.

    Args:
        read: The next batch; blocking; called in a thread, never twice at a time.
        stop: Makes a running ``read`` return soon; called when the reader leaves early.
        executor: Where ``read`` runs; the loop's own by default.
    """
    loop = asyncio.get_running_loop()
    running = loop.run_in_executor(executor, read)
    try:
        while batch := await asyncio.shield(running):
            running = loop.run_in_executor(executor, read)
            for piece in batch:
                yield piece
    finally:
        # The thread must be out of its file before anyone closes it: the number may be another file's next.
        if not running.done():
            stop()
            await settle(running)
        if not running.cancelled():
            running.exception()  # taken: it concerns nobody who left early


async def settle(future: asyncio.Future[list[bytes]] | asyncio.Future[object]) -> None:
    """Waits until ``future`` is done, whatever comes of it, and however often the waiting task is cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
