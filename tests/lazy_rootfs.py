"""A rootfs that is not all here, of a real layer, and a core that brings the rest as a test wants it: for fronts' tests.

rootfs = make_lazy(directory, LayerTar().file("data", ...))
core = Core(rootfs, fill=descriptor)     # castoff.hydrate.front.Hydration
core.hold()                              # requests wait
core.release()                           # and are answered
"""

from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from castoff.ext4.compose import compose
from castoff.hydrate.front import Answer, Recorder
from castoff.hydrate.map import LazyMap, write_map
from castoff.hydrate.record import CLONE, MAP, STATE
from castoff.hydrate.state import PRESENT, ChunkStates, write_state
from castoff.layers.toc import CHUNK
from ext4_images import compose_file, convert_tar

__all__ = ["Core", "LazyFiles", "make_lazy"]


@dataclass(frozen=True)
class LazyFiles:
    """A directory as castoff.hydrate.record has it, without the record, and the same rootfs whole."""

    directory: Path
    whole: Path
    size: int

    @property
    def map(self) -> LazyMap:
        return LazyMap.read(self.directory / MAP, size=self.size, layers=1)

    def bytes(self) -> bytes:
        """What every reader must see: a row's bytes, and nothing where a chunk is dead or zero."""
        return self.whole.read_bytes()


def make_lazy(directory: Path, tar: bytes, *, size: int | None = None) -> LazyFiles:
    """Converts and composes one layer: ``root.ext4`` has the metadata alone."""
    layer = convert_tar(tar, directory / "layer")
    whole = directory / "whole.ext4"
    composition = compose_file(whole, [layer], size=size)
    lazy = directory / "lazy"
    lazy.mkdir()
    descriptor = os.open(lazy / CLONE, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    compose([(layer.diff_id, layer.tables)], size=composition.size).write(descriptor)
    os.close(descriptor)
    (placed,) = composition.placements
    chunks = np.flatnonzero(composition.live_chunks(0))
    write_map(lazy / MAP, chunks + placed.offset // CHUNK, np.zeros_like(chunks), chunks)
    write_state(lazy / STATE, len(chunks))
    return LazyFiles(lazy, whole, composition.size)


class Core:
    """Brings chunks out of the whole rootfs, each after ``delay`` seconds, on a thread of its own. Close it."""

    def __init__(self, rootfs: LazyFiles, fill: int, *, delay: float = 0.0) -> None:
        self.recorder: Recorder | None = None
        self.delay = delay
        self.failing = False
        """Requests are refused with EIO."""
        self.waiting: list[tuple[int, int, Answer]] = []
        self._map = rootfs.map
        self._states = ChunkStates(rootfs.directory / STATE, self._map)
        self._fill = fill
        self._whole = os.open(rootfs.whole, os.O_RDONLY)
        self._change = threading.Condition()
        self._held = False
        self._closed = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def missing(self) -> int:
        """Chunks that are not here."""
        return len(self._map) - self._states.present

    @property
    def holes(self) -> bytearray:
        return self._states.holes

    def present(self, start: int, end: int) -> bool:
        return self._states.available(start, end)

    def want(self, start: int, end: int, answer: Answer) -> None:
        with self._change:
            self.waiting.append((start, end, answer))
            self._change.notify_all()

    def hold(self) -> None:
        """From now on requests wait."""
        with self._change:
            self._held = True

    def release(self) -> None:
        """They are answered."""
        with self._change:
            self._held = False
            self._change.notify_all()

    def until_waiting(self, count: int, timeout: float = 10) -> None:
        """Returns when ``count`` requests wait."""
        deadline = time.monotonic() + timeout
        while len(self.waiting) < count:
            assert time.monotonic() < deadline, f"{len(self.waiting)} requests wait, not {count}"
            time.sleep(0.002)

    def fill_everything(self) -> None:
        """Every chunk is here."""
        for row in range(len(self._map)):
            self._fill_row(row)

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join()
        self._states.close()
        os.close(self._whole)

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or (self.waiting and not self._held))
                if self._closed:
                    return
                start, end, answer = self.waiting.pop(0)
            time.sleep(self.delay)
            if self.failing:
                answer(errno.EIO)
                continue
            for row in self._map.rows_in(start, end):
                self._fill_row(row)
            answer(0)

    def _fill_row(self, row: int) -> None:
        if self._states[row] == PRESENT:
            return
        assert self._states.begin(row)
        at = self._map.chunk_of[row] * CHUNK
        data = os.pread(self._whole, CHUNK, at)
        assert os.pwrite(self._fill, data, at) == len(data)
        self._states.finish(row)
