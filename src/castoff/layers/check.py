"""Checks of a table of contents that came from outside: what castoff.ext4 relies on, all of it without work per row."""

from __future__ import annotations

from itertools import pairwise
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid
from castoff.layers.toc import BLOCK, Kind, Toc

__all__ = ["check_toc"]

_XATTR = Struct("<HI")
_LINKS = (Kind.SYMLINK, Kind.HARDLINK)
_SLASH, _DOT = ord("/"), ord(".")


def check_toc(toc: Toc) -> None:
    """Checks what the columns' own ranges do not say.

    Raises:
        Invalid: A name, link, attribute set or extent that no conversion makes.
    """
    _names(toc)
    _links(toc)
    _xattrs(toc)
    _extents(toc)


def _refuse(what: str) -> Invalid:
    return Invalid(f"the layer index has {what}", hint="it is damaged or forged; remove the layer and convert it again")


def _names(toc: Toc) -> None:
    _paths(toc.directory_pool, toc.directory_offsets[1:], "a directory path that is not normalised")
    lengths = np.diff(toc.name_offsets)
    nameless = (toc.kind == Kind.OPAQUE) | ((toc.kind == Kind.DIRECTORY) & (toc.directory == 0))
    if ((lengths == 0) & ~nameless).any() or ((lengths != 0) & (toc.kind == Kind.OPAQUE)).any():
        raise _refuse("a nameless row, or an opaque one with a name")
    named = toc.name_offsets[np.concatenate(([True], lengths != 0))]
    _paths(toc.name_pool, named, "a name that is not normalised")
    if (toc.name_pool == _SLASH).any():
        raise _refuse("a name with a slash")


def _links(toc: Toc) -> None:
    lengths = np.diff(toc.link_offsets)
    links = np.isin(toc.kind, _LINKS)
    # A hardlink's target may be the root itself, which is empty; applying layers refuses it.
    if lengths[~links].any() or (lengths[toc.kind == Kind.SYMLINK] == 0).any():
        raise _refuse("a symlink without a target, or a target without a link")
    if (toc.link_pool == 0).any():
        raise _refuse("a link target with a NUL")
    hard = toc.kind == Kind.HARDLINK
    if lengths[hard].any():
        starts, ends = toc.link_offsets[:-1][hard], toc.link_offsets[1:][hard]
        targets = [toc.link_pool[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True) if end > start]
        bounds = np.cumsum([0, *map(len, targets)])
        _paths(np.concatenate(targets), bounds, "a hardlink target that is not normalised")


def _paths(pool: NDArray[np.uint8], bounds: NDArray[Any], what: str) -> None:
    """Checks that the strings that ``bounds`` cut ``pool`` into are paths of sane components."""
    if not len(pool):
        return
    slashes = np.flatnonzero(pool == _SLASH)
    # A component starts at each bound and after each slash, and ends at the next bound or slash.
    starts = np.sort(np.concatenate((bounds[:-1].astype(np.int64), slashes + 1)), kind="stable")
    ends = np.sort(np.concatenate((bounds[1:].astype(np.int64), slashes)), kind="stable")
    lengths = ends - starts
    if (lengths < 1).any() or (lengths > 255).any() or (pool == 0).any():
        raise _refuse(what)
    dotted = pool[starts] == _DOT
    second = pool[np.minimum(starts + 1, len(pool) - 1)] == _DOT
    if (dotted & ((lengths == 1) | ((lengths == 2) & second))).any():
        raise _refuse(what)


def _xattrs(toc: Toc) -> None:
    pool = toc.xattr_pool.tobytes()
    for at, end in pairwise(toc.xattr_offsets.tolist()):
        last = b""
        while at < end:
            if end - at < _XATTR.size:
                raise _refuse("a broken attribute set")
            name_length, value_length = _XATTR.unpack_from(pool, at)
            name = pool[at + _XATTR.size : at + _XATTR.size + name_length]
            at += _XATTR.size + name_length + value_length
            if at > end or not last < name or len(name) > 255 or b"\0" in name or value_length > 65536:
                raise _refuse("a broken attribute set")
            last = name


def _extents(toc: Toc) -> None:
    row = toc.extent_row
    if not len(row):
        return
    logical_end = toc.extent_logical.astype(np.int64) + toc.extent_blocks
    segment_end = toc.extent_segment.astype(np.int64) + toc.extent_blocks
    if (toc.extent_blocks == 0).any() or (toc.kind[row] != Kind.FILE).any():
        raise _refuse("an empty extent, or one of a row that is no file")
    if (logical_end * BLOCK >= toc.size[row].astype(np.int64) + BLOCK).any() or int(segment_end[-1]) * BLOCK > toc.segment_size:
        raise _refuse("an extent past the end of its file or segment")
    if (toc.extent_segment[1:] < segment_end[:-1]).any():
        raise _refuse("extents that overlap")
    if ((np.diff(row.astype(np.int64)) == 0) & (toc.extent_logical[1:] < logical_end[:-1])).any():
        raise _refuse("extents of a file that overlap")
