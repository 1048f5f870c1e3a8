"""What a hydrator finds when it starts: what its predecessor served, from the keeper or, where that is dead too, from the VMM.

A rootfs was served if its directory has a log. If it was, is not whole, and nobody holds its descriptors any more, the kernel
has let its readers through to the holes: they are killed, and the clone goes (DESIGN.md, "Lazy files, and how they fail").
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from castoff.disk.overlay import UPPER
from castoff.errors import CastoffError
from castoff.hydrate import fuse_mount, takeback
from castoff.hydrate.descriptors import close_all
from castoff.hydrate.eventlog import EventLog, open_logs
from castoff.hydrate.front import Descriptors
from castoff.hydrate.fuse import MOUNT
from castoff.hydrate.keeper_client import Keeper, connect
from castoff.hydrate.origin import ChunkReader
from castoff.hydrate.record import CLONE, LOG, PRESENT, STATE, FrontKind, LazyRecord, read_record
from castoff.hydrate.server import Hydrator
from castoff.store.store import Store

__all__ = ["Inheritance", "inherit", "serving"]

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Left:
    """One rootfs that a predecessor served."""

    directory: Path
    record: LazyRecord
    log: EventLog | None
    descriptors: Descriptors | None
    """None: nobody holds them."""


@dataclass(frozen=True, slots=True)
class Inheritance:
    """All that a predecessor left."""

    store: Store
    keeper: Keeper
    left: tuple[Left, ...]


def inherit(state: Path, report: Report) -> Inheritance:
    """Takes what a predecessor left; blocks. To be called before anything else is opened (castoff.hydrate.eventlog).

    Raises:
        CastoffError: Store or keeper cannot be had.
    """
    records = dict(_records(state / "store" / "machines", report))
    logs = open_logs(directory / LOG for directory, record in records.items() if record.front is FrontKind.FANOTIFY)
    store = Store.open(state)
    keeper = connect(state)
    keeper.register()
    held = dict(keeper.take())
    left = []
    for directory, record in records.items():
        fds = held.pop(str(directory), None) or _taken_back(directory, record, report)
        log = logs.get(directory / LOG)
        left.append(Left(directory, record, log, Descriptors(*fds[:2]) if fds else None))
    for name, fds in held.items():  # its machine is gone, or was whole
        keeper.drop(name)
        close_all(fds)
    return Inheritance(store, keeper, tuple(left))


def _records(machines: Path, report: Report) -> list[tuple[Path, LazyRecord]]:
    """Directories that were served, with their records."""
    found = []
    for path in sorted(machines.glob(f"*/{LOG}")):
        try:
            record = read_record(path.parent)
        except CastoffError as error:
            report(f"{path.parent} is left alone: {error}")
            continue
        if not record.complete:
            found.append((path.parent, record))
    return found


def _taken_back(directory: Path, record: LazyRecord, report: Report) -> tuple[int, int] | None:
    if record.front is not FrontKind.FANOTIFY:
        return None
    try:
        taken = takeback.take_back(directory / CLONE)
    except OSError as error:
        report(f"{directory / CLONE} cannot be looked at: {error.strerror}")
        return None
    if taken is not None:
        report(f"{directory} was taken back from its VMM")
    return taken


@asynccontextmanager
async def serving(
    found: Inheritance, open_reader: Callable[[LazyRecord], ChunkReader], report: Report
) -> AsyncIterator[Hydrator]:
    """A hydrator that goes on with what was found, for the block."""
    hydrator = Hydrator(found.store, found.keeper, open_reader, report)
    try:
        for left in found.left:
            try:
                await _go_on(hydrator, left, report)
            except CastoffError as error:
                report(f"{left.directory} cannot be served any more: {error}")
        fuse_mount.sweep(found.store.machines, [left.directory / MOUNT for left in found.left if left.descriptors])
        yield hydrator
    finally:
        await hydrator.close()


async def _go_on(hydrator: Hydrator, left: Left, report: Report) -> None:
    if left.descriptors is not None:
        await hydrator.resume(left.directory, left.descriptors, left.log)
        return
    if left.log is not None:
        left.log.close()
    if _is_whole(left.directory):
        hydrator.record_whole(left.directory, left.record)
        return
    # With FUSE it is by its upper half that a VMM is known. It has read no hole, but it can go on with nothing; and it holds
    # the connection that it waits for, so that is ended before it is.
    fuse_mount.unmount(left.directory / MOUNT, abort=True)
    ended = takeback.end_writers(left.directory / CLONE, left.directory / UPPER)
    (left.directory / CLONE).unlink(missing_ok=True)
    (left.directory / LOG).unlink(missing_ok=True)
    killed = f", process {', '.join(map(str, ended))} was killed" if ended else ""
    report(f"{left.directory}: hydrator and keeper both died, the incomplete clone is thrown away{killed}")


def _is_whole(directory: Path) -> bool:
    """Whether all was there when the last who cared died: then nobody was let through to a hole."""
    try:
        return set((directory / STATE).read_bytes()) <= {PRESENT}
    except FileNotFoundError:
        return False
