"""The pack of a layer: its segment's chunks, each its own zstd frame, one after another (docs/formats.md, "Pack").

One pack is one blob of a registry, read by ranges. Chunks of zeros are left out. The bytes follow from the segment, the
chunk size, and the compressor with its version, which the artifact records: two hosts with the same make the same blob, so
the registry's own deduplication is ours.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

import numpy as np
import zstandard
from blake3 import blake3

from castoff.errors import DigestMismatch, Invalid, NotFound, Unavailable
from castoff.image.digest import Digest
from castoff.layers.index import LayerIndex
from castoff.layers.locations import LocationKind, Locations
from castoff.layers.pipeline import Buffer, Channel, Stopped
from castoff.layers.toc import CHUNK
from castoff.layers.writer import translate

__all__ = [
    "COMPRESSOR",
    "HEAD",
    "HELD",
    "Pack",
    "PackWriter",
    "check_locations",
    "chunk_size",
    "pack_buffers",
    "pack_chunk",
    "pack_chunks",
    "unpack_chunk",
    "verify_chunk",
    "write_pack",
]

LEVEL = 3
COMPRESSOR = f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))} level {LEVEL}"
"""What made the frames: with another, the same chunks give other bytes, as good."""
_SKIPPABLE = 0x184D2A50
HEAD = Struct("<II8sI").pack(_SKIPPABLE, 12, b"castoffP", 1)
"""The pack's first bytes: a skippable frame (RFC 8878 3.1.2) with magic and version. So no pack is empty, which not every
registry takes, and ``zstd -d`` makes of a pack the segment without its chunks of zeros."""
_RUN = 4
"""Chunks that a thread reads and compresses at once."""
HELD = min(4, len(os.sched_getaffinity(0))) + 1
"""Buffers that a conversion's packing holds at most; as many threads compress as there are processors, up to 4."""
_local = threading.local()


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack that was made."""

    digest: Digest
    size: int
    locations: Locations
    """Where in it each chunk of the segment is."""
    compressor: str = COMPRESSOR


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


def pack_chunks(chunks: Sequence[bytes | memoryview]) -> list[bytes]:
    """The chunks' frames, in order, each with its content size and without a checksum: BLAKE3 is what counts.

    One call of zstandard for all: it keeps the GIL away for as long, and getting that back is what costs beside a thread
    that parses a tar (up to 5 ms each time, CPython's switch interval; a chunk takes 1 ms).
    """
    if not chunks:
        return []
    compressor: zstandard.ZstdCompressor | None = getattr(_local, "compressor", None)
    if compressor is None:  # one a thread: neither may be used by two at once
        compressor = _local.compressor = zstandard.ZstdCompressor(
            level=LEVEL, write_checksum=False, write_content_size=True, write_dict_id=False
        )
    frames = compressor.multi_compress_to_buffer(list(chunks), threads=0)
    return [frames[number].tobytes() for number in range(len(frames))]


def pack_chunk(data: bytes | memoryview) -> bytes:
    """One chunk's frame, as :func:`pack_chunks` makes it."""
    return pack_chunks([data])[0]


def unpack_chunk(frame: bytes | memoryview, size: int) -> bytes:
    """The chunk in a frame that came from anywhere: exactly ``size`` bytes, which are all the memory that it can take.

    Raises:
        Invalid: It is no zstd frame, has another size, or something follows it.
    """
    decompressor: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    try:
        told = zstandard.get_frame_parameters(frame).content_size
        if told != size:
            raise Invalid(f"a frame says that it holds {told} bytes and should hold {size}")
        return decompressor.decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Invalid(f"a chunk's frame cannot be decompressed: {error}") from error


def chunk_size(index: LayerIndex, number: int) -> int:
    """Bytes of a chunk: the segment's last one may be shorter."""
    return min(index.chunk_size, index.segment_size - number * index.chunk_size)


def verify_chunk(index: LayerIndex, number: int, data: bytes | memoryview) -> None:
    """Checks a chunk's bytes.

    Raises:
        DigestMismatch: They are not those of chunk ``number``.
    """
    expected, actual = index.digests[number].tobytes(), blake3(data).digest()
    if actual != expected:
        what = f"chunk {number} of layer {index.diff_id}"
        raise DigestMismatch(what, expected=f"blake3:{expected.hex()}", actual=f"blake3:{actual.hex()}")


def check_locations(index: LayerIndex, pack: Digest, size: int) -> None:
    """Checks that an index says of every chunk where it lies in the pack of ``size`` bytes.

    Raises:
        Invalid: A chunk is nowhere, in another blob, or outside of the pack.
    """
    where = index.locations
    here = where.kind == LocationKind.PACK
    ends = where.offset + where.length
    if where.blobs not in ((), (pack,)) or (here == index.zero).any():
        raise Invalid(f"the index of layer {index.diff_id} has chunks that are not in its pack")
    if (where.length[here] == 0).any() or (where.offset[here] < len(HEAD)).any() or (ends[here] > size).any():
        raise Invalid(f"the index of layer {index.diff_id} has chunks outside of its pack's {size} bytes")


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
