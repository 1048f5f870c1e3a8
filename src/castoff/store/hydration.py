"""Layers that come in chunk by chunk: how one begins, and the record of what is here.

    begin_layer (castoff.store.store) -> a directory like any other layer's: the segment at its full length, reserved and
                                         empty; the index with its locations; ``have`` with the bits of zero chunks
    whoever hydrates                  -> writes verified chunks into the segment, fdatasync, HaveMap.set_many, ... complete()

Any number of processes may fill one layer at a time: a chunk has the same bytes whoever writes it, and bits are only ever
added, under a lock. Whoever dies loses bits that it had not yet set, never a chunk whose bit stands.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Internal, Invalid, NotFound
from castoff.layers import allocate
from castoff.layers.index import LayerIndex, LocationKind, write_index
from castoff.layers.toc import CHUNK
from castoff.store.have import Have, parse_have

__all__ = ["HaveMap", "fill_directory", "present_chunks"]

_HOLE = 64 << 20
"""Bytes of zeros in a row that are left a hole: as castoff.layers.writer has it, for the same reason."""


class HaveMap:
    """The bits of one layer's ``have``, to be read and added to, from any thread. Close it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._have, self._bits = self._read()

    @classmethod
    def open(cls, directory: Path) -> HaveMap:
        """Opens the ``have`` of the layer in ``directory``.

        Raises:
            NotFound: There is none.
            Invalid: It is broken.
        """
        path = directory / "have"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise NotFound(f"{path}: no such layer") from error
        try:
            return cls(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def segment_size(self) -> int:
        """Bytes of the segment."""
        return self._have.segment_size

    @property
    def chunks(self) -> int:
        """Chunks of the segment."""
        return self._have.chunks

    @property
    def is_complete(self) -> bool:
        """Whether the file says so."""
        return self._have.complete

    def has(self, number: int) -> bool:
        """Whether the chunk is here, as far as was known at the last ``set_many`` or ``refresh``."""
        return bool(self._bits[number >> 3] >> (number & 7) & 1)

    def present(self) -> NDArray[np.bool_]:
        """[C] which chunks are here."""
        return _unpack(self._bits, self.chunks)

    def missing(self) -> int:
        """How many chunks are not here."""
        return self.chunks - int.from_bytes(self._bits, "little").bit_count()

    def refresh(self) -> None:
        """Looks at what others have added."""
        self._have, self._bits = self._read()

    def set_many(self, numbers: Iterable[int]) -> None:
        """Adds chunks. They must be verified, written, and fdatasync'ed: a bit may reach the disk at any time from here on."""
        with self._alone():
            for number in numbers:
                if not 0 <= number < self.chunks:
                    raise Internal(f"{self._path} has {self.chunks} chunks, and was told of chunk {number}")
                self._bits[number >> 3] |= 1 << (number & 7)
            self._write(Have.HEADER, self._bits)

    def clear(self, numbers: Iterable[int]) -> None:
        """Takes chunks away, durably, before they become holes. Nobody else may have the layer."""
        with self._alone():
            for number in numbers:
                self._bits[number >> 3] &= ~(1 << (number & 7))
            self._have = Have(self.segment_size, self.chunks, complete=self.missing() == 0)
            self._write(0, self._have.to_bytes()[: Have.HEADER] + self._bits)
            os.fdatasync(self._descriptor)

    def complete(self) -> None:
        """Says, durably, that every chunk is here.

        Raises:
            Internal: One is not.
        """
        with self._alone():
            if self.missing():
                raise Internal(f"{self._path} lacks {self.missing()} chunks and cannot be complete")
            os.fdatasync(self._descriptor)  # the bits before the flag that stands for them
            self._have = Have.full(self.segment_size)
            self._write(0, self._have.to_bytes()[: Have.HEADER])
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Closes the file. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> HaveMap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """For the block, which takes microseconds, nobody else adds; what others have added is known in it."""
        with self._lock:  # threads that share this object share the flock
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                self.refresh()
                yield
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _read(self) -> tuple[Have, bytearray]:
        size = os.fstat(self._descriptor).st_size
        data = os.pread(self._descriptor, size, 0)
        return parse_have(data, size, self._path), bytearray(data[Have.HEADER :])

    def _write(self, offset: int, data: bytes | bytearray) -> None:
        if os.pwrite(self._descriptor, data, offset) != len(data):
            raise Internal(f"{self._path} was written in part")


def present_chunks(directory: Path) -> NDArray[np.bool_]:
    """[C] which chunks of the layer in ``directory`` are here now.

    Raises:
        NotFound: There is no such layer.
        Invalid: Its ``have`` is broken.
    """
    path = directory / "have"
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such layer") from error
    have = parse_have(data, len(data), path)
    return _unpack(data[Have.HEADER :], have.chunks)


def fill_directory(directory: Path, index: LayerIndex, *, reserve: bool) -> None:
    """Makes the files of a layer of which nothing is here yet.

    Args:
        directory: Empty.
        index: The layer's, with a location in a pack for every chunk that is not zeros.
        reserve: Reserve the segment's blocks, so that the file has few extents and its chunks surely have room.

    Raises:
        Invalid: A chunk is nowhere to be had.
    """
    nowhere = ~index.zero & (index.locations.kind != LocationKind.PACK)
    if nowhere.any():
        raise Invalid(f"layer {index.diff_id}: chunk {int(np.argmax(nowhere))} is in no pack")
    descriptor = os.open(directory / "segment", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.ftruncate(descriptor, index.segment_size)
        if reserve:
            _reserve(descriptor, index)
    finally:
        os.close(descriptor)
    write_index(directory / "index", index)
    header = Have(index.segment_size, len(index.zero), complete=bool(index.zero.all())).to_bytes()[: Have.HEADER]
    (directory / "have").write_bytes(header + np.packbits(index.zero, bitorder="little").tobytes())


def _reserve(descriptor: int, index: LayerIndex) -> None:
    """Reserves all but long runs of zeros. A filesystem that cannot, or is too full, is left with a hole: writes find room."""
    for start, end in _runs(index.zero):
        length = min(end * CHUNK, index.segment_size) - start * CHUNK
        refused = allocate.reserve(descriptor, start * CHUNK, length)
        if refused in (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOSPC, errno.EDQUOT):
            return
        if refused:
            raise OSError(refused, os.strerror(refused))


def _runs(zero: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Runs of chunks, [start, end), between runs of zeros that are worth a hole."""
    edges = np.flatnonzero(np.diff(np.concatenate(([True], zero, [True]))))
    runs: list[tuple[int, int]] = []
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if runs and (start - runs[-1][1]) * CHUNK < _HOLE:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    return runs


def _unpack(bits: bytes | bytearray, chunks: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=chunks, bitorder="little").astype(np.bool_)
