"""The record of requests that were taken from the kernel and not answered yet: shared memory that outlives its process.

The kernel hands out each FUSE request once. One that a dead process had taken would leave its reader asleep for good, so
requests are read *into* the record: no instant lies between taking one and writing it down, and whoever holds the record
and the device (the keeper) can give both to a successor, which answers what is left. Kernels from 6.9 can send requests
again (FUSE_NOTIFY_RESEND); the record does it for every kernel.

The record is a memfd of slots. A slot is free where its first word, the length in a request's header, is 0; it is made 0
after the answer, so what is still there may have been answered, and the kernel says so (ENOENT) to whoever tries again.
"""

from __future__ import annotations

import mmap
import os
from queue import SimpleQueue

from castoff.errors import Invalid

__all__ = ["SLOT", "SLOTS", "RequestRecord", "locked_memory"]

SLOT = 128
"""Bytes; the longest request that is more than refused (INIT) has 104."""
SLOTS = 2048
"""Requests that can be waiting at a time; the next stays with the kernel."""
_SIZE = SLOT * SLOTS
_FREE = bytes(4)
_MAP_LOCKED = 0x2000  # the mmap module has it from Python 3.14 on


class RequestRecord:
    """Slots for requests; a thread may take and free them at any time.

    Attributes:
        descriptor: Of the shared memory, for the keeper.
        left: Slots that the predecessor had not freed.
    """

    def __init__(self, descriptor: int) -> None:
        """Opens the record in ``descriptor``, which becomes the record's own.

        Raises:
            Invalid: It is not one.
        """
        if os.fstat(descriptor).st_size != _SIZE:
            raise Invalid(f"descriptor {descriptor} is not a record of {SLOTS} FUSE requests")
        self.descriptor = descriptor
        self._memory = memoryview(locked_memory(_SIZE, descriptor))
        self._free: SimpleQueue[int] = SimpleQueue()
        self.left: list[int] = []
        for slot in range(SLOTS):
            if self._memory[slot * SLOT : slot * SLOT + 4] == _FREE:
                self._free.put(slot)
            else:
                self.left.append(slot)

    @classmethod
    def new(cls) -> RequestRecord:
        """An empty one."""
        descriptor = os.memfd_create("castoff-fuse-requests", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _SIZE)
        return cls(descriptor)

    def take(self) -> int:
        """A free slot; waits until there is one."""
        return self._free.get()

    def memory(self, slot: int) -> memoryview:
        """The slot's bytes."""
        return self._memory[slot * SLOT : (slot + 1) * SLOT]

    def clear(self, slot: int) -> None:
        """Says that the slot's request is answered; the slot stays with who took it."""
        self._memory[slot * SLOT : slot * SLOT + 4] = _FREE

    def free(self, slot: int) -> None:
        """Clears the slot and gives it to the next who asks."""
        self.clear(slot)
        self._free.put(slot)


def locked_memory(size: int, descriptor: int = -1) -> mmap.mmap:
    """``size`` bytes of memory that is present and stays so: of ``descriptor``, shared, or of this process alone.

    A page fault while the kernel copies a request would end it in an error when the process is just being killed; and
    memory that must be brought in to serve a disk could need that very disk. Without the right to lock as much it is only
    touched.
    """
    flags = mmap.MAP_POPULATE | (mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if descriptor < 0 else mmap.MAP_SHARED)
    try:
        return mmap.mmap(descriptor, size, flags=flags | _MAP_LOCKED)
    except OSError:  # EAGAIN, EPERM: RLIMIT_MEMLOCK
        return mmap.mmap(descriptor, size, flags=flags)
