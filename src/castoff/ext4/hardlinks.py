"""Hardlinks inside a layer: which entry's inode each of them names.

A hardlink names whatever its target path was when the tar's entry came: the last entry of that path before it. Where the layer
has none, the target is a lower layer's and is looked up when an image is composed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid
from castoff.ext4.lexical import DirectoryTree, path_keys
from castoff.ext4.namehash import hash_names
from castoff.ext4.records import Flag, Items, Records
from castoff.ext4.strings import Strings
from castoff.layers.names import show
from castoff.layers.toc import Kind

__all__ = ["Links", "resolve_links"]


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """What the hardlinks of a layer name."""

    inode: NDArray[np.uint32]
    """[items] the item whose inode it is; a hardlink to a lower layer names itself."""
    items: NDArray[np.uint32]
    """The hardlinks to lower layers; in an irregular layer all hardlinks."""
    paths: Strings
    """Their targets."""
    irregular: str
    """Why only a replay can tell; empty where this is all."""


def resolve_links(
    pool: NDArray[np.uint8],
    offsets: NDArray[np.uint32],
    items: Items,
    tree: DirectoryTree,
    records: Records,
    keys: NDArray[np.uint64],
) -> Links:
    """Finds the inode of every item.

    Args:
        pool: The TOC's link targets.
        offsets: Where each row's starts.
        items: Its items.
        tree: Its directories.
        records: Its records.
        keys: The key of each directory.

    Raises:
        Invalid: A hardlink names a directory of its own layer, or itself.
    """
    inode = np.arange(len(items.kind), dtype=np.uint32)
    links = np.flatnonzero(items.kind == Kind.HARDLINK)
    if not len(links):
        return Links(inode, np.zeros(0, dtype=np.uint32), Strings.from_list([]), "")
    bounds = zip(offsets[links].tolist(), offsets[links + 1].tolist(), strict=True)
    targets = [pool[start:end].tobytes() for start, end in bounds]
    irregular = records.irregular
    if not irregular:
        found = _last_before(links, targets, items, tree, records, keys)
        inside = found >= 0
        _refuse(items, links[inside], found[inside])
        inode[links[inside]] = found[inside]
        _follow(inode, links)
        outside = np.flatnonzero(~inside)
        irregular = _touched([targets[link] for link in outside.tolist()], items, tree, records) if len(outside) else ""
    if irregular:
        outside = np.arange(len(links))
    paths = Strings.from_list([targets[link] for link in outside.tolist()])
    return Links(inode, links[outside].astype(np.uint32), paths, irregular)


def _last_before(
    links: NDArray[np.int64],
    targets: list[bytes],
    items: Items,
    tree: DirectoryTree,
    records: Records,
    keys: NDArray[np.uint64],
) -> NDArray[np.int64]:
    """The last entry with each link's target path that stands before the link, -1 where there is none."""
    split = [target.rpartition(b"/") for target in targets]
    nodes = {parent: tree.find(parent) for parent in {parts[0] for parts in split}}
    known = np.array([nodes[parts[0]] is not None for parts in split])
    directory = np.array([nodes[parts[0]] or 0 for parts in split], dtype=np.int64)
    names = Strings.from_list([parts[2][:256] for parts in split])
    wanted = path_keys(keys[directory], *hash_names(names))
    record = np.minimum(np.searchsorted(records.key, wanted), len(records.key) - 1)
    first = records.order[records.start[record]].astype(np.int64)
    known &= (records.key[record] == wanted) & (items.directory[first] == directory)
    known &= ~names.differing(np.arange(len(links)), items.names, first)

    result = np.full(len(links), -1, dtype=np.int64)
    ends = np.append(records.start[1:], len(records.order))
    for number in np.flatnonzero(known).tolist():
        rows = records.order[records.start[record[number]] : ends[record[number]]]
        before = rows[(rows < links[number]) & (items.kind[rows] <= Kind.FIFO)]
        if len(before):
            result[number] = before[-1]
    return result


def _refuse(items: Items, links: NDArray[np.int64], found: NDArray[np.int64]) -> None:
    """A link to a directory, or to its own path, which an unpacker removes before it makes the link (containerd's
    pkg/archive/tar.go, ``applyNaive``)."""
    for wrong, said in (
        (items.kind[found] == Kind.DIRECTORY, "a directory"),
        (items.key[found] == items.key[links], "itself"),
    ):
        if wrong.any():
            link = int(links[np.argmax(wrong)])
            raise Invalid(f"entry {link} of the layer, {show(items.names[link])}, is a hardlink to {said}")


def _follow(inode: NDArray[np.uint32], links: NDArray[np.int64]) -> None:
    """Links to links name the inode at the end; each names one that stands before it, so there is an end."""
    while True:
        further = inode[inode[links]]
        if np.array_equal(further, inode[links]):
            return
        inode[links] = further


def _touched(paths: list[bytes], items: Items, tree: DirectoryTree, records: Records) -> str:
    """Whether the layer itself does anything to a path of a lower layer that it links to, other than to use directories."""
    flags = dict(zip(records.item.tolist(), records.flags.tolist(), strict=True))
    hidden = {item for item, bits in flags.items() if bits & (Flag.CLEAR | Flag.OPAQUE)}
    mine = {(int(d), items.names[i]): i for i, d in enumerate(items.directory[: items.rows])}
    for path in paths:
        node = 0
        for name in path.split(b"/"):
            child = tree.index.get((node, name))
            if child is None:
                if (node, name) in mine:
                    return "a hardlink names a path of a lower layer that the same layer changes"
                break
            if items.rows + child in hidden or mine.get((node, name)) in hidden:
                return "a hardlink names a path below one that the same layer hides"
            node = child
    return ""
