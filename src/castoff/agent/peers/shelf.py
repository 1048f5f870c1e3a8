"""What this host gives to others: frames of chunks that it has, as they came in, or made anew from segments.

A host that has a layer has no pack of it, but the same compressor makes the same frames (castoff.layers.pack), in a
millisecond each. Of a layer that came in lately they lie beside it (castoff.peers.kept); of those that are made anew the
latest stay in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from castoff.errors import Conflict, NotFound
from castoff.image.digest import Digest
from castoff.layers.pack import pack_chunk
from castoff.layers.toc import CHUNK
from castoff.peers.kept import frames_file, kept_files, kept_frame
from castoff.store.have import Have
from castoff.store.layers import StoredLayer, layer_path
from castoff.store.store import Store

__all__ = ["Shelf"]

_THREADS = 2
_KEEP = 120.0
"""Seconds that frames are kept beside their layer when none came in and nobody asked."""
_Key: TypeAlias = tuple[Digest, int]


class Shelf:
    """Frames by layer and chunk. Close it.

    Args:
        store: Where layers are.
        size: Bytes of frames that are kept in memory.
    """

    def __init__(self, store: Store, size: int = 64 << 20) -> None:
        self._store = store
        self._room = size
        self._made: OrderedDict[_Key, bytes] = OrderedDict()
        self._size = 0
        self._asked: dict[str, float] = {}
        self._threads = ThreadPoolExecutor(_THREADS, "castoff-shelf")

    def close(self) -> None:
        """Ends its threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def have_file(self, diff_id: Digest) -> Path:
        """What changes when more of the layer is here."""
        return layer_path(self._store.root, diff_id) / "have"

    async def have(self, diff_id: Digest) -> bytes:
        """The bitmap of a layer's chunks that are here now.

        Raises:
            NotFound: Nothing is known of the layer here.
            Invalid: What is here is broken.
        """

        def read() -> bytes:
            with self._layer(diff_id) as layer:
                return _bits(layer.path / "have")

        return await asyncio.get_running_loop().run_in_executor(self._threads, read)

    async def frames(self, diff_id: Digest, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        """The frames of chunks.

        Args:
            diff_id: The layer.
            wanted: Each chunk's number, and the bytes that the asker expects of its frame.

        Raises:
            NotFound: Not all of them are here.
            Conflict: This host's compressor makes other frames.
        """
        known = {number: frame for number, _ in wanted if (frame := self._made.get((diff_id, number))) is not None}
        missing = [one for one in wanted if one[0] not in known]
        if missing:
            kept, made = await asyncio.get_running_loop().run_in_executor(self._threads, self._read, diff_id, missing)
            known |= kept | made
            for number, frame in made.items():
                self._keep((diff_id, number), frame)
        for number, length in wanted:
            if len(known[number]) != length:
                raise Conflict(f"chunk {number} of layer {diff_id} has {len(known[number])} bytes here, and not {length}")
        return [known[number] for number, _ in wanted]

    def tidy(self) -> None:
        """Removes the frames beside layers that nobody has asked for in a while. Blocks."""
        for path in kept_files(self._store.root):
            with contextlib.suppress(OSError):  # it went with its layer
                used = max(self._asked.get(path.parent.name, 0.0), path.stat().st_mtime)
                if path.name != frames_file(path.parent).name or time.time() - used > _KEEP:
                    path.unlink()
                    self._asked.pop(path.parent.name, None)

    @contextlib.contextmanager
    def _layer(self, diff_id: Digest) -> Iterator[StoredLayer]:
        """The layer, pinned for the block."""
        layer = self._store.layer(diff_id)
        if layer is None:
            raise NotFound(f"layer {diff_id} is not here")
        try:
            yield layer
        finally:
            layer.pin.close()

    def _read(self, diff_id: Digest, wanted: Sequence[tuple[int, int]]) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """The frames that are kept beside the layer, and those that were made, by chunk. Blocks."""
        with self._layer(diff_id) as layer:
            bits, size = _bits(layer.path / "have"), layer.have.segment_size
            for number, _ in wanted:
                if number >= layer.have.chunks or not bits[number >> 3] >> (number & 7) & 1:
                    raise NotFound(f"chunk {number} of layer {diff_id} is not here")
            kept = self._kept(layer, wanted)
            with _opened(layer.segment) as segment:
                made = {
                    number: pack_chunk(os.pread(segment, min(CHUNK, size - number * CHUNK), number * CHUNK))
                    for number, _ in wanted
                    if number not in kept
                }
            return kept, made

    def _kept(self, layer: StoredLayer, wanted: Sequence[tuple[int, int]]) -> dict[int, bytes]:
        try:
            with _opened(frames_file(layer.path)) as file:
                self._asked[layer.path.name] = time.time()
                found = {number: kept_frame(file, number, length) for number, length in wanted}
        except FileNotFoundError:
            return {}
        return {number: frame for number, frame in found.items() if frame is not None}

    def _keep(self, key: _Key, frame: bytes) -> None:
        if key in self._made:
            self._made.move_to_end(key)
            return
        self._made[key] = frame
        self._size += len(frame)
        while self._size > self._room:
            _, old = self._made.popitem(last=False)
            self._size -= len(old)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _bits(path: Path) -> bytes:
    return path.read_bytes()[Have.HEADER :]
