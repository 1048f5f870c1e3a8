"""Which front serves a record: new ones, and those that a dead hydrator left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from castoff.hydrate.eventlog import EventLog
from castoff.hydrate.fanotify_front import FanotifyFront
from castoff.hydrate.front import Descriptors, LazyFront
from castoff.hydrate.fuse import FuseFront
from castoff.hydrate.record import FrontKind, LazyRecord

__all__ = ["new_front", "resumed_front"]

Report = Callable[[str], None]


def new_front(directory: Path, record: LazyRecord, report: Report) -> LazyFront:
    """Begins to watch a rootfs; whoever accesses it waits from now on. Blocks.

    Raises:
        NotFound, Invalid: Its files are missing or wrong.
        Unsupported: This host cannot.
        Unavailable: The system failed.
    """
    match record.front:
        case FrontKind.FANOTIFY:
            return FanotifyFront.marked(directory, record.size, report)
        case FrontKind.FUSE:
            return FuseFront.mounted(directory, report)


def resumed_front(
    directory: Path, record: LazyRecord, descriptors: Descriptors, log: EventLog | None, report: Report
) -> LazyFront:
    """Goes on with a front's descriptors.

    Args:
        directory: The rootfs' files.
        record: What is served.
        descriptors: From the keeper, or taken back.
        log: With fanotify: what the predecessor left unanswered.
        report: Told of what should not happen.
    """
    match record.front:
        case FrontKind.FANOTIFY:
            assert log is not None
            return FanotifyFront(record.size, descriptors, log, report)
        case FrontKind.FUSE:
            return FuseFront(directory, descriptors, report)
