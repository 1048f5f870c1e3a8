"""A chunk that is here goes where it is wanted: into its layer's segment, then into every rootfs that lacks it.

A full disk is waited out: what the store can spare is removed, and the operator is told; nothing is given up meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from castoff.hydrate.segments import Segment
from castoff.hydrate.served import Served

__all__ = ["Filler"]

_THREADS = 4
_RETRY = 1.0
_FULL = {errno.ENOSPC, errno.EDQUOT}

Takers = list[tuple[Served, int]]


class Filler:
    """Fills, in threads of its own, which never decompress.

    Args:
        filled: Called in the event loop for each row that became present.
        make_room: Removes what the store can spare.
    """

    def __init__(self, filled: Callable[[Served, int], None], make_room: Callable[[], Awaitable[None]]) -> None:
        self._filled = filled
        self._make_room = make_room
        self._pool = ThreadPoolExecutor(_THREADS, "fill")

    async def fill(self, segment: Segment, number: int, data: bytes | None) -> None:
        """Brings a chunk to all who lack it.

        Args:
            segment: Its layer's.
            number: Which.
            data: Its bytes, verified; None where the segment has it.

        Raises:
            OSError: The disk failed, not for want of room; who lacks it lacks it still.
        """
        loop = asyncio.get_running_loop()
        while True:
            takers = [
                (served, row)
                for served, rows in segment.takers.items()
                if (row := rows.get(number)) is not None and served.begin(row)
            ]
            if data is None and not takers:
                return
            work = loop.run_in_executor(self._pool, _place, segment, number, data, takers)
            segment.filling += 1
            work.add_done_callback(partial(self._placed, segment, takers))
            try:
                await asyncio.shield(work)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                await self._wait_for_room(takers or [(served, 0) for served in segment.takers], str(error))
            else:
                return

    def _placed(self, segment: Segment, takers: Takers, work: asyncio.Future[None]) -> None:
        """In any case, and whoever waits or was cancelled: the thread has done what it could."""
        segment.filling -= 1
        for served, row in takers:
            if served.end(row):
                self._filled(served, row)
        if not work.cancelled():
            work.exception()  # seen; whoever waits for it is told

    async def _wait_for_room(self, takers: Takers, why: str) -> None:
        for served, _ in takers:
            served.full(why)
        await self._make_room()
        await asyncio.sleep(_RETRY)

    def close(self) -> None:
        """Waits for what is under way."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _place(segment: Segment, number: int, data: bytes | None, takers: Takers) -> None:
    """The order of DESIGN.md: segment, clones, present."""
    failure: OSError | None = None
    try:
        if data is not None and not segment.has(number):
            segment.write(number, data)
    except BaseException:
        for served, row in takers:
            served.states.abandon(row)
        raise
    for served, row in takers:
        try:
            served.fill(row)
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure
