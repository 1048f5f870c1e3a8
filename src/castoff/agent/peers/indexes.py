"""Published indexes of layers that this host converted, made when another host first asks for one, and signed.

A converted layer's own index does not say where its chunks would lie in a pack; that costs a compression of all of it, which
is spent only where somebody wants the layer. The pack itself is thrown away: frames are made anew (castoff.agent.peers.shelf).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import OrderedDict
from dataclasses import replace
from typing import Final

from castoff.artifact.keys import encode_signature, host_key
from castoff.errors import CastoffError, NotFound
from castoff.image.digest import Digest
from castoff.layers.index import read_index
from castoff.layers.locations import LocationKind
from castoff.layers.packing import write_pack
from castoff.layers.pipeline import Stopped
from castoff.layers.published import publish_index
from castoff.peers.indexes import SignedIndex
from castoff.store.builds import uninterrupted
from castoff.store.store import Store

__all__ = ["Indexes"]

_KEPT: Final = 64 << 20


class Indexes:
    """Signed indexes by layer; close it.

    Args:
        store: Where layers are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: OrderedDict[Digest, SignedIndex] = OrderedDict()
        self._making: dict[Digest, asyncio.Task[SignedIndex]] = {}
        self._alone = asyncio.Semaphore(1)
        self._stop = threading.Event()

    async def close(self) -> None:
        """Ends what is being made."""
        self._stop.set()
        for task in self._making.values():
            task.cancel()
        await asyncio.gather(*self._making.values(), return_exceptions=True)

    async def get(self, diff_id: Digest, wait: float) -> SignedIndex | None:
        """A layer's; None: it is being made, and was not there within ``wait`` seconds.

        Raises:
            NotFound: The layer is not here, or not all of it.
            CastoffError: It is broken, or the disk is full.
        """
        kept = self._kept.get(diff_id)
        if kept is not None:
            self._kept.move_to_end(diff_id)
            return kept
        task = self._making.get(diff_id)
        if task is None:
            task = self._making[diff_id] = asyncio.create_task(self._make(diff_id))
            task.add_done_callback(lambda _: self._making.pop(diff_id, None))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left who asked
        done, _ = await asyncio.wait([task], timeout=wait)
        return task.result() if done else None

    async def _make(self, diff_id: Digest) -> SignedIndex:
        async with self._alone:  # packing takes all processors
            signed = await uninterrupted(self._signed, diff_id, cancelled=self._stop.set)
        self._kept[diff_id] = signed
        while len(self._kept) > 1 and sum(len(one.data) for one in self._kept.values()) > _KEPT:
            self._kept.popitem(last=False)
        return signed

    def _signed(self, diff_id: Digest) -> SignedIndex:
        """Blocks."""
        layer = self._store.layer(diff_id)
        if layer is None:
            raise NotFound(f"layer {diff_id} is not here")
        target = self._store.root / "tmp" / f"index-{diff_id.hex}.{os.urandom(4).hex()}"
        try:
            if not layer.complete:
                raise NotFound(f"layer {diff_id} is not whole here")
            index = read_index(layer.index)
            if not (index.zero | (index.locations.kind == LocationKind.PACK)).all():
                self._store.require(index.segment_size)
                pack = write_pack(layer.segment, index, target, stopped=self._stop.is_set)
                index = replace(index, locations=pack.locations)
            data = publish_index(index)
        except Stopped as error:
            raise CastoffError("the agent ends") from error
        finally:
            layer.pin.close()
            with contextlib.suppress(FileNotFoundError):
                target.unlink()
        key = host_key(self._store.state)
        unsigned = SignedIndex(data, str(key.public), "")
        return replace(unsigned, signature=encode_signature(key.sign(unsigned.statement(diff_id))))
