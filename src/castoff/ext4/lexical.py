"""The directories that a layer's paths name, as a tree, and the 64-bit key of every path.

A path's key is made from its parent's key and its name's directory hash, so the same path has the same key in every layer, and
layers are joined by sorted keys. Keys can collide where somebody wants them to; so names are compared byte by byte wherever
keys meet, and a collision is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid
from castoff.layers.names import show
from castoff.layers.toc import Toc

__all__ = ["MAX_DIRECTORIES", "ROOT_KEY", "DirectoryTree", "directory_tree", "item_keys", "path_key", "path_keys", "tree_keys"]

MAX_DIRECTORIES = 1 << 20
"""Directories that the paths of one layer may name, with those that have no entry of their own."""

ROOT_KEY = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_WINDOW = 1 << 13
"""Keys made at once: what a step leaves is in the cache for the next."""


@dataclass(frozen=True, slots=True, eq=False)
class DirectoryTree:
    """D directories, parents before children; 0 is the root and its own parent."""

    parent: NDArray[np.uint32]
    depth: NDArray[np.uint32]
    names: list[bytes]
    of_path: NDArray[np.uint32]
    """For each directory path of the TOC: which directory it is."""
    levels: list[NDArray[np.int64]]
    """The directories of each depth, from the root's children on."""
    index: dict[tuple[int, bytes], int]
    """(parent, name) -> directory."""

    def find(self, path: bytes) -> int | None:
        """The directory that ``path`` is, None where the layer's paths do not name it."""
        node = 0
        for name in path.split(b"/") if path else ():
            child = self.index.get((node, name))
            if child is None:
                return None
            node = child
        return node


def directory_tree(toc: Toc) -> DirectoryTree:
    """Makes the tree of the TOC's directory paths and of all that stand above them.

    Raises:
        Invalid: A path is not normalised, or there are too many.
    """
    pool = toc.directory_pool.tobytes()
    offsets = toc.directory_offsets.tolist()
    index: dict[tuple[int, bytes], int] = {}
    parents, depths, names = [0], [0], [b""]
    of_path = np.zeros(len(offsets) - 1, dtype=np.uint32)
    for number, (start, end) in enumerate(pairwise(offsets)):
        node = 0
        for name in pool[start:end].split(b"/") if end > start else ():
            key = (node, name)
            child = index.get(key)
            if child is None:
                child = index[key] = len(names)
                _check_name(name, pool[start:end])
                parents.append(node)
                depths.append(depths[node] + 1)
                names.append(name)
            node = child
        of_path[number] = node
        if len(names) > MAX_DIRECTORIES:
            raise Invalid(f"the layer's paths name more than {MAX_DIRECTORIES} directories")
    depth = np.array(depths, dtype=np.uint32)
    order = np.argsort(depth, kind="stable")
    bounds = np.searchsorted(depth[order], np.arange(1, int(depth.max()) + 2))
    levels = [order[start:end] for start, end in pairwise(bounds.tolist())]
    return DirectoryTree(np.array(parents, dtype=np.uint32), depth, names, of_path, levels, index)


def _check_name(name: bytes, path: bytes) -> None:
    if not name or len(name) > 255 or name in (b".", b"..") or b"\0" in name:
        raise Invalid(f"{show(path)} is not a normalised path")


def path_keys(parents: NDArray[np.uint64], major: NDArray[np.uint32], minor: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """The keys of names with the given hashes in directories with the given keys."""
    key = parents * np.uint64(ROOT_KEY)
    key += major.astype(np.uint64) << np.uint64(32) | minor
    key ^= key >> np.uint64(30)
    key *= np.uint64(0xBF58476D1CE4E5B9)
    key ^= key >> np.uint64(27)
    key *= np.uint64(0x94D049BB133111EB)
    key ^= key >> np.uint64(31)
    return key


def item_keys(
    directories: NDArray[np.uint64],
    directory: NDArray[np.uint32],
    major: NDArray[np.uint32],
    minor: NDArray[np.uint32],
    lengths: NDArray[np.uint16],
) -> NDArray[np.uint64]:
    """The keys of items: what has no name is the directory that it is in."""
    key = np.empty(len(directory), dtype=np.uint64)
    for first in range(0, len(key), _WINDOW):
        here = slice(first, first + _WINDOW)
        key[here] = path_keys(directories[directory[here]], major[here], minor[here])
    nameless = np.flatnonzero(lengths == 0)
    key[nameless] = directories[directory[nameless]]
    return key


def path_key(parent: int, name_hash: int) -> int:
    """:func:`path_keys` for one name; ``name_hash`` is ``major << 32 | minor``."""
    key = (parent * ROOT_KEY + name_hash) & _MASK
    key = ((key ^ key >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    key = ((key ^ key >> 27) * 0x94D049BB133111EB) & _MASK
    return key ^ key >> 31


def tree_keys(tree: DirectoryTree, major: NDArray[np.uint32], minor: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """The key of each directory, from the hashes of their names."""
    keys = np.empty(len(tree.parent), dtype=np.uint64)
    keys[0] = ROOT_KEY
    for level in tree.levels:
        keys[level] = path_keys(keys[tree.parent[level]], major[level], minor[level])
    return keys
