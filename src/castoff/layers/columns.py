"""The columns of a layer index, in their order in the file (docs/formats.md, "Columns"): both ways."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid
from castoff.image.digest import Digest
from castoff.layers import column, tree
from castoff.layers.column import RAW, Encoded
from castoff.layers.locations import LocationKind, Locations
from castoff.layers.settings import Limits
from castoff.layers.toc import BLOCK, CHUNK, Kind, Toc

__all__ = ["COUNT", "HEADS", "Counts", "Reader", "encode_columns", "read_locations", "read_toc"]

COUNT = 31
"""Columns in an index."""
_HEAD = Struct("<BB6xqQ")
"""encoding, width, base, bytes of data."""
HEADS = COUNT * _HEAD.size
"""Bytes of the columns' heads, which come before their data."""
_ALIGN = 8
_U32, _I64 = (1 << 32) - 1, (1 << 63) - 1
_BLOB = 1 << 44
"""The largest offset in a blob."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many of everything an index has; see docs/formats.md for the letters."""

    entries: int
    directories: int
    extents: int
    sets: int
    chunks: int
    blobs: int


class _Pool(bytes):
    """A column that is stored as it is."""


def encode_columns(
    toc: Toc, digests: NDArray[np.uint8], zero: NDArray[np.bool_], locations: Locations
) -> list[bytes | bytearray | memoryview]:
    """Heads and data of all columns, in parts."""
    values = _table(toc) + _chunks(digests, zero, locations)
    columns = [Encoded(RAW, 0, 0, item) if isinstance(item, _Pool) else column.encode(item) for item in values]
    parts: list[bytes | bytearray | memoryview] = [
        b"".join(_HEAD.pack(item.encoding, item.width, item.base, len(item.data)) for item in columns)
    ]
    for item in columns:
        parts += (item.data, bytes(-len(item.data) % _ALIGN))
    return parts


def _table(toc: Toc) -> list[Any]:
    paths = tree.encode_paths(toc.directory_pool, toc.directory_offsets)
    ends = toc.extent_segment.astype(np.int64) + toc.extent_blocks
    return [
        paths.base,
        paths.suffix_length,
        _Pool(paths.suffixes.tobytes()),
        toc.directory,
        np.diff(toc.name_offsets),
        _Pool(toc.name_pool.tobytes()),
        toc.kind,
        toc.mode,
        toc.uid,
        toc.gid,
        toc.mtime,
        toc.mtime_ns,
        toc.size,
        toc.rdev_major,
        toc.rdev_minor,
        np.diff(toc.link_offsets),
        _Pool(toc.link_pool.tobytes()),
        toc.xattr,
        np.diff(toc.xattr_offsets),
        _Pool(toc.xattr_pool.tobytes()),
        np.diff(toc.extent_row, prepend=np.uint32(0)),
        toc.extent_logical,
        toc.extent_segment - np.concatenate(([0], ends))[: len(ends)],
        toc.extent_blocks,
    ]


def _chunks(digests: NDArray[np.uint8], zero: NDArray[np.bool_], locations: Locations) -> list[Any]:
    return [
        _Pool(digests.tobytes()),
        _Pool(np.packbits(zero, bitorder="little").tobytes()),
        locations.kind,
        locations.blob,
        _gaps(locations),
        locations.length,
        _Pool(b"".join(bytes.fromhex(blob.hex) for blob in locations.blobs)),
    ]


def _gaps(locations: Locations) -> NDArray[np.int64]:
    """Bytes between each chunk in a blob and the end of the one before it in the segment: all 0 in a pack of its own."""
    packed = np.flatnonzero(locations.kind)
    starts = locations.offset[packed].astype(np.int64)
    ends = starts + locations.length[packed]
    gaps = np.zeros(len(locations.kind), np.int64)
    gaps[packed] = starts - np.concatenate(([0], ends))[: len(ends)]
    return gaps


