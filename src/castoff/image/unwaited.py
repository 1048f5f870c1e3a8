"""Calls that cannot be stopped, in threads that nobody has to wait for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["unwaited"]

_T = TypeVar("_T")


async def unwaited(call: Callable[[], _T]) -> _T:
    """``call()`` in a daemon thread; a task that is cancelled leaves it behind.

    The event loop's own executor is waited for when the loop ends, after Ctrl-C too: no place for a name look-up that a
    silent server holds up, or for a write to a terminal that was stopped.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_T] = loop.create_future()

    def tell(failure: BaseException | None, result: _T | None) -> None:
        if answer.done():
            return
        if failure is not None:
            answer.set_exception(failure)
        else:
            answer.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        failure, result = None, None
        try:
            result = call()
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, failure, result)

    threading.Thread(target=work, name="castoff-unwaited", daemon=True).start()
    return await answer
