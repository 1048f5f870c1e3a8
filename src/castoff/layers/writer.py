"""Writes a segment to disk: hashes each chunk, leaves long runs of zeros as holes, keeps the file in few extents.

The clone of a rootfs costs 15 to 20 us for each extent of its segments (docs/formats.md), so space is reserved in large
steps before it is written, and zeros are written too unless a run of them is so long that its hole pays for the extent.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from castoff.errors import NoSpace, Unavailable
from castoff.layers.allocate import punch, reserve
from castoff.layers.pipeline import Buffer, Channel, Pool
from castoff.layers.toc import BLOCK, CHUNK

__all__ = ["SegmentFile"]

_HOLE = 64 << 20
"""Bytes of zeros in a row that are worth a hole: at most one extent more for each 64 MiB."""
_STEP = 64 << 20
"""Bytes reserved at a time, if so many are to come."""
_LEAST_STEP = 2 << 20
_ZEROS = memoryview(bytes(CHUNK))
_ZERO_DIGEST = blake3(_ZEROS).digest()


class SegmentFile:
    """The file of one segment, new; ``digests`` has the chunks' BLAKE3 digests, 32 bytes each, ``zero`` a byte a chunk.

    O_DIRECT where the filesystem has it: the page cache would cost a copy, a page allocation and a flush before the first
    clone, and machines read their drives past it.

    Args:
        path: The file; it may not exist.
        to_come: Told the bytes that are written, estimates how many more will be.
    """

    def __init__(self, path: Path, to_come: Callable[[int], int]) -> None:
        self._path = path
        self.digests = bytearray()
        self.zero = bytearray()
        self.size = 0
        self._zeros = 0
        self._reserved = 0
        self._to_come = to_come
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags | os.O_DIRECT, 0o644)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise translate(error, path) from error
            self._descriptor = os.open(path, flags, 0o644)

    def digest(self, channel: Channel[Buffer], hashed: Channel[Buffer]) -> None:
        """Hashes the chunks of what comes through ``channel``, in order, and passes it on: a stage before ``write``.

        A thread of its own, for a direct write waits for the disk.
        """
        while (buffer := channel.get()) is not None:
            view = buffer.view
            for at in range(0, buffer.filled, CHUNK):
                end = min(at + CHUNK, buffer.filled)
                digest = blake3(view[at:end]).digest()
                zero = digest == _ZERO_DIGEST or (end - at < CHUNK and view[at:end] == _ZEROS[: end - at])
                self.digests += digest
                self.zero.append(zero)
            hashed.put(buffer)
        hashed.close()

    def write(self, channel: Channel[Buffer], pool: Pool) -> None:
        """Writes what comes through ``channel``, in order, until it is closed; then cuts the file to its size and syncs it.

        Raises:
            NoSpace: The disk is full.
            Unavailable: The disk failed.
        """
        try:
            while (buffer := channel.get()) is not None:
                self._take(buffer)
                pool.give(buffer)
            self._punch(self.size - self._zeros, self._zeros)
            os.ftruncate(self._descriptor, self.size)
            os.ftruncate(self._descriptor, self.size)  # gives back what was reserved, which growing (by zeros) does not
            os.fsync(self._descriptor)
        except OSError as error:
            raise translate(error, self._path, self.size + max(self._to_come(self.size), CHUNK)) from error

    def close(self) -> None:
        """Closes the file. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _take(self, buffer: Buffer) -> None:
        """Writes a buffer's chunks that are not zeros, neighbours together."""
        view, start = buffer.view, 0
        for at in range(0, buffer.filled, CHUNK):
            end = min(at + CHUNK, buffer.filled)
            if self.zero[(buffer.offset + at) // CHUNK]:
                self._write(view[start:at], buffer.offset + start)
                self._zeros += end - at
                start = end
            elif self._zeros:
                self._fill(buffer.offset + at)
        self._write(view[start : buffer.filled], buffer.offset + start)
        self.size = buffer.offset + buffer.filled

    def _write(self, data: memoryview, offset: int) -> None:
        if data:
            self._reserve(offset + len(data))
            while data:
                written = self._pwrite(data, offset)
                data, offset = data[written:], offset + written

    def _pwrite(self, data: memoryview, offset: int) -> int:
        try:
            return os.pwrite(self._descriptor, data, offset)
        except OSError as error:
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                raise
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)  # opened so, but larger sectors, or FUSE
            return os.pwrite(self._descriptor, data, offset)

    def _fill(self, end: int) -> None:
        """Ends a run of zero chunks before ``end``: a hole when it is long, else zeros."""
        count, self._zeros = self._zeros, 0
        start = end - count
        if count >= _HOLE:
            self._punch(start, count)
            self._reserved = max(self._reserved, end)
            return
        self._reserve(end)
        zeros = Buffer(CHUNK).view
        for at in range(start, end, CHUNK):
            self._pwrite(zeros[: min(CHUNK, end - at)], at)

    def _punch(self, start: int, count: int) -> None:
        """Makes a hole of what may have been reserved; a filesystem that cannot has zeros there, which is as good."""
        if count and start < self._reserved:
            punch(self._descriptor, start, count)

    def _reserve(self, end: int) -> None:
        """Sees to it that the file has room up to ``end``, and some more if more is to come."""
        if end <= self._reserved:
            return
        step = max(_LEAST_STEP, min(_STEP, -(-self._to_come(end) // BLOCK) * BLOCK))
        while step >= CHUNK:
            count = end - self._reserved + step
            refused = reserve(self._descriptor, self._reserved, count)
            if not refused:
                self._reserved += count
                return
            if refused != errno.ENOSPC:
                break
            step //= 4
        self._reserved = 1 << 62 if step >= CHUNK else self._reserved


def translate(error: OSError, path: Path, needed: int = 0) -> NoSpace | Unavailable:
    """The castoff error for what the operating system said of ``path``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        room = os.statvfs(path.parent)
        return NoSpace(str(path), needed=needed, available=room.f_bavail * room.f_frsize)
    return Unavailable(f"{path}: {error.strerror}", hint="look at the disk and its mount")
