"""The FUSE front: a rootfs that is not all here yet, as one read-only file, on any kernel from 5.4 on.

Threads read requests from /dev/fuse, in a process that does nothing for its readers but this. A READ of what is present is
answered by the thread that took it: one preadv into the answer, one writev. A READ of an absent chunk is left in the record
of requests (castoff.hydrate.fuse_requests) and the thread goes on to the next; when the chunk has come, one more thread
answers. So any number of readers may wait, and none of them stands in another's way.

It fails closed: what is not present is waited for or is EIO, and when the last holder of the device is gone, ENOTCONN. There
is no stopping but the end of the process: a server that is to hand over simply ends, as if killed, and its successor, given
device and record, answers what it left. The kernel's page cache is shared by all who open the file, and stays.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from time import sleep
from typing import Any, Protocol

from castoff.hydrate import fuse_protocol as wire
from castoff.hydrate.fuse_file import PiecedFile
from castoff.hydrate.fuse_protocol import Attributes, Opcode
from castoff.hydrate.fuse_requests import SLOT, RequestRecord, locked_memory

__all__ = ["Chunks", "FuseServer"]

_READERS = 3
_GONE = {errno.ENODEV, errno.ECONNABORTED}
"""Reading the device: unmounted and closed by all; aborted."""
_UNANSWERABLE = {errno.ENOENT, *_GONE}
"""Answering: it was answered already, or its reader was killed; and the same as above."""
_PR_SET_IO_FLUSHER = 57


class Chunks(Protocol):
    """What the server needs to know of the file's chunks. Rows are numbers of chunks, as the scheduler counts them."""

    def absent(self, start: int, end: int) -> Sequence[int]:
        """Rows of chunks with bytes in ``start`` to ``end`` (exclusive, of the rootfs) that are not here. Any thread."""
        ...

    def ensure(self, rows: Sequence[int]) -> Coroutine[Any, Any, None]:
        """Waits, in the event loop, until the chunks are here; somebody is waiting for them.

        Raises:
            OSError: They cannot be had for now; a later read tries again.
        """
        ...


@dataclass(slots=True)
class _Miss:
    """A READ that waits."""

    slot: int
    waiting: Future[None]
    interrupted: bool = False


