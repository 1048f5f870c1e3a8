"""The fanotify front: a machine's clone is a plain sparse file, and the kernel asks before each access to it.

One thread takes the events. One whose bytes are there is answered at once by it, without a lock, in compiled code where that
was built (castoff.hydrate.answerer); any other is handed to the core, and answered when its bytes have come, by whatever
thread brings the news. So any number may wait, and none of them stands in another's way. Events are read into the log and
answered through it (castoff.hydrate.eventlog).

It fails open: when the last holder of the group is gone, the kernel lets everybody through, to the holes. So the group is held
by the keeper and by the VMM too, and nobody closes it while the mark stands.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from castoff.errors import Invalid, NotFound, Unavailable
from castoff.hydrate import fanotify
from castoff.hydrate.answerer import Answerer, is_built
from castoff.hydrate.descriptors import open_fill
from castoff.hydrate.eventlog import ALLOW, Event, EventLog, denied
from castoff.hydrate.front import Descriptors, Hydration
from castoff.hydrate.record import CLONE, LOG

__all__ = ["FanotifyFront"]

_AFTERMATH = 0.5
"""Seconds that events are taken after the mark was removed: the kernel may have been about to queue one."""


class FanotifyFront:
    """A front (castoff.hydrate.front) that stands on a fanotify group.

    Args:
        size: Bytes of the clone.
        descriptors: The group, and the clone for filling.
        log: Of the group's events.
        report: Told, in one line, of what should not happen. From any thread.
        compiled: Whether events are taken by compiled code; by default where it was built.
    """

    def __init__(
        self,
        size: int,
        descriptors: Descriptors,
        log: EventLog,
        report: Callable[[str], None],
        *,
        compiled: bool | None = None,
    ) -> None:
        self._size = size
        self._descriptors = descriptors
        self._log = log
        self._report = report
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._is_compiled = is_built() if compiled is None else compiled
        self._answerer: Answerer | None = None
        self._poll = select.poll()
        self._poll.register(descriptors.front, select.POLLIN)
        self._poll.register(self._stop, select.POLLIN)
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    @classmethod
    def marked(cls, directory: Path, size: int, report: Callable[[str], None], *, compiled: bool | None = None) -> FanotifyFront:
        """A new one: opens and marks the clone, which nobody else may have open yet.

        Raises:
            NotFound, Invalid: There is no clone, or not of that size.
            Unsupported: This kernel, filesystem or user cannot.
            Unavailable: The system failed.
        """
        path = directory / CLONE
        try:
            fill = open_fill(path)
        except FileNotFoundError as error:
            raise NotFound(f"{path} does not exist") from error
        except OSError as error:
            raise Unavailable(f"{path} cannot be opened: {error.strerror}") from error
        group = -1
        try:
            status = os.fstat(fill)
            if not stat.S_ISREG(status.st_mode) or status.st_size != size:
                raise Invalid(f"{path} is not a file of {size} bytes")
            log = EventLog.create(directory / LOG)
            group = fanotify.open_group()
            fanotify.mark(group, fill)
        except OSError as error:
            _close(fill, group)
            raise Unavailable(f"{path} cannot be watched: {error.strerror}") from error
        except BaseException:
            _close(fill, group)
            raise
        return cls(size, Descriptors(group, fill), log, report, compiled=compiled)

    @property
    def descriptors(self) -> Descriptors:
        """See castoff.hydrate.front."""
        return self._descriptors

    def start(self, hydration: Hydration) -> None:
        """See castoff.hydrate.front."""
        if self._is_compiled:
            memory = self._log.lend(), hydration.holes
            self._answerer = Answerer(self._descriptors.front, self._stop, memory, self._size)
        self._thread = threading.Thread(target=self._run, args=(hydration,), name="fanotify", daemon=True)
        self._thread.start()

    def complete(self) -> None:
        """See castoff.hydrate.front."""
        fanotify.unmark(self._descriptors.front, self._descriptors.fill)
        self._over.wait(_AFTERMATH)
        self.stop()

    def stop(self) -> None:
        """See castoff.hydrate.front."""
        self._over.set()
        thread = self._thread  # another thread may stop it at the same time: of a machine that goes when it is whole
        if thread is not None:
            os.eventfd_write(self._stop, 1)
            thread.join()
            self._thread = None

    def abandon(self) -> None:
        """See castoff.hydrate.front. Without the VMM there are no readers."""
        self.stop()

    def close(self) -> None:
        """See castoff.hydrate.front."""
        if self._answerer is not None:
            self._answerer.close()
        self._log.close()
        _close(self._descriptors.front, self._descriptors.fill, self._stop)

    def _run(self, hydration: Hydration) -> None:
        for event in self._log.unanswered():
            self._serve(hydration, event)
        while not self._over.is_set():
            try:
                self._serve_all(hydration, wait=True)
            except OSError as error:  # EMFILE: the kernel has refused that event's reader; others may do better
                self._report(f"reading fanotify events: {error.strerror}")
                time.sleep(0.05)
        self._serve_all(hydration, wait=False)

    def _serve_all(self, hydration: Hydration, *, wait: bool) -> None:
        """Takes events and answers them; with ``wait`` until there was one that had to wait, or it is over."""
        if self._answerer is None:
            if wait:
                self._poll.poll()
            for event in self._log.read_from(self._descriptors.front):
                self._serve(hydration, event)
            return
        if self._log.is_ambiguous and not self._log.wait():
            return
        recorder = hydration.recorder
        try:
            slots = self._answerer.take(recorder.uses if recorder is not None else None, None if wait else 0)
        except BufferError:
            self._log.wait()
            return
        for slot in slots:
            self._hand_on(hydration, self._log.event(slot))

    def _serve(self, hydration: Hydration, event: Event) -> None:
        when = time.monotonic()
        start, end, there = self._hand_on(hydration, event)
        recorder = hydration.recorder
        if recorder is not None:
            recorder.access(start, end, when, not there)

    def _hand_on(self, hydration: Hydration, event: Event) -> tuple[int, int, bool]:
        """Answers an event or has it answered; its range, and whether it was there."""
        start = event.offset
        end = start + event.size if event.size else self._size
        there = hydration.present(start, end)
        if there:
            self._answer(event, 0)
        else:
            hydration.want(start, end, partial(self._answer, event))
        return start, end, there

    def _answer(self, event: Event, number: int) -> None:
        try:
            self._log.answer(self._descriptors.front, event, denied(number) if number else ALLOW)
        except OSError as error:
            self._report(f"answering a fanotify event: {error.strerror}")
            if error.errno in (errno.EINVAL, errno.EBADF):
                raise


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)
