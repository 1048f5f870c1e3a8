"""Applying a layer to the tree that the layers below it make: a join of sorted keys.

The rules are those of the OCI image specification as umoci's and containerd's unpackers follow them: an entry replaces what has
its path, a directory over a directory changes its attributes and keeps what it holds, a whiteout and an opaque
directory hide what lower layers have and nothing of their own layer. A layer whose result depends on the order of its
entries, or that enters a directory through a symlink, is left to :mod:`castoff.ext4.replay`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid
from castoff.ext4.lexical import ROOT_KEY, path_keys
from castoff.ext4.namehash import hash_names
from castoff.ext4.records import Flag
from castoff.ext4.stack import Stack
from castoff.ext4.strings import Strings
from castoff.layers.names import show
from castoff.layers.toc import Kind

__all__ = ["Changes", "NeedsReplay", "Tree", "empty_tree", "merge", "recorded"]


class NeedsReplay(Exception):
    """The layer's result depends on the order of its entries."""


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """All paths that exist, sorted by key; the root is one of them."""

    key: NDArray[np.uint64]
    item: NDArray[np.uint32]
    """The item that has the path: its name, hash and slot are the directory entry's."""
    inode: NDArray[np.uint32]
    """The item that is the path's inode: another one for a hardlink, or a directory that an upper layer changed."""

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where each key is, and whether it is there at all."""
        position = np.searchsorted(self.key, keys)
        np.minimum(position, len(self.key) - 1, out=position)
        return position, self.key[position] == keys

    def locate(self, key: int) -> int:
        """Where one key is; -1 where it is not."""
        position = int(self.key.searchsorted(np.uint64(key)))
        return position if position < len(self.key) and int(self.key[position]) == key else -1

    def inserted(self, at: NDArray[np.int64], new: Tree) -> Tree:
        """The tree with the paths of ``new``, each before the one that is at ``at``."""
        return Tree(np.insert(self.key, at, new.key), np.insert(self.item, at, new.item), np.insert(self.inode, at, new.inode))

    def only(self, which: NDArray[np.bool_]) -> Tree:
        """The paths that are marked."""
        return Tree(self.key[which], self.item[which], self.inode[which])


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """What one layer does, a record a path, sorted by key."""

    key: NDArray[np.uint64]
    item: NDArray[np.uint32]
    inode: NDArray[np.uint32]
    flags: NDArray[np.uint8]


def empty_tree(stack: Stack) -> Tree:
    """The tree of layer 0: a root and lost+found."""
    own = stack.layers[0]
    return Tree(own.record_key, own.record_item, own.record_item)


def recorded(stack: Stack, number: int, tree: Tree) -> Changes:
    """What the records of layer ``number`` say, its hardlinks to lower layers found in ``tree``.

    Raises:
        NeedsReplay: The records do not say all.
        Invalid: A hardlink names nothing.
    """
    layer, base = stack.layers[number], np.uint32(stack.base[number])
    if layer.irregular:
        raise NeedsReplay
    inode = layer.inode + base
    if len(layer.link_item):
        inode[layer.link_item] = _outside_links(stack, number, tree)
        inode = inode[layer.inode]
    return Changes(layer.record_key, layer.record_item + base, inode[layer.record_item], layer.record_flags)


def _outside_links(stack: Stack, number: int, tree: Tree) -> NDArray[np.uint32]:
    """The inodes that a layer's hardlinks to lower layers name."""
    layer = stack.layers[number]
    paths = [layer.link_path[link].split(b"/") for link in range(len(layer.link_item))]
    position = np.zeros(len(paths), dtype=np.int64)
    at = np.full(len(paths), ROOT_KEY, dtype=np.uint64)
    found = np.ones(len(paths), dtype=bool)
    for depth in range(max(map(len, paths))):
        here = np.array([link for link, path in enumerate(paths) if len(path) > depth], dtype=np.int64)
        names = Strings.from_list([paths[link][depth][:256] for link in here.tolist()])
        at[here] = path_keys(at[here], *hash_names(names))
        position[here], found_here = tree.find(at[here])
        found_here &= ~names.differing(np.arange(len(here)), stack.names, tree.item[position[here]].astype(np.int64))
        found[here] &= found_here
        kind = stack.kind[tree.inode[position[here]]]
        deeper = np.array([len(paths[link]) > depth + 1 for link in here.tolist()])
        if np.any(found[here] & deeper & (kind == Kind.SYMLINK)):
            raise NeedsReplay
        found[here] &= deeper == (kind == Kind.DIRECTORY)
    if not found.all():
        link = int(np.argmin(found))
        item = int(layer.link_item[link])
        raise Invalid(f"{layer.path(item)} is a hardlink to {show(layer.link_path[link])}, which is no file there")
    return tree.inode[position]


