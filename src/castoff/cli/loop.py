"""Runs a command's coroutine: signals cancel it, so that whatever it began is undone, and never look like a failure."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from castoff.cli.exits import Signalled, signalled

__all__ = ["complete"]

T = TypeVar("T")

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 3


def complete(work: Coroutine[Any, Any, T]) -> T:
    """Runs ``work`` to its end.

    SIGINT, SIGTERM and SIGHUP cancel it; the third one leaves at once, without undoing anything: what is left then is
    what a crash leaves, and the next start cleans it.

    Raises:
        Signalled: A signal came.
    """
    received: list[int] = []

    async def guarded() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def end(number: int) -> None:
            received.append(number)
            if len(received) >= _PATIENCE:
                os._exit(signalled(number))
            task.cancel()

        for number in _ENDING:
            loop.add_signal_handler(number, end, number)
        try:
            return await work
        except asyncio.CancelledError:
            if received:
                raise Signalled(received[0]) from None
            raise
        finally:
            for number in _ENDING:
                loop.remove_signal_handler(number)

    with asyncio.Runner() as runner:
        return runner.run(guarded())
