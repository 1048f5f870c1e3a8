"""Answering the kernel's requests for one FUSE file.

Threads read requests from /dev/fuse. A READ of what is present is answered by the thread that took it: one preadv, one
writev. A READ of what is not stays in the log (castoff.hydrate.fuse_requests), the core is told who waits, and the thread
goes on to the next; one more thread answers when the bytes are there. So any number of readers may wait, and none of them
stands in another's way.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import monotonic, sleep

from castoff.hydrate import fuse_protocol as wire
from castoff.hydrate.front import Hydration
from castoff.hydrate.fuse_protocol import Attributes, Opcode
from castoff.hydrate.fuse_requests import SLOT, RequestLog, locked_memory

__all__ = ["FuseServer"]

_READERS = 3
_ENDED = {errno.ENODEV, errno.ECONNABORTED}
"""What reading the device says when the file is unmounted and nobody has it open, and when the connection was aborted."""
_UNANSWERABLE = {errno.ENOENT, *_ENDED}
"""What answering says: the request was answered before, or its reader was killed; and the same as above."""
_STOP = -1
_PR_SET_IO_FLUSHER = 57


class FuseServer:
    """Answers until it is stopped, or the kernel has no more requests for the file.

    Args:
        device: Descriptor of the connection; made non-blocking.
        log: Where requests are read to; closed with the server.
        backing: Descriptor of the file with the bytes.
        attributes: What stat says of the file.
        hydration: Which bytes are there, and who brings the others.
        report: Told, in one line, of what should not happen. From any thread.
    """

    def __init__(
        self,
        device: int,
        log: RequestLog,
        backing: int,
        attributes: Attributes,
        hydration: Hydration,
        report: Callable[[str], None],
    ) -> None:
        self.ended = threading.Event()
        """Set when no request can ever come again; or the server was stopped."""
        self._device = device
        self._log = log
        self._backing = backing
        self._size = attributes.size
        self._attributes = wire.attributes_reply(attributes)
        self._hydration = hydration
        self._report = report
        self._waiting: dict[int, int] = {}
        """Slots of the READs that wait, by their unique."""
        self._late: SimpleQueue[tuple[int, int, int]] = SimpleQueue()
        """Slot, unique and errno of READs whose waiting has ended."""
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._threads = [
            *(threading.Thread(target=self._read_requests, daemon=True, name=f"fuse-{number}") for number in range(_READERS)),
            threading.Thread(target=self._answer_late, daemon=True, name="fuse-late"),
        ]

    def start(self) -> None:
        """Starts the threads; what a predecessor left in the log comes first."""
        os.set_blocking(self._device, False)
        for slot in self._log.left:
            self._late.put((slot, wire.request(self._log.message(slot)).unique, 0))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the threads. Requests stay in the log, for a successor. Blocks. Idempotent."""
        os.eventfd_write(self._stop, 1)
        self._late.put((_STOP, 0, 0))
        for thread in self._threads:
            thread.join()
        self.ended.set()

    def close(self) -> None:
        """After :meth:`stop`."""
        os.close(self._stop)
        self._log.close()

    def _read_requests(self) -> None:
        _flush_io()
        answer = memoryview(locked_memory(wire.MAX_READ))
        rest = bytearray(wire.READ_BUFFER - SLOT)
        slot = self._log.take()
        with select.epoll() as poll:
            poll.register(self._stop, select.EPOLLIN)
            poll.register(self._device, select.EPOLLIN | select.EPOLLEXCLUSIVE)  # one thread wakes for a request, not all
            while all(descriptor != self._stop for descriptor, _ in poll.poll()):
                message = self._log.message(slot)
                try:
                    os.readv(self._device, (message, rest))
                except BlockingIOError:
                    continue
                except OSError as error:
                    if error.errno in _ENDED:
                        self.ended.set()
                        break
                    if error.errno != errno.ENOENT:  # which it says where the reader was killed just now
                        self._report(f"reading from /dev/fuse: {error.strerror}")
                        sleep(0.1)
                    continue
                if self._serve(slot, message, answer, first=True):
                    self._log.clear(slot)
                else:
                    slot = self._log.take()

    def _answer_late(self) -> None:
        _flush_io()
        answer = memoryview(locked_memory(wire.MAX_READ))
        while True:
            slot, unique, error = self._late.get()
            if slot == _STOP:
                return
            if error:
                self._reply(unique, error=error)
            elif not self._serve(slot, self._log.message(slot), answer, first=False):
                continue
            self._log.free(slot)

    def _serve(self, slot: int, message: memoryview, answer: memoryview, *, first: bool) -> bool:
        """Answers a request; False where it has to wait. ``first``: it has just come."""
        head = wire.request(message)
        try:
            if head.opcode == Opcode.READ:
                return self._read(slot, head.unique, message, answer, first=first)
            self._other(head.opcode, head.unique, message)
        except OSError as error:
            self._reply(head.unique, error=error.errno or errno.EIO)
            self._report(f"request {head.opcode}: {error}")
        except Exception as error:  # a thread that ended would leave readers asleep
            self._reply(head.unique, error=errno.EIO)
            self._report(f"request {head.opcode}: {type(error).__name__}: {error}")
        return True

    def _read(self, slot: int, unique: int, message: memoryview, answer: memoryview, *, first: bool) -> bool:
        when = monotonic()
        asked = wire.read_arguments(message)
        start = asked.offset
        end = min(start + asked.size, self._size)
        if start >= end:
            self._reply(unique)
            return True
        there = self._hydration.present(start, end)
        if there:
            self._reply(unique, self._bytes(answer[: end - start], start))
        else:
            self._wait(slot, unique, start, end)
        recorder = self._hydration.recorder
        if first and recorder is not None:
            recorder.access(start, end, when, not there)
        return there

    def _bytes(self, target: memoryview, offset: int) -> memoryview:
        """``target``, filled with the file's bytes from ``offset`` on."""
        done = 0
        while done < len(target):
            count = os.preadv(self._backing, (target[done:],), offset + done)
            if count == 0:
                raise OSError(errno.EIO, f"the file behind ends at {offset + done}")
            done += count
        return target

    def _wait(self, slot: int, unique: int, start: int, end: int) -> None:
        """Leaves the request in its slot until its bytes are there."""
        self._waiting[unique] = slot

        def answer(error: int) -> None:
            if self._waiting.pop(unique, None) is not None:  # else its reader was interrupted
                self._late.put((slot, unique, error))

        with contextlib.suppress(RuntimeError):  # the core's event loop is closed, this process about to end: a successor's
            self._hydration.want(start, end, answer)

    def _interrupt(self, unique: int, which: int) -> None:
        """A reader that waits got a signal. Unanswered it could not even be killed (fs/fuse/dev.c, request_wait_answer)."""
        slot = self._waiting.pop(which, None)
        if slot is not None:
            self._late.put((slot, which, errno.EINTR))
            return
        # It is being answered, or another thread has it and did not get as far as waiting: EAGAIN makes the kernel say it
        # again, unless it is answered by then.
        sleep(0.001)
        self._reply(unique, error=errno.EAGAIN)

    def _other(self, opcode: int, unique: int, message: memoryview) -> None:
        """Everything that happens once, or hardly ever."""
        match opcode:
            case Opcode.GETATTR:
                self._reply(unique, self._attributes)
            case Opcode.OPEN:
                self._reply(unique, wire.OPEN_REPLY)
            case Opcode.RELEASE | Opcode.DESTROY:
                self._reply(unique)
            case Opcode.STATFS:
                self._reply(unique, wire.statfs_reply(self._size))
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
            os.writev(self._device, (wire.header(unique, len(data), error), data))
        except OSError as failed:
            if failed.errno not in _UNANSWERABLE:
                self._report(f"answering through /dev/fuse: {failed.strerror}")


def _flush_io() -> None:
    """Tells the kernel that this thread's memory must not be freed by waiting for a disk: it may be the disk.

    The flag is a thread's own (kernel/sys.c). Without CAP_SYS_RESOURCE, or before Linux 5.6, it stays unset.
    """
    ctypes.CDLL(None).prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
