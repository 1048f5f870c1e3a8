"""Reading ahead in a thread: order, ends, errors and early leaves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import aclosing

import pytest

from castoff.image.ahead import read_ahead


def counting(total: int, *, error: Exception | None = None, delay: float = 0.0) -> Callable[[], list[bytes]]:
    """Batches of two pieces, numbered; then the end or an error."""
    numbers = iter(range(total))

    def read() -> list[bytes]:
        time.sleep(delay)
        batch = [b"%d" % number for _, number in zip(range(2), numbers, strict=False)]
        if not batch and error is not None:
            raise error
        return batch

    return read


@pytest.mark.parametrize("total", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("pause", [0.0, 0.002])
async def test_all_pieces_come_in_order(total: int, pause: float) -> None:
    """To a consumer that is faster and to one that is slower than the source."""
    found = []
    async for piece in read_ahead(counting(total)):
        found.append(int(piece))
        await asyncio.sleep(pause)
    assert found == list(range(total))


async def test_an_error_comes_in_its_turn() -> None:
    """After what was read before it, once."""
    found = []
    with pytest.raises(ValueError, match="broken"):
        async for piece in read_ahead(counting(20, error=ValueError("broken"))):
            await asyncio.sleep(0)
            found.append(int(piece))
    assert found == list(range(20))


async def test_what_is_read_ahead_is_bounded() -> None:
    """A consumer that waits holds a few batches and no thread."""
    calls = 0

    def read() -> list[bytes]:
        nonlocal calls
        calls += 1
        return [b"x"]

    async with aclosing(read_ahead(read)) as pieces:
        await anext(pieces)
        await asyncio.sleep(0.1)
        assert calls <= 10


async def test_leaving_early_waits_for_the_reader_that_was_stopped() -> None:
    """Nobody reads a file that its owner has closed."""
    stopped, reading = threading.Event(), threading.Event()

    def read() -> list[bytes]:
        if reading.is_set():
            assert stopped.wait(5)
            return []
        reading.set()
        return [b"x"]

    async with aclosing(read_ahead(read, stop=stopped.set)) as pieces:
        assert await anext(pieces) == b"x"
    assert stopped.is_set()


async def test_cancellation_stops_the_reader() -> None:
    """At once, and the task ends as cancelled."""
    stopped = threading.Event()

    def read() -> list[bytes]:
        assert stopped.wait(5)
        raise OSError("shut")

    async def consume() -> None:
        async with aclosing(read_ahead(read, stop=stopped.set)) as pieces:
            await anext(pieces)

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_end_that_was_reached_is_not_stopped() -> None:
    """A connection that was read to its end can be used again."""
    stops = []
    for _ in range(50):
        async for _piece in read_ahead(counting(3), stop=lambda: stops.append(1)):
            pass
    assert stops == []
