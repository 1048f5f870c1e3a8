"""Tells when a layer's ``have`` changes: whoever fetches may be another process, so the kernel is asked (inotify).

Python has no inotify of its own; it is three calls of libc. Where the kernel has no watch left, waiting ends by itself, soon.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

__all__ = ["Growth"]

_MODIFY: Final = 0x2  # IN_MODIFY
_GONE: Final = 0x400 | 0x800  # IN_DELETE_SELF, IN_MOVE_SELF
_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC  # IN_NONBLOCK and IN_CLOEXEC are the same numbers
_LONGEST: Final = 0.5
"""Seconds after which a look is taken in any case: a conversion may have put another file in its place."""


class _Watched:
    """A file that somebody waits for."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.changed = asyncio.Event()
        self.waiting = 0


class Growth:
    """Waits for files to change. To be made, used and closed in one event loop."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(_FLAGS)
        self._watched: dict[Path, _Watched] = {}
        self._paths: dict[int, Path] = {}
        if self._descriptor >= 0:
            asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def close(self) -> None:
        """Ends all watches."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    @contextlib.asynccontextmanager
    async def watching(self, path: Path) -> AsyncIterator[asyncio.Event]:
        """For the block, changes of a file set the event that it is given, which whoever waits clears before looking."""
        watched = self._watched.get(path)
        if watched is None:
            number = self._libc.inotify_add_watch(self._descriptor, os.fsencode(path), _MODIFY | _GONE)
            watched = self._watched[path] = _Watched(number)
            if number >= 0:
                self._paths[number] = path
        watched.waiting += 1
        try:
            yield watched.changed
        finally:
            watched.waiting -= 1
            if not watched.waiting:
                del self._watched[path]
                if self._paths.pop(watched.descriptor, None) is not None:
                    self._libc.inotify_rm_watch(self._descriptor, watched.descriptor)

    @staticmethod
    async def wait(changed: asyncio.Event, seconds: float) -> None:
        """Returns after a change, or ``seconds``, or a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, _LONGEST)):
                await changed.wait()

    def _read(self) -> None:
        """Each event is 16 bytes, of which the first four say which watch; files that are watched themselves have no names."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._descriptor, 1 << 16)
            for at in range(0, len(data), 16):
                path = self._paths.get(int.from_bytes(data[at : at + 4], "little", signed=True))
                if path is not None and path in self._watched:
                    self._watched[path].changed.set()
