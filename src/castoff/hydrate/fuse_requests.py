"""``lazy.log`` of a FUSE front: requests that were taken from the kernel and not answered yet, in shared memory.

The kernel hands out each request once. One that a dead process had taken would leave its reader asleep for good, so
requests are read *into* the log: no instant lies between taking one and writing it down, and a successor, given the
connection by the keeper, answers what is left. Kernels from 6.9 can send requests again (FUSE_NOTIFY_RESEND); the log does
it for every kernel.

The file is slots of 128 bytes. A slot is free where its first word, the length in a request's header, is 0; it is made 0
after the answer, so what still stands there may have been answered, and the kernel says so (ENOENT) to whoever tries again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from queue import SimpleQueue

__all__ = ["SLOT", "SLOTS", "RequestLog", "locked_memory"]

SLOT = 128
"""Bytes; the longest request that is more than refused (INIT) has 104."""
SLOTS = 2048
"""Requests that can be waiting at a time; the next stays with the kernel."""
_SIZE = SLOT * SLOTS
_FREE = bytes(4)
_MAP_LOCKED = 0x2000  # the mmap module has it from Python 3.14 on


class RequestLog:
    """Slots for requests; a thread may take and free them at any time.

    Attributes:
        left: Slots that the predecessor had not freed.
    """

    def __init__(self, path: Path) -> None:
        """Opens the log at ``path``; makes it where there is none, or none of that size.

        Raises:
            OSError: As the system says.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(descriptor, _SIZE)
            with contextlib.suppress(OSError):  # a filesystem that cannot reserve; it must not be full in mid-write
                os.posix_fallocate(descriptor, 0, _SIZE)
            self._map = locked_memory(_SIZE, descriptor)
        finally:
            os.close(descriptor)
        self._memory = memoryview(self._map)
        self._free: SimpleQueue[int] = SimpleQueue()
        self.left: list[int] = []
        for slot in range(SLOTS):
            if self._memory[slot * SLOT : slot * SLOT + 4] == _FREE:
                self._free.put(slot)
            else:
                self.left.append(slot)

    def take(self) -> int:
        """A free slot; waits until there is one."""
        return self._free.get()

    def message(self, slot: int) -> memoryview:
        """The slot's bytes."""
        return self._memory[slot * SLOT : (slot + 1) * SLOT]

    def clear(self, slot: int) -> None:
        """Says that the slot's request is answered; the slot stays with who took it."""
        self._memory[slot * SLOT : slot * SLOT + 4] = _FREE

    def free(self, slot: int) -> None:
        """Clears the slot and gives it to the next who asks."""
        self.clear(slot)
        self._free.put(slot)

    def close(self) -> None:
        """Unmaps the file; no thread uses it any more."""
        self._memory.release()
        self._map.close()


def locked_memory(size: int, descriptor: int = -1) -> mmap.mmap:
    """``size`` bytes of memory that is present and stays so: of ``descriptor``, shared, or of this process alone.

    A page fault while the kernel copies a request out would end it in an error when the process is just being killed, and
    memory that must be brought in to serve a disk could need that very disk. Without the right to lock as much
    (RLIMIT_MEMLOCK) it is only touched.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if descriptor < 0 else mmap.MAP_SHARED
    try:
        memory = mmap.mmap(descriptor, size, flags=flags | _MAP_LOCKED)
    except OSError:
        memory = mmap.mmap(descriptor, size, flags=flags)
    for page in range(0, size, mmap.PAGESIZE):
        memory[page] = memory[page]  # MAP_LOCKED brings a shared page in for reading only; a write makes it writable
    return memory
