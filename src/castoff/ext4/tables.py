"""A layer's tables: all that composing needs of one layer, made once from its TOC.

Composing an image only joins tables: their paths by sorted 64-bit keys, their inodes by adding the few words that a layer alone
cannot know. A table depends on its layer alone, and is cheap to make again, so its stored form is a cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from mmap import MADV_DONTNEED, mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from castoff import timeline
from castoff.ext4 import tablefile
from castoff.ext4.attributes import AttributeSets, attribute_sets
from castoff.ext4.extents import extents_of
from castoff.ext4.hardlinks import resolve_links
from castoff.ext4.inodes import InodeColumns, base_crcs
from castoff.ext4.lexical import directory_tree, item_keys, tree_keys
from castoff.ext4.namehash import hash_names
from castoff.ext4.records import Items, fold
from castoff.ext4.strings import Strings
from castoff.ext4.structures import BLOCK_SIZE, Mode
from castoff.ext4.validate import check_toc, entry_path, refuse
from castoff.layers.names import show
from castoff.layers.toc import Kind, Toc

__all__ = ["LayerTables", "compile_tables", "load_tables", "save_tables"]

_TYPE = np.array([Mode.REGULAR, Mode.DIRECTORY, Mode.SYMLINK, 0, Mode.CHARACTER, Mode.BLOCK, Mode.FIFO, 0, 0], dtype=np.uint16)
_MUCH = 16 << 20
_EARLIEST = -(1 << 31)
_LATEST = (1 << 34) - (1 << 31) - 1
"""What ext4 can hold: 32 bits from 1901, and two more bits of epoch (Documentation/filesystems/ext4/inodes.rst)."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerTables:
    """Tables of one layer. *Items* are its ``rows`` TOC rows in tar order, then its directories (0: the root)."""

    rows: int
    segment_blocks: int
    irregular: str
    """Why the layer is replayed entry by entry; empty where its records say all."""

    names: Strings
    directory: NDArray[np.uint32]
    """[items] the directory that the item is in; directory d itself is item ``rows + d``."""
    kind: NDArray[np.uint8]
    major: NDArray[np.uint32]
    """[items] the name's directory hash."""
    minor: NDArray[np.uint32]
    key: NDArray[np.uint64]
    """[items] the path's key."""

    inodes: InodeColumns
    """[items]"""
    crc: NDArray[np.uint32]
    """[items] of the base inode."""
    inode: NDArray[np.uint32]
    """[items] the item whose inode the item names: itself, but for hardlinks within the layer."""

    record_key: NDArray[np.uint64]
    record_item: NDArray[np.uint32]
    record_flags: NDArray[np.uint8]
    """[records] sorted by key: see :mod:`castoff.ext4.records`."""

    link_item: NDArray[np.uint32]
    """Hardlinks to lower layers (if irregular: all): the item."""
    link_path: Strings

    mapping: mmap | None = field(default=None, compare=False, repr=False)
    """The file that the columns lie in, if they do."""

    def forget(self) -> None:
        """Lets go of the pages of the file that were read: the page cache has them should they be wanted again.

        They count as the process's memory, 110 MB for a million entries, of which a composition wants some at a time.
        """
        if self.mapping is not None and len(self.mapping) > _MUCH:
            self.mapping.madvise(MADV_DONTNEED)

    def __len__(self) -> int:
        return len(self.kind)

    def path(self, item: int) -> str:
        """An item's path, for messages."""
        parts = []
        while True:
            parts.append(self.names[item])
            if not self.directory[item]:
                break
            item = self.rows + int(self.directory[item])
        return show(b"/".join(part for part in reversed(parts) if part))


def compile_tables(toc: Toc) -> LayerTables:
    """Makes the tables of a layer.

    Raises:
        Invalid: The TOC is broken, or holds what no filesystem can.
    """
    with timeline.step("ext4.tables", total=len(toc)):
        check_toc(toc)
        tree = directory_tree(toc)
        rows, kind = len(toc), np.concatenate([toc.kind, np.full(len(tree.parent), Kind.DIRECTORY, dtype=np.uint8)])
        columns = _inode_columns(toc, len(kind))
        names = Strings.joined([Strings.from_pool(toc.name_pool, toc.name_offsets), Strings.from_list(tree.names)])
        directory = np.concatenate([tree.of_path[toc.directory], tree.parent])
        link_pool, link_offsets = toc.link_pool.copy(), toc.link_offsets
        segment_blocks = toc.segment_size // BLOCK_SIZE
        del toc  # what follows takes most: of a million entries, 120 MB less
        major, minor = hash_names(names)
        node_keys = tree_keys(tree, major[rows:], minor[rows:])
        key = item_keys(node_keys, directory, major, minor, names.length)
        items = Items(rows, names, directory, kind, key)
        records = fold(items, tree)
        links = resolve_links(link_pool, link_offsets, items, tree, records, node_keys)
        return LayerTables(
            rows=rows,
            segment_blocks=segment_blocks,
            irregular=records.irregular or links.irregular,
            names=names,
            directory=directory,
            kind=kind,
            major=major,
            minor=minor,
            key=key,
            inode=links.inode,
            record_key=records.key,
            record_item=records.item,
            record_flags=records.flags,
            link_item=links.items,
            link_path=links.paths,
            inodes=columns,
            crc=base_crcs(columns, len(kind)),
        )


