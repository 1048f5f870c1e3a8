"""The terminal that castoff was started on: raw mode that is always undone, its size, and its input as bytes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import stat
import termios
import threading
import tty
from collections.abc import AsyncIterator, Iterator

from castoff.image.unwaited import unwaited

__all__ = ["ESCAPES", "output_size", "raw", "read_input", "write_output"]

_PIECE = 64 * 1024
ESCAPES = b"\x1d" * 3
"""Ctrl-] three times kills the machine of a raw terminal, where Ctrl-C belongs to the guest; systemd-nspawn's habit."""


@contextlib.contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Raw mode for the block, where ``descriptor`` is a terminal: every key goes to the guest, echo and signals too."""
    if not os.isatty(descriptor):
        yield
        return
    saved = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSANOW)
    try:
        yield
    finally:
        # TCSADRAIN would wait for ever on a terminal whose output is stopped (Ctrl-S).
        with contextlib.suppress(termios.error):  # EIO: it hung up, and nobody will see how it was left
            termios.tcsetattr(descriptor, termios.TCSANOW, saved)


def output_size(*descriptors: int) -> tuple[int, int]:
    """Columns and rows of the first of ``descriptors`` that is a terminal; 80 x 24 where none is."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            found = os.get_terminal_size(descriptor)
            if found.columns and found.lines:  # a terminal nobody sized says 0 x 0
                return found.columns, found.lines
    return 80, 24


async def read_input(descriptor: int) -> AsyncIterator[bytes]:
    """What arrives at ``descriptor``, piece by piece, until its end.

    A thread polls and reads: epoll refuses regular files, O_NONBLOCK would change the terminal of every process that
    shares it, and a read that was started cannot be cancelled, so none is started before there is something to read:
    what is typed after the machine's end is left for the shell.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes] = asyncio.Queue()
    wanted = threading.Semaphore(1)
    stop_read, stop_write = os.pipe()

    def follow() -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(stop_read, select.POLLIN)
        with contextlib.suppress(RuntimeError):  # the loop closed: nobody listens any more
            while True:
                wanted.acquire()
                if any(ready == stop_read for ready, _ in poll.poll()):
                    return
                try:
                    piece = os.read(descriptor, _PIECE)
                except OSError:
                    piece = b""  # a terminal that hung up answers EIO: its end
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
                if not piece:
                    return

    thread = threading.Thread(target=follow, name="castoff-stdin", daemon=True)
    thread.start()
    try:
        while piece := await pieces.get():
            yield piece
            wanted.release()
    finally:
        os.write(stop_write, b"x")
        wanted.release()
        thread.join()
        os.close(stop_read)
        os.close(stop_write)


async def write_output(descriptor: int, data: bytes) -> None:
    """Writes all of ``data``, waiting in a thread where the reader is slow; where it stands still, cancelling helps.

    Raises:
        BrokenPipeError: Nobody reads any more.
    """
    rest = memoryview(data)
    while rest and _takes_at_once(descriptor):
        rest = rest[os.write(descriptor, rest[: select.PIPE_BUF]) :]
    if rest:
        await unwaited(lambda: _write_all(descriptor, rest))


def _takes_at_once(descriptor: int) -> bool:
    """Whether PIPE_BUF bytes are written without waiting: to a file, or a pipe with room (pipe(7)). A thread costs more."""
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISFIFO(mode):
        return stat.S_ISREG(mode)
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


def _write_all(descriptor: int, rest: memoryview) -> None:
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # somebody else made the shared terminal or pipe non-blocking
            select.select([], [descriptor], [])
