"""The table of contents of one layer: one row per tar entry, in tar order, in columns.

Columns are numpy arrays, so that a table of a million rows loads without work per row. Strings lie in pools, each with an
array of offsets (one longer than its count of strings). Nothing is resolved here: duplicates, entries below files and
hardlinks to nowhere stand as the tar had them; applying layers (castoff.ext4) gives them their meaning.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALIGNED", "BLOCK", "CHUNK", "GAPS", "Kind", "Toc"]

BLOCK = 4096
"""Bytes in a block: files start on one in a segment, and it is the ext4 block size."""

CHUNK = 256 * 1024
"""Bytes in a chunk: the unit of fetch and verification. Each segment in a rootfs starts on one."""

ALIGNED = 4 * CHUNK
"""Bytes from which on a file starts on a chunk in its segment, so that its chunks depend on its contents alone. For smaller
files the gaps would cost more than what their few whole chunks can share: 3 % of an image of Python wheels, against 1 %."""

GAPS = 32 << 20
"""Bytes that all gaps before aligned files of one segment may take: what they cost is bounded, however large the layer."""


class Kind(enum.IntEnum):
    """What a row is. WHITEOUT and OPAQUE never become files; their row's name is the name that they hide."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2
    HARDLINK = 3
    CHARACTER = 4
    BLOCK = 5
    FIFO = 6
    WHITEOUT = 7
    """``.wh.NAME``: NAME (the row's name) of lower layers is gone."""
    OPAQUE = 8
    """``.wh..wh..opq``: what lower layers have in the row's directory is gone; the row's name is empty."""


@dataclass(frozen=True, slots=True, eq=False)
class Toc:
    """One layer's table of contents; N rows, D distinct parent directories, E extents, X xattr sets.

    Paths are normalised by the tar reader: relative to the root, no empty, ``.`` or ``..`` component, none over 255
    bytes, none with a NUL; absolute names are under the root. They are bytes, in no particular encoding. Parents that
    are symlinks are *not* resolved.
    """

    directory_pool: NDArray[np.uint8]
    """The D parent directories' paths, joined; directory 0 is the root and is empty."""
    directory_offsets: NDArray[np.uint32]
    """[D + 1] offsets into ``directory_pool``."""
    directory: NDArray[np.uint32]
    """[N] the row's parent directory."""
    name_pool: NDArray[np.uint8]
    name_offsets: NDArray[np.uint32]
    """[N + 1] offsets into ``name_pool``; a row's name is its last component (empty for the root itself and OPAQUE)."""
    kind: NDArray[np.uint8]
    """[N] of :class:`Kind`."""
    mode: NDArray[np.uint16]
    """[N] the permission bits with set-id and sticky: ``0o7777`` at most."""
    uid: NDArray[np.uint32]
    gid: NDArray[np.uint32]
    mtime: NDArray[np.int64]
    """[N] seconds since 1970, may be negative."""
    mtime_ns: NDArray[np.uint32]
    """[N] nanoseconds after ``mtime``, 0 to 999,999,999."""
    size: NDArray[np.uint64]
    """[N] bytes of a FILE, else 0."""
    rdev_major: NDArray[np.uint32]
    rdev_minor: NDArray[np.uint32]
    """[N] device numbers of CHARACTER and BLOCK, else 0."""
    link_pool: NDArray[np.uint8]
    link_offsets: NDArray[np.uint32]
    """[N + 1] offsets into ``link_pool``: a SYMLINK's target as it is, a HARDLINK's as a normalised path; else empty."""
    xattr: NDArray[np.uint32]
    """[N] the row's xattr set; set 0 is the empty one."""
    xattr_pool: NDArray[np.uint8]
    """The X sets, each a run of ``u16 name length, u32 value length, name, value`` (little endian), sorted by name;
    names are whole (``user.x``, ``security.capability``)."""
    xattr_offsets: NDArray[np.uint32]
    """[X + 1] offsets into ``xattr_pool``."""
    extent_row: NDArray[np.uint32]
    """[E] the FILE row that the extent belongs to, ascending; extents of a row ascend by ``extent_logical``."""
    extent_logical: NDArray[np.uint32]
    """[E] the extent's first block in the file."""
    extent_segment: NDArray[np.uint32]
    """[E] the extent's first block in the segment."""
    extent_blocks: NDArray[np.uint32]
    """[E] blocks in the extent, of any count. What no extent covers of a file is a hole."""
    segment_size: int
    """Bytes of the segment: a multiple of BLOCK."""

    def __len__(self) -> int:
        return len(self.kind)
