"""The hydrator: what it serves, from the first word of a create until every byte is here or the machine is gone.

attach   -> read the record, mark (front), map and state, segments, keep -> serve
complete -> flush, let go of the front, record says so, drop: root.ext4 is a plain file
detach   -> refuse who waits, let go, drop
resume   -> as attach, over the descriptors and the log that a predecessor left
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from castoff.errors import CastoffError, Conflict, Invalid, NotFound
from castoff.hydrate.boot_profiles import BootProfiles
from castoff.hydrate.eventlog import EventLog
from castoff.hydrate.fill import Filler
from castoff.hydrate.front import Descriptors, LazyFront
from castoff.hydrate.fronts import new_front, resumed_front
from castoff.hydrate.keeper_client import Keeper
from castoff.hydrate.library import Library
from castoff.hydrate.origin import ChunkReader
from castoff.hydrate.pressure import Pressure
from castoff.hydrate.record import LOG, MAP, STATE, LazyRecord, read_record, write_record
from castoff.hydrate.room import make_room
from castoff.hydrate.scheduler import Scheduler
from castoff.hydrate.served import Served
from castoff.store.store import Store

__all__ = ["Hydrator"]

_FLUSH_SHARED = 0.2
"""Seconds between two flushes where other hosts take part: they are given only what was flushed."""
_FLUSH = 1.0
"""Seconds between flushes of what came in: what a crash of the host costs to fetch again."""
_LOOK = 5.0
"""Seconds between looks at whether a machine's directory is still there."""


