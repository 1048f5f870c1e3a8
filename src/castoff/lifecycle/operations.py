"""Operations that run to their end even where whoever asked has gone: a client that hangs up must not leave half of one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["Operations"]

T = TypeVar("T")


class Operations:
    """Those that are under way."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._keyed: dict[str, asyncio.Task[Any]] = {}

    async def whole(self, work: Coroutine[Any, Any, T], *, key: str = "") -> T:
        """Does ``work`` to its end, also where whoever waits for it is cancelled.

        Args:
            work: What to do.
            key: What is asked for again by its key while it is under way is not begun again: whoever asks has the first one's
                outcome. Empty: it has none.
        """
        task = self._keyed.get(key)
        if task is not None:
            work.close()
            outcome: T = await asyncio.shield(task)
            return outcome
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if key:
            self._keyed[key] = task
            task.add_done_callback(lambda _: self._keyed.pop(key, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Ends them: nobody was told that they are done, and what they have written down is the next agent's."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
