"""A TOC may come from anywhere: everything that composing relies on is checked here, column by column."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid
from castoff.layers.names import show
from castoff.layers.toc import BLOCK, Kind, Toc

__all__ = ["check_toc", "entry_path", "refuse"]

_MAX_FILE_BLOCKS = 0xFFFFFFFF
"""ext4 numbers the blocks of a file with 32 bits, and keeps the last number for itself."""
_MAX_SYMLINK = 4095
_MAX_PATH = 4096


def check_toc(toc: Toc) -> None:
    """Refuses a TOC that is not what castoff.layers.toc says.

    Raises:
        Invalid: It is not; the message names the column or the entry.
    """
    _check_shapes(toc)
    _check_names(toc)
    _check_attributes(toc)
    _check_extents(toc)


def refuse(toc: Toc, rows: NDArray[np.bool_], why: str) -> None:
    """Raises Invalid with ``why`` for the first of the marked rows."""
    if rows.any():
        row = int(np.argmax(rows))
        raise Invalid(f"entry {row} of the layer, {entry_path(toc, row)}, {why}")


def entry_path(toc: Toc, row: int) -> str:
    """The path of a row, for messages."""
    directory = int(toc.directory[row])
    if directory >= len(toc.directory_offsets) - 1:
        return "in no directory"
    parent = toc.directory_pool[toc.directory_offsets[directory] : toc.directory_offsets[directory + 1]].tobytes()
    name = toc.name_pool[toc.name_offsets[row] : toc.name_offsets[row + 1]].tobytes()
    return show(parent + b"/" + name if parent else name)


def _check_shapes(toc: Toc) -> None:
    rows = len(toc.kind)
    columns = ("directory", "mode", "uid", "gid", "mtime", "mtime_ns", "size", "rdev_major", "rdev_minor", "xattr")
    for name in columns:
        if len(getattr(toc, name)) != rows:
            raise Invalid(f"the layer's table of contents is broken: column {name} has not {rows} rows")
    extents = len(toc.extent_row)
    for name in ("extent_logical", "extent_segment", "extent_blocks"):
        if len(getattr(toc, name)) != extents:
            raise Invalid(f"the layer's table of contents is broken: column {name} has not {extents} rows")
    for name, count in (("directory", None), ("name", rows), ("link", rows), ("xattr", None)):
        offsets, pool = getattr(toc, f"{name}_offsets").astype(np.int64), getattr(toc, f"{name}_pool")
        fits = len(offsets) > 0 and (count is None or len(offsets) == count + 1)
        if not fits or offsets[0] < 0 or offsets[-1] > len(pool) or np.any(np.diff(offsets) < 0):
            raise Invalid(f"the layer's table of contents is broken: the offsets of {name} do not fit their pool")
    if len(toc.directory_offsets) < 2 or toc.directory_offsets[1] != toc.directory_offsets[0]:
        raise Invalid("the layer's table of contents is broken: directory 0 is not the root")
    if np.any(np.diff(toc.directory_offsets.astype(np.int64)) >= _MAX_PATH):
        raise Invalid(f"the layer has a directory whose path is over {_MAX_PATH - 1} bytes")


def _check_names(toc: Toc) -> None:
    refuse(toc, toc.kind > Kind.OPAQUE, "is of no known kind")
    refuse(toc, toc.directory >= len(toc.directory_offsets) - 1, "is in no directory")
    offsets = toc.name_offsets.astype(np.int64)
    length = np.diff(offsets)
    refuse(toc, length > 255, "has a name of over 255 bytes")
    opaque = toc.kind == Kind.OPAQUE
    root = (toc.kind == Kind.DIRECTORY) & (toc.directory == 0)
    refuse(toc, (length == 0) & ~(opaque | root), "has no name")
    refuse(toc, (length > 0) & opaque, "hides a directory and has a name")
    pool = toc.name_pool[: offsets[-1]]
    bad = np.flatnonzero((pool == 0) | (pool == ord("/")))
    bad = bad[bad >= offsets[0]]
    wrong = np.zeros(len(toc), dtype=bool)
    wrong[np.searchsorted(offsets, bad, side="right") - 1] = True
    refuse(toc, wrong, "has a NUL or a slash in its name")
    dots = np.zeros(len(toc), dtype=bool)
    for count in (1, 2):
        rows = np.flatnonzero(length == count)
        dots[rows] = np.all(pool[offsets[rows][:, None] + np.arange(count)] == ord("."), axis=1)
    refuse(toc, dots, "is named . or ..")


def _check_attributes(toc: Toc) -> None:
    refuse(toc, toc.mode > 0o7777, "has mode bits that no file has")
    refuse(toc, toc.mtime_ns > 999_999_999, "has a time of over 999,999,999 nanoseconds")
    refuse(toc, toc.xattr >= len(toc.xattr_offsets) - 1, "has extended attributes that do not exist")
    links = np.diff(toc.link_offsets.astype(np.int64))
    symlink = toc.kind == Kind.SYMLINK
    refuse(toc, symlink & (links == 0), "is a symlink to nothing")
    refuse(toc, symlink & (links > _MAX_SYMLINK), f"is a symlink to more than {_MAX_SYMLINK} bytes")
    refuse(toc, (toc.kind == Kind.HARDLINK) & (links >= _MAX_PATH), f"is a hardlink to a path of over {_MAX_PATH - 1} bytes")
    nulls = np.flatnonzero(toc.link_pool[: toc.link_offsets[-1]] == 0)
    wrong = np.zeros(len(toc), dtype=bool)
    wrong[np.searchsorted(toc.link_offsets, nulls, side="right") - 1] = True
    refuse(toc, wrong, "has a NUL in its link target")
    device = (toc.kind == Kind.CHARACTER) | (toc.kind == Kind.BLOCK)
    # 12 and 20 bits are what the kernel's dev_t has (include/linux/kdev_t.h).
    refuse(toc, device & ((toc.rdev_major >= 1 << 12) | (toc.rdev_minor >= 1 << 20)), "has device numbers that Linux has not")
    refuse(toc, (toc.size > 0) & (toc.kind != Kind.FILE), "has a size and is no file")
    refuse(toc, toc.size > _MAX_FILE_BLOCKS * BLOCK, "is larger than ext4 allows")


def _check_extents(toc: Toc) -> None:
    if toc.segment_size < 0 or toc.segment_size % BLOCK:
        raise Invalid("the layer's table of contents is broken: its segment is no whole number of blocks")
    row = toc.extent_row.astype(np.int64)
    if not len(row):
        return
    if np.any(np.diff(row) < 0) or row[-1] >= len(toc):
        raise Invalid("the layer's table of contents is broken: its extents are not in the order of its entries")
    count = toc.extent_blocks.astype(np.int64)
    logical_end = toc.extent_logical.astype(np.int64) + count
    segment_end = toc.extent_segment.astype(np.int64) + count
    blocks = (toc.size[row].astype(np.int64) + BLOCK - 1) // BLOCK
    bad = (toc.kind[row] != Kind.FILE) | (count == 0) | (logical_end > blocks) | (segment_end > toc.segment_size // BLOCK)
    bad[1:] |= (row[1:] == row[:-1]) & (toc.extent_logical[1:] < logical_end[:-1])
    order = np.argsort(toc.extent_segment, kind="stable")
    bad[order[1:]] |= toc.extent_segment[order[1:]] < segment_end[order[:-1]]
    wrong = np.zeros(len(toc), dtype=bool)
    wrong[row[bad]] = True
    refuse(toc, wrong, "has extents that overlap or lie outside of the file or the segment")
