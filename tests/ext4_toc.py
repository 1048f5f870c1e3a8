"""Tables of contents written straight, row by row, with the segment that belongs to them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from castoff.layers.toc import ALIGNED, BLOCK, CHUNK, Kind, Toc

__all__ = ["Row", "build_toc"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row; ``path`` is normalised, ``target`` a link's, ``holes`` blocks of a file that are left out."""

    path: bytes
    kind: Kind = Kind.FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    mtime_ns: int = 0
    contents: bytes = field(default=b"", repr=False)
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    attributes: tuple[tuple[bytes, bytes], ...] = ()
    holes: frozenset[int] = field(default_factory=frozenset)
    size: int | None = None
    """Of a file that ends with a hole."""


def _pool(items: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, items)]).astype(np.uint32)
    return np.frombuffer(b"".join(items), dtype=np.uint8), offsets


def _attribute_set(attributes: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(struct.pack("<HI", len(name), len(value)) + name + value for name, value in sorted(attributes))


def build_toc(rows: Sequence[Row]) -> tuple[Toc, bytes]:
    """The TOC of ``rows``, and its segment."""
    directories: dict[bytes, int] = {b"": 0}
    sets: dict[bytes, int] = {b"": 0}
    directory, names, xattr = [], [], []
    segment = bytearray()
    extents: list[tuple[int, int, int, int]] = []
    for number, row in enumerate(rows):
        parent, _, name = row.path.rpartition(b"/")
        if row.kind == Kind.OPAQUE:
            parent, name = row.path, b""
        directory.append(directories.setdefault(parent, len(directories)))
        names.append(name)
        xattr.append(sets.setdefault(_attribute_set(row.attributes), len(sets)))
        if len(row.contents) >= ALIGNED:
            segment += bytes(-len(segment) % CHUNK)
        for block in range(-(-len(row.contents) // BLOCK)):
            if block in row.holes:
                continue
            place = len(segment) // BLOCK
            data = row.contents[block * BLOCK : (block + 1) * BLOCK]
            segment += data + bytes(-len(data) % BLOCK)
            last = extents[-1] if extents else (-1, 0, 0, 0)
            if last[0] == number and last[1] + last[3] == block and last[2] + last[3] == place:
                extents[-1] = (*last[:3], last[3] + 1)
            else:
                extents.append((number, block, place, 1))
    directory_pool, directory_offsets = _pool(list(directories))
    name_pool, name_offsets = _pool(names)
    link_pool, link_offsets = _pool([row.target for row in rows])
    xattr_pool, xattr_offsets = _pool(list(sets))
    columns = np.array(extents, dtype=np.uint32).reshape(-1, 4).T
    sizes = [0 if row.kind != Kind.FILE else len(row.contents) if row.size is None else row.size for row in rows]
    toc = Toc(
        directory_pool=directory_pool,
        directory_offsets=directory_offsets,
        directory=np.array(directory, dtype=np.uint32),
        name_pool=name_pool,
        name_offsets=name_offsets,
        kind=np.array([row.kind for row in rows], dtype=np.uint8),
        mode=np.array([row.mode for row in rows], dtype=np.uint16),
        uid=np.array([row.uid for row in rows], dtype=np.uint32),
        gid=np.array([row.gid for row in rows], dtype=np.uint32),
        mtime=np.array([row.mtime for row in rows], dtype=np.int64),
        mtime_ns=np.array([row.mtime_ns for row in rows], dtype=np.uint32),
        size=np.array(sizes, dtype=np.uint64),
        rdev_major=np.array([row.device[0] for row in rows], dtype=np.uint32),
        rdev_minor=np.array([row.device[1] for row in rows], dtype=np.uint32),
        link_pool=link_pool,
        link_offsets=link_offsets,
        xattr=np.array(xattr, dtype=np.uint32),
        xattr_pool=xattr_pool,
        xattr_offsets=xattr_offsets,
        extent_row=columns[0].copy(),
        extent_logical=columns[1].copy(),
        extent_segment=columns[2].copy(),
        extent_blocks=columns[3].copy(),
        segment_size=len(segment),
    )
    return toc, bytes(segment)
