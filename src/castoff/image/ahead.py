"""Reads in a thread, a few MiB ahead of the task that takes the pieces."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor

__all__ = ["PIECE", "read_ahead", "settle"]

PIECE = 1 << 20
"""Bytes: the largest piece of a blob that a source hands on."""

_DEPTH = 4  # batches; on two busy cores each hop waits its turn, and one batch ahead leaves the network idle meanwhile


async def read_ahead(
    read: Callable[[], list[bytes]],
    *,
    stop: Callable[[], None] = lambda: None,
    executor: Executor | None = None,
) -> AsyncGenerator[bytes, None]:
    """Yields the pieces that ``read`` returns, call after call, until it returns none.

    A batch should be a MiB where the bytes are there: a few are held for a consumer that is slower than the source. A
    thread is held only while there is something to read for it.

    Args:
        read: The next batch; blocking; called in a thread, never twice at a time; what it raises is raised in its turn.
        stop: Makes a running ``read`` return soon; called when the consumer leaves early.
        executor: Where ``read`` runs; the loop's own by default.
    """
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    batches: deque[list[bytes] | BaseException] = deque()
    wanted = True

    def pump() -> None:
        more = True
        while more and wanted and len(batches) < _DEPTH:
            batch = _attempt(read)
            batches.append(batch)
            more = not _is_last(batch)
            loop.call_soon_threadsafe(ready.set)

    def start() -> asyncio.Future[None]:
        future = loop.run_in_executor(executor, pump)
        future.add_done_callback(lambda _: ready.set())
        return future

    running = start()
    try:
        while True:
            if running.done() and len(batches) <= _DEPTH // 2 and not (batches and _is_last(batches[-1])):
                running = start()
            if not batches:
                ready.clear()
                await ready.wait()
                continue
            batch = batches.popleft()
            if isinstance(batch, BaseException):
                raise batch
            if not batch:
                return
            for piece in batch:
                yield piece
    except (GeneratorExit, asyncio.CancelledError):
        stop()
        raise
    finally:
        # The thread must be out of its file before anyone closes it: the number may be another file's next.
        wanted = False
        await settle(running)


def _attempt(read: Callable[[], list[bytes]]) -> list[bytes] | BaseException:
    try:
        return read()
    except BaseException as error:
        return error  # raised by the consumer, after what came before it


def _is_last(batch: list[bytes] | BaseException) -> bool:
    return not batch or isinstance(batch, BaseException)


async def settle(future: asyncio.Future[None] | asyncio.Future[object]) -> None:
    """Waits until ``future`` is done, whatever comes of it, and however often the waiting task is cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
