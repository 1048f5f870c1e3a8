"""The paths that one layer makes, changes or uses, in arrays: 50 bytes a path, where a dict of objects takes 270.

A path is found by its key (:mod:`castoff.ext4.lexical`) by open addressing with linear probing (Knuth, The Art of Computer
Programming 3, 6.4, algorithm L). Who makes an image chooses its names, so where a key is looked for depends on a number that is
drawn anew each time.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from castoff.ext4.lexical import ROOT_KEY

__all__ = ["Path", "PathColumns", "Paths"]

_NONE = -1
_MASK = (1 << 64) - 1
_SMALLEST = 10
"""Bits of the number of places to begin with."""

_KNOWN = 1
_FRESH = 2


class Path(NamedTuple):
    """What is known of a path."""

    parent: int
    """Its directory's key; the root is its own."""
    item: int
    """The item that names it."""
    inode: int
    """The item that is its inode; -1: the path is gone."""


class PathColumns(NamedTuple):
    """All paths that are known, sorted by key."""

    key: NDArray[np.uint64]
    parent: NDArray[np.uint64]
    item: NDArray[np.int32]
    inode: NDArray[np.int32]
    fresh: NDArray[np.bool_]


class Paths:
    """Paths by key, and in each directory those that are known in it."""

    def __init__(self) -> None:
        self._key = array("Q")
        self._item, self._inode, self._parent = array("i"), array("i"), array("i")
        self._first_child, self._next_child = array("i"), array("i")
        self._flags = bytearray()
        self._factor = secrets.randbits(64) | 1
        self._make_places(_SMALLEST)

    def __contains__(self, key: int) -> bool:
        return self._known(key) != _NONE

    def get(self, key: int) -> Path | None:
        """What has a path; None where that is not known."""
        number = self._known(key)
        if number == _NONE:
            return None
        return Path(self._key[self._parent[number]], self._item[number], self._inode[number])

    def put(self, key: int, path: Path) -> None:
        """Says what has a path. Its directory must be known, if it is not the root."""
        number = self._number(key)
        if number == _NONE:
            number = self._append(key)
        self._item[number], self._inode[number] = path.item, path.inode
        if self._flags[number] & _KNOWN:
            return
        self._flags[number] |= _KNOWN
        if key == ROOT_KEY:
            self._parent[number] = number
            return
        parent = self._known(path.parent)
        self._parent[number] = parent
        self._next_child[number] = self._first_child[parent]
        self._first_child[parent] = number

    def is_fresh(self, key: int) -> bool:
        """Whether :meth:`refresh` was ever said of a path."""
        number = self._number(key)
        return number != _NONE and bool(self._flags[number] & _FRESH)

    def refresh(self, key: int) -> None:
        """Says of a known path that it is a directory in which nothing of the lower layers is seen."""
        self._flags[self._known(key)] |= _FRESH

    def children(self, key: int) -> Iterator[int]:
        """The keys of what is known in a directory."""
        for child in self._children(self._known(key)):
            yield self._key[child]

    def forget_below(self, key: int) -> None:
        """Makes all below a path unknown, if it is known itself."""
        below = [number] if (number := self._known(key)) != _NONE else []
        while below:
            directory = below.pop()
            for child in self._children(directory):
                below.append(child)
                self._flags[child] &= ~_KNOWN
            self._first_child[directory] = _NONE

    def columns(self) -> PathColumns:
        """All that is known."""
        flags = np.frombuffer(self._flags, dtype=np.uint8)
        key = np.frombuffer(self._key, dtype=np.uint64)
        here = np.flatnonzero(flags & _KNOWN)
        here = here[np.argsort(key[here])]
        parent = key[np.frombuffer(self._parent, dtype=np.int32)[here]]
        item, inode = (np.frombuffer(column, dtype=np.int32)[here] for column in (self._item, self._inode))
        return PathColumns(key[here], parent, item, inode, (flags[here] & _FRESH).astype(bool))

    def _children(self, number: int) -> Iterator[int]:
        child = self._first_child[number]
        while child != _NONE:
            yield child
            child = self._next_child[child]

    def _known(self, key: int) -> int:
        """The number of a path that is known."""
        number = self._number(key)
        return number if number != _NONE and self._flags[number] & _KNOWN else _NONE

    def _number(self, key: int) -> int:
        """The number of a path that is known, or was."""
        return self._places[self._place(key)] - 1

    def _place(self, key: int) -> int:
        """Where a key is, or the empty place where it would be."""
        keys, places, last = self._key, self._places, len(self._places) - 1
        place = (key * self._factor & _MASK) >> self._shift
        while (number := places[place]) and keys[number - 1] != key:
            place = place + 1 & last
        return place

    def _append(self, key: int) -> int:
        if 2 * len(self._key) >= len(self._places):
            self._make_places(65 - self._shift)
        number = len(self._key)
        self._places[self._place(key)] = number + 1
        self._key.append(key)
        for column in (self._item, self._inode, self._parent, self._first_child, self._next_child):
            column.append(_NONE)
        self._flags.append(0)
        return number

    def _make_places(self, bits: int) -> None:
        """Makes places anew, ``2 ** bits`` of them: each the number of a path plus one, 0 where it is empty."""
        self._shift = 64 - bits
        self._places = array("I", bytes(4 << bits))
        for number, key in enumerate(self._key):
            self._places[self._place(key)] = number + 1