def _inode_columns(toc: Toc, count: int) -> InodeColumns:
    """The columns of inodes, for the TOC's rows and for directories that have none: root's, 0755, of 1970."""
    extra = count - len(toc)
    implied = np.full(extra, Mode.DIRECTORY | 0o755, dtype=np.uint16)
    zeros = np.zeros(extra, dtype=np.uint32)
    seconds = np.clip(toc.mtime, _EARLIEST, _LATEST)
    epoch = (seconds + (1 << 31)) >> 32 & 3
    time = (seconds & 0xFFFFFFFF).astype(np.uint32)
    inline = _inline(toc, extra)
    size = toc.size.astype(np.uint64)
    symlink = toc.kind == Kind.SYMLINK
    size[symlink] = inline.length[: len(toc)][symlink]
    sets = attribute_sets(toc.xattr_pool, toc.xattr_offsets, lambda number: _whose(toc, number))
    return InodeColumns(
        mode=np.concatenate([_modes(toc, sets), implied]),
        uid=np.concatenate([toc.uid, zeros]),
        gid=np.concatenate([toc.gid, zeros]),
        time=np.concatenate([time, zeros]),
        time_extra=np.concatenate([(epoch.astype(np.uint32) | toc.mtime_ns << np.uint32(2)), zeros]),
        size=np.concatenate([size, np.zeros(extra, dtype=np.uint64)]),
        inline=inline,
        extents=extents_of(toc, count),
        attribute_set=np.concatenate([toc.xattr, zeros]),
        attributes=sets,
    )


def _whose(toc: Toc, number: int) -> str:
    """The first entry that has a set of attributes."""
    rows = np.flatnonzero(toc.xattr == number)
    return f"entry {int(rows[0])} of the layer, {entry_path(toc, int(rows[0]))}," if len(rows) else "a set that nobody uses"


def _modes(toc: Toc, sets: AttributeSets) -> NDArray[np.uint16]:
    """i_mode of each row: a symlink's permissions are always all, and an ACL's stand above the mode's."""
    mode = _TYPE[toc.kind] | toc.mode.astype(np.uint16)
    mode[toc.kind == Kind.SYMLINK] = Mode.SYMLINK | 0o777
    acl = np.flatnonzero((sets.permissions[toc.xattr] >= 0) & (toc.kind != Kind.SYMLINK))
    mode[acl] = mode[acl] & np.uint16(0xFE00) | sets.permissions[toc.xattr[acl]].astype(np.uint16)
    refuse(toc, sets.default[toc.xattr] & (toc.kind != Kind.DIRECTORY), "has a default ACL and is no directory")
    refuse(toc, (sets.permissions[toc.xattr] >= 0) & (toc.kind == Kind.SYMLINK), "has an ACL and is a symlink")
    return mode


def _inline(toc: Toc, extra: int) -> Strings:
    """Symlinks' targets as they are, devices as two words."""
    offsets = toc.link_offsets.astype(np.int64)
    length = np.where(toc.kind == Kind.SYMLINK, np.diff(offsets), 0)
    links = Strings.from_pool(toc.link_pool, toc.link_offsets)
    devices = np.flatnonzero((toc.kind == Kind.CHARACTER) | (toc.kind == Kind.BLOCK))
    major, minor = toc.rdev_major[devices], toc.rdev_minor[devices]
    # fs/ext4/inode.c: small numbers in the first word as 8:8 bits, others in the second (kdev_t.h, new_encode_dev).
    small = (major < 256) & (minor < 256)
    old = np.where(small, major << 8 | minor, 0)
    new = np.where(small, 0, minor & 0xFF | major << 8 | (minor & ~np.uint32(0xFF)) << 12)
    at, words = links.at.copy(), links.words
    at[devices] = len(words) + 2 * np.arange(len(devices), dtype=np.uint32)
    length[devices] = 8
    words = np.concatenate([words, np.stack([old, new], axis=1).astype(np.uint32).reshape(-1)])
    none = np.zeros(extra, dtype=np.uint32)
    return Strings(words, np.concatenate([at, none]), np.concatenate([length, none]).astype(np.uint16))


def save_tables(tables: LayerTables, path: Path) -> None:
    """Keeps tables in a file: a cache, see :mod:`castoff.ext4.tablefile`.

    Raises:
        Unavailable: It cannot be written.
    """
    tablefile.save(tables, path)


def load_tables(path: Path) -> LayerTables | None:
    """The tables kept in a file, mapped into memory; None where there are none of this version, or broken ones.

    Raises:
        Unavailable: The file cannot be read.
    """
    return tablefile.load(path)
