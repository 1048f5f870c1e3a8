"""Runs a command's coroutine: signals cancel it, so that whatever it began is undone, and never look like a failure."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from castoff.cli.exits import Signalled, signalled

__all__ = ["complete", "signals_to"]

T = TypeVar("T")

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 3

_listener: ContextVar[list[Callable[[int], None]]] = ContextVar("castoff_signal_listener")
"""The innermost receiver of the ending signals is the last."""


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

        listeners: list[Callable[[int], None]] = [end]
        _listener.set(listeners)

        def dispatch(number: int) -> None:
            listeners[-1](number)

        for number in _ENDING:
            loop.add_signal_handler(number, dispatch, number)
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


@contextlib.contextmanager
def signals_to(receiver: Callable[[int], None], *others: signal.Signals) -> Iterator[None]:
    """Gives the ending signals, and ``others``, to ``receiver`` for the block, inside of :func:`complete`."""
    loop, listeners = asyncio.get_running_loop(), _listener.get()
    for number in others:
        loop.add_signal_handler(number, receiver, number)
    listeners.append(receiver)
    try:
        yield
    finally:
        listeners.remove(receiver)
        for number in others:
            loop.remove_signal_handler(number)
