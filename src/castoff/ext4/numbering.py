"""Inode numbers, link counts, and the entries of every directory in the order of their hashes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid
from castoff.ext4.lexical import ROOT_KEY
from castoff.ext4.merge import Tree
from castoff.ext4.stack import LOST_AND_FOUND, Stack
from castoff.layers.toc import Kind

__all__ = ["FIRST_INODE", "ROOT_INODE", "Numbering", "number", "with_lost_and_found"]

ROOT_INODE = 2
FIRST_INODE = 11
"""Numbers below are the filesystem's own; the kernel expects lost+found here, which no rule demands."""
_MAX_LINKS = 65000
"""EXT4_LINK_MAX; a directory with more subdirectories has the count 1 (dir_nlink)."""


@dataclass(frozen=True, slots=True, eq=False)
class Numbering:
    """All inodes in the order of their numbers (the root, then 11, 12, ...), and all directory entries."""

    item: NDArray[np.int64]
    """[inodes] the item that is the inode, ascending but for the root, which is first."""
    number: NDArray[np.uint32]
    """[inodes] its number."""
    links: NDArray[np.uint32]
    """[inodes] i_links_count."""
    directory: NDArray[np.int64]
    """[directories] which inodes are directories, ascending; the root is first."""
    parent: NDArray[np.uint32]
    """[directories] the inode number of ``..``."""

    entry_item: NDArray[np.int64]
    """[entries] the item whose name it is; by directory, then by hash."""
    entry_number: NDArray[np.uint32]
    """[entries] the inode number it names."""
    entry_kind: NDArray[np.uint8]
    bounds: NDArray[np.int64]
    """[directories + 1] where each directory's entries start."""


def number(stack: Stack, tree: Tree) -> Numbering:
    """Numbers what exists in ``tree``.

    Raises:
        Invalid: A file has more links than ext4 can count, or lost+found is no directory.
    """
    root = tree.locate(ROOT_KEY)
    root_item = int(tree.inode[root])
    live = np.zeros(len(stack), dtype=bool)
    live[tree.inode] = True
    live[root_item] = False
    item = np.concatenate(([root_item], np.flatnonzero(live)))
    index = np.zeros(len(stack), dtype=np.uint32)
    index[item] = np.arange(len(item), dtype=np.uint32)
    numbers = np.arange(FIRST_INODE - 1, FIRST_INODE - 1 + len(item), dtype=np.uint32)
    numbers[0] = ROOT_INODE
    directory = np.flatnonzero(stack.kind[item] == Kind.DIRECTORY)
    rank = np.zeros(len(item), dtype=np.uint32)
    rank[directory] = np.arange(len(directory), dtype=np.uint32)

    entries = np.delete(np.arange(len(tree.key)), root)
    slot_position, _ = tree.find(stack.slot_key)
    parent_rank = rank[index[tree.inode[slot_position]]][stack.slot[tree.item[entries]]]
    order = _by_hash(parent_rank, stack.major[tree.item[entries]], tree.key[entries])
    entries, parent_rank = entries[order], parent_rank[order]
    named = index[tree.inode[entries]]
    kind = stack.kind[tree.inode[entries]]
    subdirectories = kind == Kind.DIRECTORY
    parent = np.full(len(directory), ROOT_INODE, dtype=np.uint32)
    parent[rank[named[subdirectories]]] = numbers[directory[parent_rank[subdirectories]]]

    links = np.bincount(named, minlength=len(item)).astype(np.uint32)
    children = np.bincount(parent_rank[subdirectories], minlength=len(directory)) + 2
    links[directory] = np.where(children > _MAX_LINKS, 1, children)
    if links.max() > _MAX_LINKS:
        path = stack.path(int(item[np.argmax(links)]))
        raise Invalid(f"{path} has {int(links.max())} hardlinks, and ext4 allows {_MAX_LINKS}")
    bounds = np.zeros(len(directory) + 1, dtype=np.int64)
    np.cumsum(np.bincount(parent_rank, minlength=len(directory)), out=bounds[1:])
    return Numbering(item, numbers, links, directory, parent, tree.item[entries].astype(np.int64), numbers[named], kind, bounds)


def _by_hash(directory: NDArray[np.uint32], major: NDArray[np.uint32], key: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The order by directory and hash; equal hashes by key, so that the order does not depend on the sorting algorithm."""
    combined = directory.astype(np.uint64) << np.uint64(32) | major
    order = np.argsort(combined)
    sorted_keys = combined[order]
    if np.any(sorted_keys[1:] == sorted_keys[:-1]):
        order = np.lexsort((key, combined))
    return order


def with_lost_and_found(stack: Stack, tree: Tree) -> Tree:
    """The tree with a lost+found directory, whatever layers did to it: e2fsck wants one.

    Raises:
        Invalid: A layer has something else of that name.
    """
    own = stack.layers[0]
    key = own.key[1:2]
    position = tree.locate(int(key[0]))
    if position >= 0:
        if stack.kind[tree.inode[position]] != Kind.DIRECTORY:
            raise Invalid(
                f"the image has a {LOST_AND_FOUND.decode()} that is not a directory, and ext4 keeps that name for its own"
            )
        return tree
    at = int(np.searchsorted(tree.key, key[0]))
    one = np.ones(1, dtype=np.uint32)
    return tree.inserted(np.array([at]), Tree(key, one, one))
