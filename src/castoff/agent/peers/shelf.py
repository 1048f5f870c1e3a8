"""What this host gives to others: frames of chunks that it has, made anew from segments and kept for the next who asks.

A host that has a layer has no pack of it, but the same compressor makes the same frames (castoff.layers.pack), in a
millisecond each. The latest stay in memory: when many hosts begin together, all of them want the same.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from castoff.errors import Conflict, NotFound
from castoff.image.digest import Digest
from castoff.layers.pack import pack_chunk
from castoff.layers.toc import CHUNK
from castoff.store.have import Have
from castoff.store.layers import StoredLayer
from castoff.store.store import Store

__all__ = ["Shelf"]

_THREADS = 2
_Key: TypeAlias = tuple[Digest, int]


class Shelf:
    """Frames by layer and chunk. Close it.

    Args:
        store: Where layers are.
        size: Bytes of frames that are kept.
    """

    def __init__(self, store: Store, size: int = 64 << 20) -> None:
        self._store = store
        self._room = size
        self._kept: OrderedDict[_Key, bytes] = OrderedDict()
        self._size = 0
        self._threads = ThreadPoolExecutor(_THREADS, "castoff-shelf")

    def close(self) -> None:
        """Ends its threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def have(self, diff_id: Digest) -> bytes:
        """The bitmap of a layer's chunks that are here now.

        Raises:
            NotFound: Nothing is known of the layer here.
            Invalid: What is here is broken.
        """

        def read() -> bytes:
            layer = self._layer(diff_id)
            try:
                return _bits(layer.path / "have")
            finally:
                layer.pin.close()

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
        missing = [number for number, _ in wanted if (diff_id, number) not in self._kept]
        made: dict[int, bytes] = {}
        if missing:
            work = asyncio.get_running_loop().run_in_executor(self._threads, self._make, diff_id, missing)
            made = await work
        found = []
        for number, length in wanted:
            key = (diff_id, number)
            frame = made.get(number) or self._kept.get(key)
            if frame is None:  # pushed out by others meanwhile
                frame = (await asyncio.get_running_loop().run_in_executor(self._threads, self._make, diff_id, [number]))[number]
            if len(frame) != length:
                raise Conflict(f"chunk {number} of layer {diff_id} has {len(frame)} bytes here, and not {length}")
            self._keep(key, frame)
            found.append(frame)
        return found

    def _layer(self, diff_id: Digest) -> StoredLayer:
        layer = self._store.layer(diff_id)
        if layer is None:
            raise NotFound(f"layer {diff_id} is not here")
        return layer

    def _make(self, diff_id: Digest, numbers: Sequence[int]) -> dict[int, bytes]:
        """Blocks."""
        layer = self._layer(diff_id)
        try:
            bits, size = _bits(layer.path / "have"), layer.have.segment_size
            for number in numbers:
                if number >= layer.have.chunks or not bits[number >> 3] >> (number & 7) & 1:
                    raise NotFound(f"chunk {number} of layer {diff_id} is not here")
            descriptor = os.open(layer.segment, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                return {
                    number: pack_chunk(os.pread(descriptor, min(CHUNK, size - number * CHUNK), number * CHUNK))
                    for number in numbers
                }
            finally:
                os.close(descriptor)
        finally:
            layer.pin.close()

    def _keep(self, key: _Key, frame: bytes) -> None:
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        self._kept[key] = frame
        self._size += len(frame)
        while self._size > self._room:
            _, old = self._kept.popitem(last=False)
            self._size -= len(old)


def _bits(path: Path) -> bytes:
    return path.read_bytes()[Have.HEADER :]