def merge(stack: Stack, tree: Tree, changes: Changes) -> Tree:
    """The tree with one layer's changes.

    Raises:
        NeedsReplay: The layer uses as a directory what is none in the layers below.
        Invalid: Two different paths have one key.
    """
    position, hit = tree.find(changes.key)
    rows, at = np.flatnonzero(hit), position[hit]
    if not len(rows):
        return _rebuilt(tree, np.zeros(len(tree.key), dtype=bool), changes, position, _has(changes.flags, Flag.EXISTS))
    differs = ~stack.same_path(tree.item[at].astype(np.int64), changes.item[rows].astype(np.int64))
    if differs.any():
        raise Invalid(f"the name {stack.path(int(changes.item[rows[np.argmax(differs)]]))} was made to collide with another")
    flags = changes.flags[rows]
    was_directory = stack.kind[tree.inode[at]] == Kind.DIRECTORY
    if np.any(_has(flags, Flag.ENTERED_FIRST) & ~was_directory):
        raise NeedsReplay
    hides = was_directory & _has(flags, Flag.CLEAR | Flag.OPAQUE)
    gone = _below(stack, tree, at[hides]) if hides.any() else np.zeros(len(tree.key), dtype=bool)

    exists, cleared = _has(flags, Flag.EXISTS), _has(flags, Flag.CLEAR)
    puts = exists & (gone[at] | cleared | _has(flags, Flag.EXPLICIT) | ~was_directory)
    gone[at[cleared]] = True
    gone[at[puts]] = False
    item, inode = tree.item.copy(), tree.inode.copy()
    item[at[puts]] = changes.item[rows[puts]]
    inode[at[puts]] = changes.inode[rows[puts]]
    adds = _has(changes.flags, Flag.EXISTS) & ~hit
    return _rebuilt(Tree(tree.key, item, inode), gone, changes, position, adds)


def _has(flags: NDArray[np.uint8], bits: int) -> NDArray[np.bool_]:
    result: NDArray[np.bool_] = (flags & np.uint8(bits)) != 0
    return result


def _rebuilt(tree: Tree, gone: NDArray[np.bool_], changes: Changes, position: NDArray[np.int64], adds: NDArray[np.bool_]) -> Tree:
    """The tree without what is gone and with what a layer adds."""
    if not adds.any() and not gone.any():
        return tree
    at = position[adds]
    # find() names the last path where the key would stand behind it.
    at[changes.key[adds] > tree.key[-1]] = len(tree.key)
    new = Tree(changes.key[adds], changes.item[adds], changes.inode[adds])
    if gone.any():
        at -= np.concatenate(([0], np.cumsum(gone)))[at]
        tree = tree.only(~gone)
    return tree.inserted(at, new)


def _below(stack: Stack, tree: Tree, hidden: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which paths lie below the directories at ``hidden``, at any depth."""
    slot_position, known = tree.find(stack.slot_key)
    parent = slot_position[stack.slot[tree.item]]
    # A slot of a layer that is not applied yet is in nobody's way: no path of the tree stands in it.
    assert bool(known[stack.slot[tree.item]].all())
    root = tree.locate(ROOT_KEY)
    covers = np.zeros(len(tree.key), dtype=bool)
    covers[hidden] = True
    directories = np.flatnonzero(stack.kind[tree.inode] == Kind.DIRECTORY)
    jump = parent.copy()
    jump[root] = root
    while True:
        covers[directories] |= covers[jump[directories]] & (directories != root)
        jump[directories] = jump[jump[directories]]
        if np.all(jump[directories] == root):
            break
    if covers[root]:
        covers[directories] = True
    below: NDArray[np.bool_] = covers[parent]
    below[root] = False
    return below
