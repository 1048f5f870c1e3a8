"""The compiled answerer of fanotify events (native/answer.c): those whose bytes are here never come to the interpreter.

A call takes events until there are some for the caller; meanwhile it holds no lock of Python's. It reads through the log as
:meth:`castoff.hydrate.eventlog.EventLog.read_from` does, and shares two arrays with the interpreter: which chunks are absent,
and where it writes down which were accessed first. Where it was not built, the front does all of it in Python.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from castoff.hydrate.eventlog import SLOT
from castoff.layers.toc import CHUNK

__all__ = ["LIBRARY", "Answerer", "Uses", "is_built"]

LIBRARY: Final = Path(__file__).with_name("answer.so")
"""Compiled by packaging/build_init.py; not there where the build had no compiler for it."""
_BATCH: Final = 16


class _Uses(ctypes.Structure):
    _fields_ = (
        ("seen", ctypes.c_void_p),
        ("when", ctypes.c_void_p),
        ("chunk", ctypes.c_void_p),
        ("count", ctypes.c_uint64),
    )


class _Answerer(ctypes.Structure):
    _fields_ = (
        ("group", ctypes.c_int32),
        ("stop", ctypes.c_int32),
        ("log", ctypes.c_void_p),
        ("slots", ctypes.c_uint64),
        ("absent", ctypes.c_void_p),
        ("chunks", ctypes.c_uint64),
        ("chunk_size", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
    )


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:  # not built, or for another libc than this one's
        return None
    library.castoff_answer.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    library.castoff_answer.restype = ctypes.c_int
    return library


def is_built() -> bool:
    """Whether there is one that this process can load."""
    return _library() is not None


class Uses:
    """Chunks that were accessed, each once, in the order of their first use. One thread writes, any reads.

    Args:
        chunks: Of the whole rootfs.
    """

    def __init__(self, chunks: int) -> None:
        self._seen = (ctypes.c_uint8 * chunks)()
        self._when = (ctypes.c_double * chunks)()
        self._chunk = (ctypes.c_uint32 * chunks)()
        addresses = (ctypes.addressof(array) for array in (self._seen, self._when, self._chunk))
        self._native = _Uses(*addresses, 0)

    @property
    def address(self) -> int:
        """Where the compiled part finds it, for as long as this object lives."""
        return ctypes.addressof(self._native)

    def read(self) -> Sequence[tuple[float, int]]:
        """(``time.monotonic()``, chunk) of each so far."""
        count = self._native.count
        return list(zip(self._when[:count], self._chunk[:count], strict=True))


class Answerer:
    """Takes and answers the events of one group. One thread calls :meth:`take`.

    Args:
        group: The group's descriptor.
        stop: A descriptor that becomes readable when ``take`` shall return.
        memory: The event log's, and one byte a chunk of the rootfs, 1 while it is not here.
        size: Bytes of the rootfs.
    """

    def __init__(self, group: int, stop: int, memory: tuple[memoryview, bytearray], size: int) -> None:
        """Keeps both where they are until :meth:`close`."""
        library = _library()
        assert library is not None
        self._call = library.castoff_answer
        self._held = [(ctypes.c_char * len(each)).from_buffer(each) for each in memory]
        log, absent = (ctypes.addressof(each) for each in self._held)
        self._native = _Answerer(group, stop, log, len(memory[0]) // SLOT, absent, len(memory[1]), CHUNK, size)
        self._handed = (ctypes.c_uint16 * _BATCH)()

    def take(self, uses: Uses | None, wait: float | None = None) -> list[int]:
        """Answers what can be answered; blocks.

        Args:
            uses: Where accesses are written down.
            wait: Seconds until the first event comes, at most; None: for ever.

        Returns:
            Slots of the log whose events are the caller's to answer, since their bytes are absent. Empty where nothing came,
            or it shall stop.

        Raises:
            BufferError: The log has no free slot.
            OSError: The group cannot be read.
        """
        milliseconds = -1 if wait is None else int(wait * 1000)
        found = self._call(ctypes.byref(self._native), milliseconds, uses.address if uses is not None else None, self._handed)
        if found == -errno.ENOBUFS:
            raise BufferError
        if found < 0:
            raise OSError(-found, os.strerror(-found))
        return self._handed[:found]

    def close(self) -> None:
        """Lets go of the memory. Nobody may be in :meth:`take`. Idempotent."""
        self._held = []
