"""Several jobs at a time whose results come out of one generator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

__all__ = ["Emit", "Job", "merged"]

T = TypeVar("T")
Emit: TypeAlias = Callable[[T], Awaitable[None]]
"""Hands a result on; waits while the consumer is behind."""
Job: TypeAlias = Callable[[Emit[T]], Awaitable[None]]

_DEPTH = 8  # results that wait for the consumer


@dataclass(frozen=True, slots=True)
class _End:
    failure: BaseException | None = None


async def merged(jobs: Sequence[Job[T]], *, at_once: int) -> AsyncGenerator[T, None]:
    """Runs ``jobs``, ``at_once`` at a time in their order, and yields what they emit; raises the first failure.

    Jobs are cancelled, and have ended, before it raises, or is left early.
    """
    results: asyncio.Queue[T | _End] = asyncio.Queue(_DEPTH)
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await job(results.put)

    async def oversee() -> None:
        done, pending = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        failure = next((error for task in done if (error := task.exception()) is not None), None)
        await _end(pending)
        await results.put(_End(failure))

    if not jobs:
        return
    workers = [asyncio.create_task(work()) for _ in range(min(at_once, len(jobs)))]
    overseer = asyncio.create_task(oversee())
    try:
        while not isinstance(result := await results.get(), _End):
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
