"""The layers of an image, one upon the other: their items under one numbering.

An item of layer L has the number ``base[L] + item``. Layer 0 is no image's: it holds what every filesystem has, a root directory
and ``lost+found``. A *slot* is a directory as a layer names it; slots of several layers may be one directory, and have then the
same key.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from castoff.ext4.strings import Strings
from castoff.ext4.tables import LayerTables, compile_tables
from castoff.layers.toc import Kind, Toc

__all__ = ["LOST_AND_FOUND", "Stack", "own_layer"]

LOST_AND_FOUND = b"lost+found"


@cache
def own_layer() -> LayerTables:
    """The tables of a root directory with lost+found: root's, as mke2fs makes them."""
    return compile_tables(_directories([b"", LOST_AND_FOUND], modes=(0o755, 0o700)))


def _directories(names: Sequence[bytes], modes: Sequence[int] = ()) -> Toc:
    """A layer of directories in its root, root's own and of 1970."""
    rows = len(names)
    none8, none32, zero32 = np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.uint32), np.zeros(rows, dtype=np.uint32)
    return Toc(
        directory_pool=none8,
        directory_offsets=np.zeros(2, dtype=np.uint32),
        directory=zero32,
        name_pool=np.frombuffer(b"".join(names), dtype=np.uint8),
        name_offsets=np.cumsum([0, *map(len, names)]).astype(np.uint32),
        kind=np.full(rows, Kind.DIRECTORY, dtype=np.uint8),
        mode=np.array(modes or [0o755] * rows, dtype=np.uint16),
        uid=zero32,
        gid=zero32,
        mtime=np.zeros(rows, dtype=np.int64),
        mtime_ns=zero32,
        size=np.zeros(rows, dtype=np.uint64),
        rdev_major=zero32,
        rdev_minor=zero32,
        link_pool=none8,
        link_offsets=np.zeros(rows + 1, dtype=np.uint32),
        xattr=zero32,
        xattr_pool=none8,
        xattr_offsets=np.zeros(2, dtype=np.uint32),
        extent_row=none32,
        extent_logical=none32,
        extent_segment=none32,
        extent_blocks=none32,
        segment_size=0,
    )


class Stack:
    """Columns of all items of all layers."""

    def __init__(self, layers: Sequence[LayerTables]) -> None:
        self.layers: list[LayerTables] = []
        self.base = np.zeros(1, dtype=np.int64)
        self.names = Strings.from_list([])
        self.kind = np.zeros(0, dtype=np.uint8)
        self.major = np.zeros(0, dtype=np.uint32)
        self.slot = np.zeros(0, dtype=np.uint32)
        self.slot_key = np.zeros(0, dtype=np.uint64)
        self._append([own_layer(), *layers])

    def _append(self, layers: Sequence[LayerTables]) -> None:
        slots = len(self.slot_key) + np.cumsum([0, *(len(layer) - layer.rows for layer in layers)])
        placed = [layer.directory + np.uint32(first) for layer, first in zip(layers, slots, strict=False)]
        self.layers += layers
        self.base = np.cumsum([0, *(len(layer) for layer in self.layers)]).astype(np.int64)
        self.names = Strings.joined([self.names, *(layer.names for layer in layers)])
        self.kind = np.concatenate([self.kind, *(layer.kind for layer in layers)])
        self.major = np.concatenate([self.major, *(layer.major for layer in layers)])
        self.slot = np.concatenate([self.slot, *placed])
        self.slot_key = np.concatenate([self.slot_key, *(layer.key[layer.rows :] for layer in layers)])
        for layer in layers:
            layer.forget()

    def add_directories(self, names: Sequence[bytes]) -> None:
        """Appends a layer of directories with these names, which have their place by :meth:`add_slots` only."""
        if names:
            self._append([compile_tables(_directories(names))])

    def add_slots(self, keys: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """New slots for the directories with these keys: which slot each of ``keys`` has."""
        unique, which = np.unique(keys, return_inverse=True)
        first = len(self.slot_key)
        self.slot_key = np.concatenate([self.slot_key, unique])
        return (first + which).astype(np.uint32)

    def __len__(self) -> int:
        return len(self.kind)

    def layer_of(self, item: int) -> int:
        """The layer that an item belongs to."""
        return int(np.searchsorted(self.base, item, side="right")) - 1

    def path(self, item: int) -> str:
        """An item's path as its layer has it, for messages."""
        layer = self.layer_of(item)
        return self.layers[layer].path(item - int(self.base[layer]))

    def same_path(self, mine: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether items whose keys are equal have one parent and one name, byte by byte."""
        differs = self.names.differing(mine, self.names, other)
        differs |= self.slot_key[self.slot[mine]] != self.slot_key[self.slot[other]]
        same: NDArray[np.bool_] = ~differs
        return same
