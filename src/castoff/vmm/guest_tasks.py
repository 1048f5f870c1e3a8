"""What a guest's init does itself when it is asked to, without a program of the image (docs/formats.md, "Tasks of init").

The guest is hostile: what it sends is bounded here, or handed on as it comes to whoever bounds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from castoff.errors import CastoffError, Code, Invalid, NotFound, Unavailable, Unsupported
from castoff.vmm.guest import GuestSettings
from castoff.vmm.guest_session import Exit, GuestSession, Output

__all__ = [
    "GuestFull",
    "finish",
    "growing_volume",
    "read_files",
    "reading_files",
    "syncing_volume",
    "write_files",
    "writing_files",
]

_NOT_FOUND: Final = 2
_NO_SPACE: Final = 3
_UNKNOWN: Final = 127
_MAX_REASON: Final = 1024

Sink = Callable[[bytes], Awaitable[None]]


class GuestFull(CastoffError):
    """The guest's filesystem is full."""

    code = Code.NO_SPACE


def reading_files(path: str) -> GuestSettings:
    """What a channel executes to get a file or a directory of the guest's as a tar archive: see :func:`read_files`."""
    return GuestSettings(argv=("send-files", path), task=True)


def writing_files(path: str) -> GuestSettings:
    """What a channel executes to put the files of a tar archive into the guest: see :func:`write_files`."""
    return GuestSettings(argv=("take-files", path), task=True, stdin=True)


def growing_volume(path: str, size: int) -> GuestSettings:
    """What a channel executes to grow the filesystem that is mounted at ``path`` to ``size`` bytes, once its drive has them."""
    return GuestSettings(argv=("grow-volume", path, str(size)), task=True)


def syncing_volume(path: str) -> GuestSettings:
    """What a channel executes to flush the filesystem that is mounted at ``path`` to its drive."""
    return GuestSettings(argv=("sync-volume", path), task=True)


async def read_files(session: GuestSession, sink: Sink) -> None:
    """Gives ``sink`` the archive that a session of :func:`reading_files` writes, piece by piece; the guest waits for it.

    Raises:
        NotFound: There is no such file; nothing was given then.
        CastoffError: A file cannot be read, or the machine ended: what was given is not all.
    """
    await finish(session, sink)


async def write_files(session: GuestSession, archive: AsyncIterator[bytes]) -> None:
    """Gives ``archive`` to a session of :func:`writing_files`; returns when all of it is in its place.

    Raises:
        NotFound: The directory that it should go to is not there.
        GuestFull: The guest has no room for it.
        CastoffError: It is no archive that init takes, or the machine ended.
    """
    feeding = asyncio.create_task(_feed(session, archive))
    ending = asyncio.create_task(finish(session))
    try:
        await asyncio.wait((feeding, ending), return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            feeding.result()
        await ending
    finally:
        for task in (feeding, ending):
            task.cancel()
        await asyncio.gather(feeding, ending, return_exceptions=True)


async def _feed(session: GuestSession, archive: AsyncIterator[bytes]) -> None:
    async for piece in archive:
        await session.send_stdin(piece)
    await session.close_stdin()


async def _ignore(_: bytes) -> None:
    """What a task should not write at all."""


async def finish(session: GuestSession, sink: Sink = _ignore) -> None:
    """Waits for the end of a session that executes one of these, and gives ``sink`` what it writes.

    Raises:
        CastoffError: It could not be done, or the machine ended.
    """
    reason = bytearray()
    exit: Exit | None = None
    async for event in session.events():
        if isinstance(event, Exit):
            exit = event
        elif isinstance(event, Output) and event.stream == 1:
            await sink(event.data)
        elif isinstance(event, Output):
            reason += event.data[: _MAX_REASON - len(reason)]
    if exit is None:
        raise Unavailable("the machine ended meanwhile")
    if exit.code:
        raise _failure(exit, reason.decode("utf-8", "replace"))


def _failure(exit: Exit, reason: str) -> CastoffError:
    if exit.code == _NOT_FOUND:
        return NotFound(f"in the machine: {reason}", hint="name a path as the machine sees it")
    if exit.code == _NO_SPACE:
        return GuestFull(f"in the machine: {reason}", hint="its disk is full: free space there, or give it a larger one")
    if exit.code == _UNKNOWN:
        return Unsupported("this machine's guest init cannot do that", hint="restart the machine: an older castoff booted it")
    return Invalid(f"in the machine: {reason or exit.message or f'exit code {exit.code}'}")
