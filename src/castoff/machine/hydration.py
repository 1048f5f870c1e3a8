"""A machine that was started before its data was here: how that comes in, as its timeline shows it; and when it is ready.

The hydrator is another process, and the states of the clone's chunks are memory that it shares (castoff.hydrate.state), so
looking costs nobody anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

from castoff.errors import CastoffError
from castoff.hydrate.record import PRESENT, STATE
from castoff.store.have import CHUNK
from castoff.timeline import Step, step

__all__ = ["Hydration"]

_OFTEN, _SELDOM = 0.05, 0.25
"""Seconds between looks while the machine boots, and later."""
_COUNTS = ("fetched", "misses")
_PATIENCE = 2.0
"""Seconds in which nothing came, after which it is asked why."""


class Hydration:
    """Follows one machine's data from its attachment on, until it is all here or the machine goes.

    Its steps have totals only when they end: nobody waits for all of it, so it is no progress of the create.

    Args:
        state: castoff's state directory.
        directory: The machine's.
        notice: Told a line when what the machine waits for does not come, and when it comes again.
    """

    def __init__(self, state: Path, directory: Path, notice: Callable[[str], None] = lambda line: None) -> None:
        self._state = state
        self._notice = notice
        self._failing = ""
        self._came = time.monotonic()
        self._machine = directory.name
        self._file = directory / STATE
        self._is_ready = self._closed = False
        self._changed = asyncio.Event()
        self._following = asyncio.create_task(self._follow())
        self._telling: asyncio.Task[None] | None = None

    def ready(self) -> None:
        """The machine does what it was started for. Waits for nothing; the first call counts."""
        if not self._is_ready:
            self._is_ready = True
            self._changed.set()
            self._telling = asyncio.create_task(self._tell())

    async def close(self) -> None:
        """Looks no longer; what was told has been heard. Idempotent."""
        self._closed = True
        self._changed.set()
        await self._following
        if self._telling is not None:
            await self._telling

    async def _tell(self) -> None:
        from castoff.hydrate.client import ready

        with contextlib.suppress(CastoffError), step("hydrate.ready", machine=self._machine):
            # What fails is in the timeline: a machine that runs is not to end because its profile is not recorded.
            await ready(self._state, self._machine)

    async def _follow(self) -> None:
        states = self._open()
        if states is None:
            return
        with states, step("hydrate.fill", machine=self._machine) as filling:
            filling.done = _present(states)
            with step("hydrate.boot") as boot:
                while not (self._is_ready or self._closed):
                    await self._look(states, filling, boot, _OFTEN)
                boot.total = boot.done
                boot.attributes |= {name: value for name, value in (await self._progress()).items() if name in _COUNTS}
            self._changed.clear()
            whole = len(states) * CHUNK
            if not (self._closed or _present(states) == whole):
                with step("hydrate.rest") as rest:
                    while not (self._closed or filling.done == whole):
                        await self._look(states, filling, rest, _SELDOM)
                    rest.total = rest.done
            filling.attributes |= {"chunks": len(states), "here": _present(states) // CHUNK}
            filling.total = filling.done = _present(states)

    async def _look(self, states: mmap.mmap, filling: Step, part: Step, seconds: float) -> None:
        """Waits a moment, and counts what came in meanwhile."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        before, filling.done = filling.done, _present(states)
        part.done += filling.done - before
        now = time.monotonic()
        if filling.done > before:
            self._came = now
            self._tell_trouble("")
        elif now - self._came > _PATIENCE and not self._closed and filling.done < len(states) * CHUNK:
            self._came = now
            progress = await self._progress()
            if not progress:
                await self._wake()
            self._tell_trouble(str(progress["failing"]) if progress.get("waiting") else "")

    def _tell_trouble(self, failing: str) -> None:
        """Once a change, not once a look."""
        if bool(failing) != bool(self._failing):
            waits = f"machine {self._machine} waits for data: {failing}"
            self._notice(waits if failing else f"machine {self._machine} goes on: its data comes in again")
        self._failing = failing

    async def _progress(self) -> dict[str, object]:
        """What the hydrator says of it; nothing where it does not answer: what that means for the machine, others tell."""
        from castoff.hydrate.client import progress

        try:
            found = await progress(self._state, self._machine)
        except CastoffError:
            return {}
        return {} if found is None else {name: getattr(found, name) for name in ("fetched", "misses", "waiting", "failing")}

    async def _wake(self) -> None:
        """Hydrator and keeper were both killed, it seems: the next hydrator takes the machine's descriptors from the VMM."""
        from castoff.hydrate.client import wake

        with contextlib.suppress(CastoffError):  # tried again at the next look, while the machine waits
            await wake(self._state)

    def _open(self) -> mmap.mmap | None:
        """The states; None where they are gone: everything is here."""
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            size = os.fstat(descriptor).st_size
            return mmap.mmap(descriptor, size, prot=mmap.PROT_READ) if size else None
        finally:
            os.close(descriptor)


def _present(states: mmap.mmap) -> int:
    """Bytes that are here, within a chunk."""
    return states[:].count(PRESENT) * CHUNK