class Hydrator:
    """Serves any number of rootfs of one store.

    Args:
        store: Where layers are.
        keeper: Who holds descriptors; None: nobody (tests).
        open_reader: Reads a record's packs.
        report: Told, in one line, of what should not happen. From any thread.
        pressure: On this host's processors.
    """

    def __init__(
        self,
        store: Store,
        keeper: Keeper | None,
        open_reader: Callable[[LazyRecord], ChunkReader],
        report: Callable[[str], None],
        pressure: Pressure | None = None,
    ) -> None:
        self._store = store
        self._keeper = keeper
        self._report = report
        self._served: dict[str, Served] = {}
        self._attaching: set[str] = set()
        self._filler = Filler(self._filled, lambda: make_room(store))
        self._scheduler = Scheduler(self._filler, pressure)
        self.profiles = BootProfiles(store, self._scheduler)
        self._library = Library(store, open_reader, self._origin_changed)
        self._ending: dict[Served, asyncio.Task[None]] = {}
        self._chores = asyncio.create_task(self._do_chores())

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to serve."""
        return not (self._served or self._attaching or self._ending or self.profiles.busy)

    @staticmethod
    def record_whole(directory: Path, record: LazyRecord) -> None:
        """A rootfs is whole that nobody serves any more; blocks."""
        _record_completion(directory, record)

    def served(self, machine: str) -> Served | None:
        """What is served under a machine's id."""
        return self._served.get(machine)

    def prefetch(self, machine: str, rows: Iterable[int]) -> None:
        """Fetches rows that a machine is going to want, in this order."""
        served = self._served.get(machine)
        if served is not None:
            self._scheduler.prefetch(served, rows)

    async def attach(self, directory: Path) -> Descriptors:
        """Serves a directory's rootfs from now on; the descriptors stay ours. One that is served already goes on being so:
        whoever asked may have lost the answer.

        Raises:
            CastoffError: As castoff.hydrate.client.attach.
        """
        machine = directory.name
        served = self._served.get(machine)
        if served is not None and served.directory == directory:
            return served.front.descriptors
        if served is not None or machine in self._attaching:
            raise Conflict(f"machine {machine} is served already")
        self._attaching.add(machine)
        try:
            record = await asyncio.to_thread(read_record, directory)
            if record.complete:
                raise Invalid(f"the rootfs of {directory} is complete, and needs no serving")
            front = await asyncio.to_thread(new_front, directory, record, self._report)
            served = await self._take_up(directory, record, front, fresh=True)
        finally:
            self._attaching.discard(machine)
        return served.front.descriptors

    async def resume(self, directory: Path, descriptors: Descriptors, log: EventLog | None) -> None:
        """Goes on where a predecessor was killed.

        Raises:
            CastoffError: What it left is broken.
        """
        record = await asyncio.to_thread(read_record, directory)
        front = resumed_front(directory, record, descriptors, log, self._report)
        served = await self._take_up(directory, record, front, fresh=False)
        served.say(f"another hydrator goes on, {served.states.present} of {len(served.map)} chunks are here")

    async def _take_up(self, directory: Path, record: LazyRecord, front: LazyFront, *, fresh: bool) -> Served:
        served: Served | None = None
        try:
            served = Served(directory, record, front, self._scheduler.want, self._scheduler.used)
            await self._library.lend(served)
            if self._keeper is not None:
                fds = front.descriptors
                await asyncio.to_thread(self._keeper.keep, str(directory), (fds.front, fds.fill))
        except BaseException:
            if served is not None:
                await self._library.take_back(served)
            if fresh:  # else the keeper holds them, and readers may be waiting for a better hydrator
                await asyncio.to_thread(front.abandon)
                front.close()
            raise
        self._served[served.id] = served
        self._scheduler.add(served)
        self.profiles.attached(served, fresh=fresh)
        front.start(served)
        self._end_if_complete(served)
        return served

    async def ready(self, machine: str, when: float) -> None:
        """The machine does what it was started for."""
        served = self._served.get(machine)
        if served is None:
            return
        served.is_ready = True
        await self.profiles.ready(served, when)
        self._scheduler.pump()

    async def detach(self, machine: str) -> None:
        """The machine is gone."""
        served = self._served.pop(machine, None)
        if served is None:
            return
        served.refuse()
        await self._let_go(served)
        await asyncio.to_thread(served.front.abandon)
        ending = self._ending.get(served)
        if ending is not None:
            # Its descriptors must not be closed under it: their numbers would be those of the next machine's.
            await asyncio.wait([ending])
        await self._forget(served)

    async def close(self) -> None:
        """Stops, leaving everything to a successor."""
        self._chores.cancel()
        for task in (self._chores, *self._ending.values()):
            task.cancel()
        await asyncio.gather(self._chores, *self._ending.values(), return_exceptions=True)
        await self.profiles.close()
        await self._scheduler.close()
        for served in self._served.values():
            await asyncio.to_thread(served.front.stop)
        self._filler.close()
        await self._library.close()

    # In the event loop, as chunks come in.

    def _filled(self, served: Served, row: int) -> None:
        served.full("")
        served.filled(row)
        self._end_if_complete(served)

    def _end_if_complete(self, served: Served) -> None:
        if served.states.complete and not served.gone and served.id in self._served and not served.is_ending:
            served.is_ending = True
            task = asyncio.create_task(self._complete(served))
            self._ending[served] = task
            task.add_done_callback(lambda task: self._ended(served, task))

    def _ended(self, served: Served, task: asyncio.Task[None]) -> None:
        del self._ending[served]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._report(f"a rootfs is whole and is served still: {type(error).__name__}: {error}")

    async def _complete(self, served: Served) -> None:
        """Every row is present. Killed at any point of this, a successor finds the same and does it again."""
        await self._let_go(served)
        await asyncio.to_thread(os.fdatasync, served.front.descriptors.fill)
        if served.gone:
            return
        # In a thread of its own: with FUSE it lasts as long as a machine has the file open.
        await _in_thread(served.front.complete)
        if served.gone:
            return
        await asyncio.to_thread(_record_completion, served.directory, served.record)
        if served.gone:
            return  # the machine went meanwhile, and who was told of it forgets it
        del self._served[served.id]
        served.say(f"complete: {len(served.map)} chunks are here, the rootfs is a plain file")
        await self._forget(served)

    async def _let_go(self, served: Served) -> None:
        """Nothing more is fetched for it."""
        if served.is_released:
            return
        served.is_released = True
        await self.profiles.detached(served)
        self._scheduler.remove(served)
        await self._library.take_back(served)

    async def _forget(self, served: Served) -> None:
        await served.settled()
        if self._keeper is not None:
            await asyncio.to_thread(self._keeper.drop, str(served.directory))
        await asyncio.to_thread(served.front.close)
        served.states.close()

    def _origin_changed(self, users: list[Served], line: str) -> None:
        for served in users:
            served.say(line)

    async def _do_chores(self) -> None:
        """Flushes what came in, and drops whose directory is gone: a machine that nobody detached."""
        looked = time.monotonic()
        while True:
            shared = any(served.record.peers.is_used for served in self._served.values())
            await asyncio.sleep(_FLUSH_SHARED if shared else _FLUSH)
            try:
                await self._library.flush()
            except OSError as error:
                self._report(f"a segment cannot be flushed: {error.strerror}")
            if time.monotonic() - looked < _LOOK:
                continue
            looked = time.monotonic()
            for served in list(self._served.values()):
                if not await asyncio.to_thread(_is_there, served.directory):
                    with contextlib.suppress(CastoffError):
                        await self.detach(served.id)


def _record_completion(directory: Path, record: LazyRecord) -> None:
    write_record(directory, msgspec.structs.replace(record, complete=True))
    for name in (MAP, STATE, LOG):
        (directory / name).unlink(missing_ok=True)


def _is_there(directory: Path) -> bool:
    try:
        read_record(directory)
    except NotFound:
        return False
    except CastoffError:
        return True
    return True


async def _in_thread(work: Callable[[], None]) -> None:
    """Runs what may last for hours; the process can end without waiting for it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        failure: BaseException | None = None
        try:
            work()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know
            loop.call_soon_threadsafe(settle, failure)

    threading.Thread(target=run, name="complete", daemon=True).start()
    await done
