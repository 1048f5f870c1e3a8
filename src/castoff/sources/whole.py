"""A pack that is read from its start to its end, once: for a server, or what stands before it, that ignores Range.

Its bytes go into a file without a name. Whoever wants a range waits until it is there; later ones have it at once.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

from castoff.errors import Unavailable
from castoff.image.connect import Broken
from castoff.image.retry import Backoff
from castoff.image.transport import Response
from castoff.sources.source import ByteRange
from castoff.store.space import no_space_as

__all__ = ["WholePack"]


class WholePack:
    """One pack.

    Args:
        what: Names it in errors.
        begin: Opens it at its start.
        backoff: The tries of one reading.
        directory: Where its file goes.
    """

    def __init__(
        self, what: str, begin: Callable[[Backoff], Awaitable[Response]], backoff: Callable[[], Backoff], directory: Path
    ) -> None:
        self._what = what
        self._begin = begin
        self._backoff = backoff
        self._directory = directory
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed by close()
        self._filled = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._filling: asyncio.Task[None] | None = None

    async def read(self, one: ByteRange) -> bytes:
        """The range's bytes, when they are here.

        Raises:
            NotFound, Unavailable, Unauthorized, Invalid, NoSpace: They do not come.
        """
        if self._filled < one.end:
            if self._filling is None or self._filling.done():
                self._filling = asyncio.create_task(self._fill())
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((one.end, waiter))
            await waiter
        return await asyncio.to_thread(os.pread, self._file.fileno(), len(one), one.start)

    async def close(self) -> None:
        """Ends what is under way and gives the file back. Idempotent."""
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
        self._file.close()

    async def _fill(self) -> None:
        """Reads all of it, and tells those who wait; a failure is told to them, and the next reader begins anew."""
        failure: Exception = Unavailable(f"{self._what} ended before what was wanted of it")
        backoff = self._backoff()
        try:
            with no_space_as(self._directory):
                while True:
                    try:
                        await self._stream(backoff)
                        break
                    except Broken as error:
                        await backoff.wait(error)
        except Exception as error:
            failure = error
        finally:
            self._tell(failure)

    async def _stream(self, backoff: Backoff) -> None:
        """One answer: the bytes that are here already are passed over."""
        at = 0
        async with await self._begin(backoff) as response, aclosing(response.pieces()) as pieces:
            async for piece in pieces:
                fresh = memoryview(piece)[max(self._filled - at, 0) :]
                at += len(piece)
                if fresh:
                    await asyncio.to_thread(_write, self._file.fileno(), fresh, self._filled)
                    self._filled = at
                    backoff.progressed()
                    self._tell(None)

    def _tell(self, failure: Exception | None) -> None:
        """Wakes those who have what they want; with a failure, all."""
        still = []
        for end, waiter in self._waiting:
            if waiter.done():
                continue  # cancelled
            if end <= self._filled:
                waiter.set_result(None)
            elif failure is not None:
                waiter.set_exception(failure)
            else:
                still.append((end, waiter))
        self._waiting = still


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