class FuseServer:
    """Serves one mounted file until it is unmounted and nobody has it open.

    Args:
        device: From castoff.hydrate.fuse_mount.mount_file, or from the keeper; the caller closes it, after :attr:`gone`.
        record: A new one, or the predecessor's.
        file: Where the bytes are.
        attributes: Of the file, as stat shows them.
        chunks: Which are here, and how to get the others.
        loop: Where ``chunks.ensure`` runs.
        report: Told, in one line, of what should not happen. From any thread.
    """

    def __init__(
        self,
        device: int,
        record: RequestRecord,
        file: PiecedFile,
        attributes: Attributes,
        chunks: Chunks,
        loop: asyncio.AbstractEventLoop,
        report: Callable[[str], None],
    ) -> None:
        self.device = device
        self.record = record
        self.gone = threading.Event()
        """Set when the kernel has no more requests for this file, ever."""
        self._file = file
        self._attributes = wire.attributes_reply(attributes)
        self._chunks = chunks
        self._loop = loop
        self._report = report
        self._misses: dict[int, _Miss] = {}
        self._later: SimpleQueue[int] = SimpleQueue()
        """Slots whose READ can be answered, or has failed."""
        self._failed: dict[int, int] = {}
        """Errnos of the slots that are to be answered with one."""

    def start(self) -> None:
        """Starts the threads. They are daemons: nothing is lost when the process ends without asking them."""
        for slot in self.record.left:
            self._later.put(slot)
        for number in range(_READERS):
            threading.Thread(target=self._read_requests, name=f"fuse-{self.device}-{number}", daemon=True).start()
        threading.Thread(target=self._answer_later, name=f"fuse-{self.device}-late", daemon=True).start()

    def _read_requests(self) -> None:
        _flush_io()
        answer = memoryview(locked_memory(wire.MAX_READ))
        rest = bytearray(wire.READ_BUFFER - SLOT)
        slot = self.record.take()
        while True:
            message = self.record.memory(slot)
            try:
                os.readv(self.device, (message, rest))
            except OSError as error:
                if error.errno in _GONE:
                    break
                if error.errno not in (errno.ENOENT, errno.EAGAIN):  # ENOENT: its reader was killed just now
                    self._report(f"reading from /dev/fuse: {error.strerror}")
                    sleep(0.1)
                continue
            if self._serve(slot, message, answer):
                self.record.clear(slot)
            else:
                slot = self.record.take()
        self.record.free(slot)
        self.gone.set()

    def _answer_later(self) -> None:
        _flush_io()
        answer = memoryview(locked_memory(wire.MAX_READ))
        while True:
            slot = self._later.get()
            message = self.record.memory(slot)
            error = self._failed.pop(slot, 0)
            if error:
                self._reply(wire.request(message).unique, error=error)
            elif not self._serve(slot, message, answer):
                continue
            self.record.free(slot)

    def _serve(self, slot: int, message: memoryview, answer: memoryview) -> bool:
        """Answers a request; False where it has to wait."""
        head = wire.request(message)
        try:
            if head.opcode == Opcode.READ:
                return self._read(slot, head.unique, message, answer)
            self._other(head.opcode, head.unique, message)
        except OSError as error:
            self._reply(head.unique, error=error.errno or errno.EIO)
            self._report(f"request {head.opcode}: {error}")
        except Exception as error:  # a thread that ended would leave readers asleep
            self._reply(head.unique, error=errno.EIO)
            self._report(f"request {head.opcode}: {type(error).__name__}: {error}")
        return True

    def _read(self, slot: int, unique: int, message: memoryview, answer: memoryview) -> bool:
        asked = wire.read_arguments(message)
        start = asked.offset
        end = min(start + asked.size, self._file.size)
        if start >= end:
            self._reply(unique)
            return True
        rows = self._chunks.absent(start, end)
        if rows:
            self._wait(slot, unique, rows)
            return False
        data = answer[: end - start]
        self._file.read_into(data, start)
        self._reply(unique, data)
        return True

    def _wait(self, slot: int, unique: int, rows: Sequence[int]) -> None:
        """Leaves the request in its slot until its chunks are here."""
        coroutine = self._chunks.ensure(rows)
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # the loop is closed, the process about to end: the successor answers
            coroutine.close()
            return
        miss = _Miss(slot, future)
        self._misses[unique] = miss
        future.add_done_callback(lambda _: self._done(unique, miss))

    def _done(self, unique: int, miss: _Miss) -> None:
        del self._misses[unique]
        if miss.waiting.cancelled():
            if not miss.interrupted:
                return  # the loop is ending: the successor answers
            self._failed[miss.slot] = errno.EINTR
        else:
            error = miss.waiting.exception()
            if error is not None:
                self._failed[miss.slot] = errno.EIO
                if not isinstance(error, OSError):
                    self._report(f"waiting for chunks: {type(error).__name__}: {error}")
        self._later.put(miss.slot)

    def _interrupt(self, unique: int, which: int) -> None:
        """A reader that waits has got a signal. Without an answer it could not even be killed (fs/fuse/dev.c,
        request_wait_answer)."""
        miss = self._misses.get(which)
        if miss is None:
            # Being answered, or taken by another thread and not waiting yet: EAGAIN makes the kernel say it again, unless
            # the request has been answered meanwhile.
            sleep(0.001)
            self._reply(unique, error=errno.EAGAIN)
            return
        miss.interrupted = True
        miss.waiting.cancel()

    def _other(self, opcode: int, unique: int, message: memoryview) -> None:
        """Everything that happens once, or hardly ever."""
        match opcode:
            case Opcode.GETATTR:
                self._reply(unique, self._attributes)
            case Opcode.OPEN:
                self._reply(unique, wire.OPEN_REPLY)
            case Opcode.RELEASE | Opcode.FLUSH | Opcode.DESTROY:
                self._reply(unique)
            case Opcode.STATFS:
                self._reply(unique, wire.statfs_reply(self._file.size))
            case Opcode.INTERRUPT:
                self._interrupt(unique, wire.interrupted(message))
            case Opcode.FORGET | Opcode.BATCH_FORGET:
                pass  # they want no answer
            case Opcode.INIT:
                self._reply(unique, wire.init_reply(message))
            case Opcode.IOCTL:
                self._reply(unique, error=errno.ENOTTY)
            case _:
                self._reply(unique, error=errno.ENOSYS)  # to most of them the kernel takes that as "never ask again"

    def _reply(self, unique: int, data: bytes | memoryview = b"", *, error: int = 0) -> None:
        try:
            os.writev(self.device, (wire.header(unique, len(data), error), data))
        except OSError as failed:
            if failed.errno not in _UNANSWERABLE:
                self._report(f"answering through /dev/fuse: {failed.strerror}")


def _flush_io() -> None:
    """Tells the kernel that this thread's memory must not be freed by waiting for a disk: it may be the disk.

    The flag is a thread's own (kernel/sys.c). Without CAP_SYS_RESOURCE, or before Linux 5.6, it stays unset.
    """
    ctypes.CDLL(None).prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
