"""Making a thing of the store once: one builder at a time, aside, flushed, renamed; what a dead one left is swept away.

A builder holds ``locks/NAME`` and works in ``tmp/NAME.XXXXXXXX``. The directory's name is new each time, so that a thread
that a cancelled builder left behind writes into its own files, which are gone, and never into the next builder's. A
directory in ``tmp`` whose lock nobody holds is a dead builder's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from castoff.errors import Conflict
from castoff.store.durable import publish, remove
from castoff.store.locks import Pin, hold, lock, try_lock
from castoff.store.space import no_space_as

__all__ = ["Build", "build_once", "sweep", "uninterrupted"]

T = TypeVar("T")

Build = Callable[[Path], Awaitable[None]]
"""Fills the empty directory that it is given."""

Place = Callable[[Path, Path], None]
"""Gives the directory that it is given first the name that it is given second, once everything in it is on disk."""


async def build_once(
    root: Path,
    name: str,
    target: Path,
    build: Build,
    find: Callable[[], T | None],
    *,
    place: Place = publish,
    blocks: Callable[[Path], bool] = Path.exists,
) -> T:
    """What ``find`` finds, built if need be, by us or by whoever else was first.

    Args:
        root: The store's directory.
        name: The lock's.
        target: The directory that ``build``'s becomes.
        build: Makes the contents; files only.
        find: The finished thing (pinned), or None. It must find what was published at ``target``.
        place: Gives the finished directory its name.
        blocks: Whether what is at ``target`` is in the way of ``place``.

    Raises:
        NoSpace: The disk became full.
        Conflict: ``target`` is there, in the way, and not found: broken.
    """
    found = find()
    if found is not None:
        return found
    async with lock(root / "locks" / name):
        found = find()
        if found is None:
            await asyncio.to_thread(_clear_the_way, root, name, target, blocks)
            pin = await _build(root, name, target, build, place)
            found = find()
            pin.close()
    if found is None:
        raise Conflict(f"{target} vanished", hint="something other than castoff removes files from the store")
    return found


async def _build(root: Path, name: str, target: Path, build: Build, place: Place) -> Pin:
    """Builds and publishes; the pin taken before the new name shows keeps ``prune`` off it."""
    temporary = root / "tmp" / f"{name}.{os.urandom(4).hex()}"
    temporary.mkdir(mode=0o711)
    pin = hold(temporary)
    assert pin is not None
    try:
        with no_space_as(target):
            await build(temporary)
            await uninterrupted(place, temporary, target)
    except BaseException:
        pin.close()
        await uninterrupted(remove, temporary)
        raise
    return pin


async def uninterrupted(function: Callable[..., T], *arguments: object, cancelled: Callable[[], None] = lambda: None) -> T:
    """Runs ``function`` in a thread and waits for its end, also when cancelled: what it does must not go on unwatched.

    Args:
        function: Called in the thread.
        arguments: Its arguments.
        cancelled: Called on cancellation, before the wait: tells ``function`` to stop where it can.
    """
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        cancelled()
        await asyncio.wait([task])
        task.exception()  # looked at, or asyncio complains; the cancellation is what is told
        raise


def _clear_the_way(root: Path, name: str, target: Path, blocks: Callable[[Path], bool]) -> None:
    """Removes what earlier holders of the lock ``name``, which the caller has, left behind."""
    if blocks(target):
        raise Conflict(f"{target} is incomplete", hint="run `castoff store verify --repair`")
    for entry in (root / "tmp").glob(f"{name}.????????"):
        remove(entry)


def sweep(root: Path) -> list[Path]:
    """Removes what dead builders left in ``tmp``; what it removed."""
    removed = []
    for entry in sorted((root / "tmp").iterdir()):
        held = try_lock(root / "locks" / entry.name.rpartition(".")[0])
        if held is None:
            continue
        try:
            remove(entry)
        finally:
            held.release()
        removed.append(entry)
    return removed
