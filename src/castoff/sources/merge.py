"""Several generators at a time, whose results come out of one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["merged"]

T = TypeVar("T")

_DEPTH = 8  # results that wait for the consumer


@dataclass(frozen=True, slots=True)
class _End:
    failure: BaseException | None = None


async def merged(generators: Sequence[AsyncGenerator[T, None]], *, at_once: int) -> AsyncGenerator[T, None]:
    """Runs ``generators``, ``at_once`` at a time in their order, and yields what they yield; raises the first failure.

    They are closed before it raises, or when it is left early.
    """
    if len(generators) == 1:  # most reads: a chunk that somebody waits for; tasks and queues would be half of its cost
        async with aclosing(generators[0]) as results:
            async for result in results:
                yield result
    elif generators:
        async with aclosing(_merged(generators, at_once)) as results:
            async for result in results:
                yield result


async def _merged(generators: Sequence[AsyncGenerator[T, None]], at_once: int) -> AsyncGenerator[T, None]:
    queue: asyncio.Queue[T | _End] = asyncio.Queue(_DEPTH)
    waiting = iter(generators)

    async def work() -> None:
        for generator in waiting:
            async with aclosing(generator) as results:
                async for result in results:
                    await queue.put(result)

    async def oversee() -> None:
        done, pending = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        failure = next((error for task in done if (error := task.exception()) is not None), None)
        await _end(pending)
        await queue.put(_End(failure))

    workers = [asyncio.create_task(work()) for _ in range(min(at_once, len(generators)))]
    overseer = asyncio.create_task(oversee())
    try:
        while not isinstance(result := await queue.get(), _End):
            yield result
        if result.failure is not None:
            raise result.failure
    finally:
        await _end([overseer, *workers])


async def _end(tasks: set[asyncio.Task[None]] | list[asyncio.Task[None]]) -> None:
    """Cancels tasks and waits for their ends, whatever these are."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
