"""``lazy.state``: what is here, one byte a row of the map, shared memory (docs/formats.md).

A row goes absent -> filling -> present and never back from present: a guest may have written into it. The bytes outlive the
hydrator; a successor counts ``filling`` as absent, for no guest was let in before ``present`` stood there. They need not
outlive the host: its machines do not either.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from castoff.errors import Invalid, NotFound
from castoff.hydrate.map import LazyMap
from castoff.hydrate.record import ABSENT, FILLING, PRESENT
from castoff.layers.toc import CHUNK
from castoff.store.durable import replace_file

__all__ = ["ABSENT", "FILLING", "PRESENT", "ChunkStates", "write_state"]

_UNUSED = 2
"""Of a chunk in ``holes``: it is here, and nobody has used it yet."""


def write_state(path: Path, count: int, present: Iterable[int] = ()) -> None:
    """Writes the state of ``count`` rows, absent but for those in ``present``."""
    state = bytearray(count)
    for row in present:
        state[row] = PRESENT
    replace_file(path, bytes(state), mode=0o600, durable=False)


class ChunkStates:
    """The states of a map's rows.

    One thread (the event loop) moves rows on but for the last step; any thread may ask. ``begin`` is the only way to fill.
    """

    def __init__(self, path: Path, map: LazyMap) -> None:
        """Opens the file, and counts what a predecessor left half filled as absent.

        Raises:
            NotFound: There is none.
            Invalid: It does not fit the map.
        """
        self._map = map
        count = len(map)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise NotFound(f"{path}: no such lazy state") from error
        try:
            if os.fstat(descriptor).st_size != count:
                raise Invalid(f"{path} does not have the map's {count} rows")
            self._bytes: mmap.mmap | bytearray = mmap.mmap(descriptor, count) if count else bytearray()
        finally:
            os.close(descriptor)
        if self._bytes[:].translate(None, bytes((ABSENT, FILLING, PRESENT))):
            raise Invalid(f"{path} holds states that there are none of")
        self.holes = bytearray(map.chunks + 1)
        """[chunks + 1] 1 for each chunk of the rootfs whose row is not present: a range is there if find() finds no 1, one call
        in C. 2 for one that is, and whose first use is to be told. Never another object, nor longer: the compiled answerer
        reads it where it is, and lets through where it finds nothing but 0."""
        self._watched: set[int] = set()
        for row, state in enumerate(self._bytes[:]):
            if state != PRESENT:
                self._bytes[row] = ABSENT
                self.holes[map.chunk_of[row]] = 1

    @property
    def complete(self) -> bool:
        """Whether every row is present."""
        return self.holes.find(1) < 0

    @property
    def present(self) -> int:
        """Rows that are present."""
        return self._bytes[:].count(PRESENT)

    def __getitem__(self, row: int) -> int:
        return self._bytes[row]

    def available(self, start: int, end: int) -> bool:
        """Whether bytes ``start`` to ``end`` of the rootfs are all there. Any thread; no lock."""
        return self.holes.find(1, start // CHUNK, -(-end // CHUNK) if end > start else start // CHUNK + 1) < 0

    def watch(self, row: int) -> None:
        """An absent row's first use, once it is present, is to be told by :meth:`used`. In the event loop."""
        self._watched.add(row)

    def is_watched(self, row: int) -> bool:
        """Whether it was given to :meth:`watch`."""
        return row in self._watched

    def used(self, start: int, end: int) -> list[int]:
        """Rows of these bytes, which are all there, that were watched and are used for the first time. One thread at a time."""
        found, last = [], -(-end // CHUNK) if end > start else start // CHUNK + 1
        chunk = self.holes.find(_UNUSED, start // CHUNK, last)
        while chunk >= 0:
            self.holes[chunk] = 0
            found.append(self._map.row_of[chunk])
            chunk = self.holes.find(_UNUSED, chunk + 1, last)
        return found

    def begin(self, row: int) -> bool:
        """Absent -> filling; False where it was not absent: then it is not to be filled."""
        if self._bytes[row] != ABSENT:
            return False
        self._bytes[row] = FILLING
        return True

    def abandon(self, row: int) -> None:
        """Filling -> absent: filling failed."""
        assert self._bytes[row] == FILLING
        self._bytes[row] = ABSENT

    def finish(self, row: int) -> None:
        """Filling -> present, once the bytes are in the file. From here on the row is the guest's."""
        assert self._bytes[row] == FILLING
        self._bytes[row] = PRESENT
        self.holes[self._map.chunk_of[row]] = _UNUSED if row in self._watched else 0

    def absent(self) -> list[int]:
        """Rows that are absent now, ascending."""
        return [row for row, state in enumerate(self._bytes[:]) if state == ABSENT]

    def close(self) -> None:
        """Unmaps the file."""
        if isinstance(self._bytes, mmap.mmap):
            self._bytes.close()
