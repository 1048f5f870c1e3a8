"""Frames of chunks as they came in, kept beside their layer for a while: other hosts that want the same are given those.

A host that has a layer has its segment and no pack, and can make each frame anew (castoff.agent.peers.shelf). That costs a
millisecond a chunk, though, and when many hosts begin together every one of them would make every frame again that it has just
taken apart. So whoever fetches chunks writes the frames into a sparse file of the layer, one slot a chunk, and the agent, which
may be another process, reads them there until nobody has asked for a while.

Nothing is flushed, and so the file counts for this boot of the machine alone: its name has the boot's id. A slot's head is
written after its frame, and a chunk's bit in ``have`` after both.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from castoff.image.digest import Digest
from castoff.layers.index import LayerIndex
from castoff.peers.wire import FRAME
from castoff.store.layers import layer_path
from castoff.store.store import Store

__all__ = ["KeptFrames", "frames_file", "kept_files", "kept_frame"]

_HEAD = struct.Struct("<8sII")
_MAGIC = b"castoffF"
_SLOT = FRAME + 4096
_PREFIX = "frames-"


def frames_file(layer: Path) -> Path:
    """Where the frames of the layer in a directory are kept, on this boot."""
    return layer / f"{_PREFIX}{_boot()}"


def kept_files(root: Path) -> Iterator[Path]:
    """All such files of a store, also those of earlier boots, which nobody may read."""
    yield from (root / "layers").glob(f"*/{_PREFIX}*")


def kept_frame(descriptor: int, number: int, length: int) -> bytes | None:
    """A chunk's frame of just ``length`` bytes in an open file; None: it is not there. Blocks."""
    data = os.pread(descriptor, _HEAD.size + length, number * _SLOT)
    if len(data) != _HEAD.size + length or _HEAD.unpack_from(data) != (_MAGIC, number, length):
        return None
    return data[_HEAD.size :]


class KeptFrames:
    """Keeps frames of whoever fetches. Any thread may call it. Close it.

    Args:
        store: Where the layers are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._files: dict[Digest, int | None] = {}
        self._lock = threading.Lock()
        self._closed = False

    def keep(self, index: LayerIndex, number: int, frame: bytes | memoryview) -> None:
        """Keeps a verified chunk's frame, where there is room for it. Blocks, for no longer than a write into memory takes."""
        if len(frame) > FRAME:
            return
        with self._lock:  # a descriptor that was closed meanwhile may be another file's
            descriptor = self._file(index)
            if descriptor is None:
                return
            try:
                os.pwrite(descriptor, frame, number * _SLOT + _HEAD.size)
                os.pwrite(descriptor, _HEAD.pack(_MAGIC, number, len(frame)), number * _SLOT)
            except OSError:  # a full disk: frames are made anew
                self._close(index.diff_id)

    def close(self) -> None:
        """Closes the files; what is in them stays."""
        with self._lock:
            self._closed = True
            for diff_id in self._files:
                self._close(diff_id)

    def _file(self, index: LayerIndex) -> int | None:
        if index.diff_id not in self._files:
            self._files[index.diff_id] = None if self._closed else self._open(index)
        return self._files[index.diff_id]

    def _open(self, index: LayerIndex) -> int | None:
        if self._store.room(needed := int(index.locations.length.sum())) < needed:
            return None
        with contextlib.suppress(OSError):  # the layer went
            path = frames_file(layer_path(self._store.root, index.diff_id))
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        return None

    def _close(self, diff_id: Digest) -> None:
        descriptor, self._files[diff_id] = self._files.get(diff_id), None
        if descriptor is not None:
            os.close(descriptor)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
