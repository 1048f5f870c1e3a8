"""Who works on what, and who uses what: flock(2), which the kernel lets go of when its holder dies, however it dies.

Two kinds:

- A :class:`Lock` is a file of its own under ``locks/``, held by whoever builds a thing. Its file is unlinked while it is
  held, so whoever gets a lock looks whether the name still leads to the file that it locked, and tries again if not.
- A :class:`Pin` is a shared flock on the thing itself (a layer's directory, a rootfs' directory): in use by a living
  process. Who wants to remove it needs an exclusive one, and gets it only when nobody holds a pin.

flock belongs to the open file, so two tasks of one process exclude each other as two processes do.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from castoff import timeline

__all__ = ["Lock", "Pin", "exclusive", "hold", "lock", "try_lock"]

_FIRST_WAIT = 0.002
_LONGEST_WAIT = 0.05


class Lock:
    """An exclusive lock, held until :meth:`release`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def release(self) -> None:
        """Gives it back; its file goes first, while nobody else can hold it."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        os.close(self._descriptor)


def try_lock(path: Path) -> Lock | None:
    """The lock at ``path``, or None while another holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        if _names(path, descriptor):
            return Lock(path, descriptor)
        os.close(descriptor)  # its last holder unlinked it between our open and our flock


async def _wait(path: Path) -> Lock:
    """Polls: a thread blocked in flock could not be cancelled, and a wait here lasts as long as a conversion."""
    delay = _FIRST_WAIT
    while (found := try_lock(path)) is None:
        await asyncio.sleep(delay)
        delay = min(delay * 2, _LONGEST_WAIT)
    return found


@asynccontextmanager
async def lock(path: Path) -> AsyncIterator[None]:
    """Holds the lock at ``path`` for the block; waits for another holder (a step of the timeline) as long as it takes."""
    held = try_lock(path)
    if held is None:
        with timeline.step("store.locks", waiting_for=path.name):
            held = await _wait(path)
    try:
        yield
    finally:
        held.release()


class Pin:
    """A shared flock on a file or directory: it stays where it is until the pin is closed, collected, or its process ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        """Gives it back. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def hold(path: Path) -> Pin | None:
    """Pins ``path``; None where it is not there (any more).

    A remover holds its exclusive lock for microseconds between look and rename, so this waits for one.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            current = _names(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if current:
            return Pin(descriptor)
        os.close(descriptor)


@contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Whether nobody pins ``path``; nobody can while the block runs. False too where it is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield _names(path, descriptor)
    finally:
        os.close(descriptor)


def _names(path: Path, descriptor: int) -> bool:
    try:
        named = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(descriptor))
