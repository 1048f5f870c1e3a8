"""Makes packs: beside a conversion, or from a finished segment (castoff.layers.pack says what they are)."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from castoff.errors import NotFound, Unavailable
from castoff.image.digest import Digest
from castoff.layers.index import LayerIndex
from castoff.layers.locations import LocationKind, Locations
from castoff.layers.pack import HEAD, Pack, chunk_size, pack_chunks, verify_chunk
from castoff.layers.pipeline import Buffer, Channel, Stopped
from castoff.layers.toc import CHUNK
from castoff.layers.writer import translate

__all__ = ["HELD", "PackWriter", "pack_buffers", "write_pack"]

_RUN = 4
"""Chunks that a thread reads and compresses at once."""
HELD = min(4, len(os.sched_getaffinity(0))) + 1
"""Buffers that a conversion's packing holds at most; as many threads compress as there are processors, up to 4."""
_local = threading.local()


class PackWriter:
    """A pack that grows, chunk by chunk in the order of the segment; used by one thread at a time.

    Args:
        target: The file, which may not exist; its owner deletes it after a failure.

    Raises:
        NoSpace, Unavailable: As of every method: the disk is full, or failed.
    """

    def __init__(self, target: Path) -> None:
        self._path = target
        self._frames: list[int] = []
        self._hash = hashlib.sha256(HEAD)
        self._size = len(HEAD)
        try:
            self._descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.write(self._descriptor, HEAD)
        except OSError as error:
            raise translate(error, target) from error

    def add(self, frames: Sequence[bytes]) -> None:
        """Writes the next chunks' frames; an empty one stands for a chunk of zeros."""
        data = b"".join(frames)
        self._frames += map(len, frames)
        self._hash.update(data)
        self._size += len(data)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise translate(error, self._path, len(view)) from error

    def finish(self) -> Pack:
        """All chunks were added. The file is not synced: it is on its way to a registry."""
        self.close()
        length = np.array(self._frames, np.uint32)
        packed = length > 0
        ends = len(HEAD) + np.cumsum(length, dtype=np.uint64)
        digest = Digest(self._hash.hexdigest())
        locations = Locations(
            kind=np.where(packed, np.uint8(LocationKind.PACK), np.uint8(LocationKind.LOCAL)),
            blob=np.zeros(len(length), np.uint32),
            offset=np.where(packed, ends - length, np.uint64(0)),
            length=length,
            blobs=(digest,) if packed.any() else (),
        )
        return Pack(digest, self._size, locations)

    def close(self) -> None:
        """Closes the file. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def write_pack(
    segment: Path,
    index: LayerIndex,
    target: Path,
    *,
    threads: int | None = None,
    advance: Callable[[int], object] = lambda count: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Pack:
    """Makes the pack of a finished segment; blocking.

    Args:
        segment: The segment's file.
        index: Its index.
        target: The pack's file, which may not exist; the caller deletes it after a failure.
        threads: That compress; as many as there are processors by default.
        advance: Told the segment's bytes as they are done, in this thread.
        stopped: Asked now and then; True ends the work with :class:`castoff.layers.pipeline.Stopped`.

    Raises:
        NotFound: There is no segment.
        DigestMismatch: The segment is damaged: what is published is what was converted, or nothing.
        NoSpace, Unavailable: The disk is full, or failed.
    """
    try:
        descriptor = os.open(segment, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"{segment}: no such segment") from error
    except OSError as error:
        raise Unavailable(f"{segment}: {error.strerror}") from error
    workers = threads or len(os.sched_getaffinity(0))
    writer = None
    try:
        writer = PackWriter(target)
        with ThreadPoolExecutor(workers, "pack") as pool:
            for first, frames in _in_order(pool, workers, descriptor, segment, index):
                if stopped():
                    raise Stopped
                writer.add(frames)
                advance(sum(chunk_size(index, number) for number in range(first, first + len(frames))))
        return writer.finish()
    finally:
        if writer is not None:
            writer.close()
        os.close(descriptor)


def pack_buffers(channel: Channel[Buffer], packed: Channel[Buffer], zero: Sequence[int], target: Path) -> Pack:
    """Packs the chunks of what comes through ``channel`` and passes it on, unchanged: a stage of a conversion.

    Args:
        channel: The segment's buffers, in order, each beginning on a chunk.
        packed: Where they go on.
        zero: For each chunk that came, whether it is all zeros.
        target: The pack's file, which may not exist.
    """
    writer = PackWriter(target)
    running: deque[tuple[Buffer, Future[list[bytes]]]] = deque()

    def pass_on() -> None:
        buffer, frames = running.popleft()
        writer.add(frames.result())
        packed.put(buffer)

    try:
        with ThreadPoolExecutor(HELD - 1, "pack") as pool:
            while (buffer := channel.get()) is not None:
                running.append((buffer, pool.submit(_pack_buffer, buffer, zero)))
                if len(running) == HELD:  # the others go round: were all held here, none would come
                    pass_on()
            while running:
                pass_on()
        packed.close()
        return writer.finish()
    finally:
        writer.close()


def _pack_buffer(buffer: Buffer, zero: Sequence[int]) -> list[bytes]:
    """The frames of a buffer's chunks."""
    first = buffer.offset // CHUNK
    chunks = [buffer.view[at : min(at + CHUNK, buffer.filled)] for at in range(0, buffer.filled, CHUNK)]
    return _frames(chunks, zero[first : first + len(chunks)])


def _frames(chunks: Sequence[bytes | memoryview], zero: Sequence[int]) -> list[bytes]:
    """The chunks' frames, empty ones for chunks of zeros."""
    frames = iter(pack_chunks([chunk for chunk, empty in zip(chunks, zero, strict=True) if not empty]))
    return [b"" if empty else next(frames) for empty in zero]


def _in_order(
    pool: ThreadPoolExecutor, workers: int, descriptor: int, segment: Path, index: LayerIndex
) -> Iterator[tuple[int, list[bytes]]]:
    """Runs of frames in the order of the segment, with the first chunk's number; few are under way at a time."""
    running: deque[tuple[int, Future[list[bytes]]]] = deque()
    try:
        for first in range(0, len(index.digests), _RUN):
            running.append((first, pool.submit(_pack_run, descriptor, segment, index, first)))
            if len(running) > 2 * workers:
                number, done = running.popleft()
                yield number, done.result()
        while running:
            number, done = running.popleft()
            yield number, done.result()
    finally:
        for _, left in running:
            left.cancel()


def _pack_run(descriptor: int, segment: Path, index: LayerIndex, first: int) -> list[bytes]:
    """The frames of a run of chunks, read at once."""
    buffer: Buffer | None = getattr(_local, "buffer", None)
    if buffer is None:
        buffer = _local.buffer = Buffer(_RUN * index.chunk_size)
    start, count = first * index.chunk_size, min(_RUN, len(index.digests) - first)
    size = min(start + count * index.chunk_size, index.segment_size) - start
    try:
        read = os.preadv(descriptor, [buffer.view[:size]], start)
    except OSError as error:
        raise Unavailable(f"{segment}: {error.strerror}") from error
    chunks = [buffer.view[at : min(at + index.chunk_size, read)] for at in range(0, size, index.chunk_size)]
    zero = index.zero[first : first + count].tolist()
    for number, (chunk, empty) in enumerate(zip(chunks, zero, strict=True), first):
        if not empty:
            verify_chunk(index, number, chunk)
    return _frames(chunks, zero)
