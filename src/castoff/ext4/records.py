"""What a layer does to each path that it names: the rows of a TOC folded into one record a path.

A *record* says what the path is once the layer is applied, and what becomes of what lower layers have there. That is possible
without knowing the lower layers as long as the order of the tar's entries does not matter; a layer in which it may
(entries below a symlink that the same layer makes, a whiteout over a directory that was already used, ...) is *irregular*
and is replayed entry by entry when an image is composed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid
from castoff.ext4.lexical import DirectoryTree
from castoff.ext4.strings import Strings
from castoff.layers.names import show
from castoff.layers.toc import Kind

__all__ = ["Flag", "Items", "Records", "fold"]

_NEVER = np.int32(2**31 - 1)


class Flag:
    """Bits of a record."""

    EXISTS = 1
    """The path exists once the layer is applied (else: only hidden, or only the parent of whiteouts)."""
    EXPLICIT = 2
    """An entry says what it is; without the bit it is a directory that only its children imply."""
    DIRECTORY = 4
    CLEAR = 8
    """What lower layers have here is gone, with all below it."""
    OPAQUE = 16
    """What lower layers have below it is gone."""
    ENTERED_FIRST = 32
    """It was used as a parent before any entry made it a directory: a symlink of a lower layer would be followed."""


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """All that has a path in a layer: its N rows in tar order, then its D directories."""

    rows: int
    names: Strings
    directory: NDArray[np.uint32]
    kind: NDArray[np.uint8]
    key: NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """One record a path, sorted by key."""

    key: NDArray[np.uint64]
    item: NDArray[np.uint32]
    flags: NDArray[np.uint8]
    order: NDArray[np.int32]
    """All items, sorted by key and then by number."""
    start: NDArray[np.int32]
    """Where each record's items start in ``order``."""
    irregular: str
    """Why the layer must be replayed; empty where it need not."""


def fold(items: Items, tree: DirectoryTree) -> Records:
    """Makes the records of a layer.

    Raises:
        Invalid: Two different paths have one key.
    """
    order = np.argsort(items.key, kind="stable").astype(np.int32)
    keys = items.key[order]
    first = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))).astype(np.int32)
    _refuse_collisions(items, order, first)

    is_row = order < items.rows
    kind = items.kind[order]
    entry = is_row & (kind <= Kind.FIFO)
    other = entry & (kind != Kind.DIRECTORY)
    last_entry = np.maximum.reduceat(np.where(entry, order, np.int32(-1)), first)
    is_directory = items.kind[last_entry] == Kind.DIRECTORY
    group_of_node = np.empty(len(tree.parent), dtype=np.int32)
    group = np.repeat(np.arange(len(first), dtype=np.int32), np.diff(np.append(first, len(order))))
    nodes = ~is_row
    group_of_node[order[nodes] - items.rows] = group[nodes]

    has_node = np.zeros(len(first), dtype=bool)
    has_node[group_of_node] = True
    cleared = np.logical_or.reduceat(is_row & (kind != Kind.DIRECTORY) & (kind != Kind.OPAQUE), first)
    opaque = np.logical_or.reduceat(is_row & (kind == Kind.OPAQUE), first)
    touched, entered = _first_touches(items, tree)
    node_item = np.full(len(first), -1, dtype=np.int32)
    node_item[group_of_node] = np.arange(items.rows, items.rows + len(tree.parent), dtype=np.int32)
    created = np.zeros(len(first), dtype=bool)
    created[group_of_node] = touched < _NEVER
    created[group_of_node[0]] = True

    explicit = last_entry >= 0
    flags = np.zeros(len(first), dtype=np.uint8)
    flags[explicit | created] |= Flag.EXISTS
    flags[explicit] |= Flag.EXPLICIT
    flags[np.where(explicit, is_directory, has_node)] |= Flag.DIRECTORY
    flags[cleared] |= Flag.CLEAR
    flags[opaque] |= Flag.OPAQUE
    first_directory = np.minimum.reduceat(np.where(entry & (kind == Kind.DIRECTORY), order, _NEVER), first)
    flags[group_of_node[entered < first_directory[group_of_node]]] |= Flag.ENTERED_FIRST

    irregular = ""
    if np.any(np.logical_or.reduceat(other, first) & has_node):
        irregular = "something that is not a directory has entries below it"
    elif _implied_before_hidden(tree, touched, group_of_node, explicit, *_last_hides(items, kind, is_row, order, first)):
        irregular = "a directory without an entry is hidden after it was used"
    item = np.where(explicit, last_entry, np.where(has_node, node_item, order[first]))
    return Records(keys[first], item.astype(np.uint32), flags, order, first, irregular)


def _refuse_collisions(items: Items, order: NDArray[np.int32], first: NDArray[np.int32]) -> None:
    """Names and parents of items with equal keys must be equal."""
    same = np.ones(len(order), dtype=bool)
    same[first] = False
    here = np.flatnonzero(same)
    if not len(here):
        return
    # OPAQUE rows and the root's have no name of their own: their directory's item stands for them.
    stands = np.arange(len(items.kind))
    nameless = np.flatnonzero(items.names.length[: items.rows] == 0)
    stands[nameless] = items.rows + items.directory[nameless]
    left, right = stands[order[here - 1]], stands[order[here]]
    wrong = (items.directory[left] != items.directory[right]) | items.names.differing(left, items.names, right)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise Invalid(
            f"the names {show(items.names[int(left[at])])} and {show(items.names[int(right[at])])} were made to collide"
        )


def _first_touches(items: Items, tree: DirectoryTree) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """For each directory the first row that makes something in or below it, and the first that names anything there."""
    rows = np.arange(items.rows, dtype=np.int32)
    touched = np.full(len(tree.parent), _NEVER)
    entered = np.full(len(tree.parent), _NEVER)
    directory = items.directory[: items.rows]
    named = items.names.length[: items.rows] > 0
    makes = named & (items.kind[: items.rows] <= Kind.FIFO)
    inside = named | (items.kind[: items.rows] == Kind.OPAQUE)
    np.minimum.at(touched, directory[makes], rows[makes])
    np.minimum.at(entered, directory[inside], rows[inside])
    for level in reversed(tree.levels):
        np.minimum.at(touched, tree.parent[level], touched[level])
        np.minimum.at(entered, tree.parent[level], entered[level])
    return touched, entered


def _last_hides(
    items: Items, kind: NDArray[np.uint8], is_row: NDArray[np.bool_], order: NDArray[np.int32], first: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """For each record the last row that hides it, and the last that hides what is below it only; -1 for none."""
    whole = np.maximum.reduceat(np.where(is_row & (kind == Kind.WHITEOUT), order, np.int32(-1)), first)
    below = np.maximum.reduceat(np.where(is_row & (kind == Kind.OPAQUE), order, np.int32(-1)), first)
    return whole, below


def _implied_before_hidden(
    tree: DirectoryTree,
    touched: NDArray[np.int32],
    group_of_node: NDArray[np.int32],
    explicit: NDArray[np.bool_],
    whole: NDArray[np.int32],
    below: NDArray[np.int32],
) -> bool:
    """Whether a directory that only its children imply was used before a row hides what lower layers have of it."""
    if max(whole.max(), below.max()) < 0:
        return False
    hidden = whole[group_of_node]
    cover = np.maximum(hidden, below[group_of_node])
    for level in tree.levels:
        above = cover[tree.parent[level]]
        hidden[level] = np.maximum(hidden[level], above)
        cover[level] = np.maximum(cover[level], above)
    implied = ~explicit[group_of_node]
    return bool(np.any(implied & (touched < hidden)))