class Reader:
    """Walks over the columns, in order; ``data`` is the file after its header, at least ``HEADS`` bytes."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._head = 0
        self._at = HEADS

    def _next(self, what: str) -> Encoded:
        encoding, width, base, length = _HEAD.unpack_from(self._data, self._head)
        self._head += _HEAD.size
        end = self._at + length
        if end > len(self._data):
            raise Invalid(f"the layer index ends inside of its column `{what}`")
        data = self._data[self._at : end]
        self._at = end + -length % _ALIGN
        return Encoded(encoding, width, base, data)

    def pool(self, what: str, size: int | None = None) -> NDArray[np.uint8]:
        """The next column, stored as it is; of ``size`` bytes, if given."""
        item = self._next(what)
        if item.encoding != RAW or (size is not None and len(item.data) != size):
            raise Invalid(f"the layer index's column `{what}` is not as long as it should be")
        return np.frombuffer(item.data, np.uint8)

    def integers(self, what: str, count: int, dtype: type[np.integer[Any]], high: int, low: int = 0) -> NDArray[Any]:
        """The next column, ``count`` integers of ``low`` to ``high``."""
        return column.decode(self._next(what), count, dtype, low=low, high=high, what=what)

    def strings(self, what: str, count: int, longest: int) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
        """The next two columns, lengths and pool, as pool and offsets."""
        lengths = self.integers(f"{what} lengths", count, np.uint32, longest)
        pool = self.pool(what, int(lengths.sum(dtype=np.int64)))
        return pool, offsets(lengths)

    def end(self) -> None:
        """Checks that nothing follows."""
        if self._at != len(self._data):
            raise Invalid("the layer index is longer than its columns")


def offsets(lengths: NDArray[Any]) -> NDArray[np.uint32]:
    """Offsets, one more than there are, of strings that lie end to end, from their lengths."""
    result = np.zeros(len(lengths) + 1, np.uint32)
    np.cumsum(lengths, out=result[1:])
    return result


def read_toc(reader: Reader, segment_size: int, counts: Counts, limits: Limits) -> Toc:
    """The table of contents; its values are in their ranges, what they say together is castoff.layers.check's to check."""
    entries, extents = counts.entries, counts.extents
    base = reader.integers("directory bases", counts.directories, np.uint32, _U32)
    suffix_length = reader.integers("directory suffix lengths", counts.directories, np.uint32, limits.max_path)
    suffixes = reader.pool("directory suffixes", int(suffix_length.sum(dtype=np.int64)))
    directory_pool, directory_offsets = tree.decode_paths(
        tree.FrontCoded(base, suffix_length, suffixes), longest=limits.max_path, limit=limits.max_strings
    )
    directory = reader.integers("directories", entries, np.uint32, counts.directories - 1)
    name_pool, name_offsets = reader.strings("names", entries, 255)
    kind = reader.integers("kinds", entries, np.uint8, max(Kind))
    mode = reader.integers("modes", entries, np.uint16, 0o7777)
    uid = reader.integers("uids", entries, np.uint32, _U32 - 1)
    gid = reader.integers("gids", entries, np.uint32, _U32 - 1)
    mtime = reader.integers("mtimes", entries, np.int64, _I64, low=-_I64 - 1)
    mtime_ns = reader.integers("nanoseconds", entries, np.uint32, 999_999_999)
    size = reader.integers("sizes", entries, np.uint64, (1 << 44) - BLOCK)
    rdev_major = reader.integers("device majors", entries, np.uint32, (1 << 12) - 1)
    rdev_minor = reader.integers("device minors", entries, np.uint32, (1 << 20) - 1)
    link_pool, link_offsets = reader.strings("link targets", entries, limits.max_path)
    xattr = reader.integers("attribute sets", entries, np.uint32, counts.sets - 1)
    xattr_pool, xattr_offsets = reader.strings("attributes", counts.sets, limits.max_xattr)
    row = np.cumsum(reader.integers("extent rows", extents, np.int64, entries))
    logical = reader.integers("extent starts", extents, np.uint32, _U32)
    gap = reader.integers("extent gaps", extents, np.int64, _U32)
    blocks = reader.integers("extent lengths", extents, np.uint32, _U32)
    ends = np.cumsum(gap + blocks)
    if extents and (int(row[-1]) >= entries or int(ends[-1]) * BLOCK > segment_size):
        raise Invalid("the layer index has an extent of no row, or past the segment's end")
    return Toc(
        directory_pool=directory_pool,
        directory_offsets=directory_offsets,
        directory=directory,
        name_pool=name_pool,
        name_offsets=name_offsets,
        kind=kind,
        mode=mode,
        uid=uid,
        gid=gid,
        mtime=mtime,
        mtime_ns=mtime_ns,
        size=size,
        rdev_major=rdev_major,
        rdev_minor=rdev_minor,
        link_pool=link_pool,
        link_offsets=link_offsets,
        xattr=xattr,
        xattr_pool=xattr_pool,
        xattr_offsets=xattr_offsets,
        extent_row=row.astype(np.uint32),
        extent_logical=logical,
        extent_segment=(ends - blocks).astype(np.uint32),
        extent_blocks=blocks,
        segment_size=segment_size,
    )


def read_locations(reader: Reader, chunks: int, blobs: int) -> Locations:
    """Where the chunks are."""
    kind = reader.integers("location kinds", chunks, np.uint8, max(LocationKind))
    blob = reader.integers("location blobs", chunks, np.uint32, max(blobs - 1, 0))
    gap = reader.integers("location gaps", chunks, np.int64, _BLOB, low=-_BLOB)
    length = reader.integers("location lengths", chunks, np.uint32, 2 * CHUNK)
    digests = reader.pool("blobs", 32 * blobs).tobytes()
    nowhere = kind == LocationKind.LOCAL
    placed = blob[nowhere].any() or gap[nowhere].any() or length[nowhere].any()
    if placed or (not blobs and kind.any()):
        raise Invalid("the layer index has chunks in a blob and no blob, or a place for chunks that are in none")
    offset = np.cumsum(gap + length) - length  # a sum that wraps around is checked as any other
    offset[nowhere] = 0
    if chunks and not 0 <= int(offset.min()) <= int(offset.max()) <= _BLOB:
        raise Invalid("the layer index has a chunk outside of any blob")
    return Locations(
        kind,
        blob,
        offset.astype(np.uint64),
        length,
        tuple(Digest(digests[at : at + 32].hex()) for at in range(0, 32 * blobs, 32)),
    )
