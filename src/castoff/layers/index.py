"""The layer index: what the rest of the world needs of one layer, in one file (docs/formats.md, "Layer index").

It is read from disk, and from other hosts: every count, length and value is checked before it is used.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from castoff.errors import Invalid, NotFound, Unavailable
from castoff.image.digest import Digest
from castoff.layers import column, tree
from castoff.layers.check import check_toc
from castoff.layers.column import RAW, Encoded
from castoff.layers.settings import Limits
from castoff.layers.toc import BLOCK, CHUNK, Kind, Toc

__all__ = [
    "MAGIC",
    "VERSION",
    "LayerIndex",
    "LocationKind",
    "Locations",
    "decode_index",
    "encode_index",
    "read_index",
    "write_index",
]

MAGIC = b"castoffI"
VERSION = 1
_HEADER = Struct("<8sIIQIIIIIIII32s32s")
"""magic, version, columns, segment size, chunk size, entries, directories, extents, attribute sets, chunks, blobs, zero,
diffID, BLAKE3."""
_DIGEST_AT = _HEADER.size - 32
_COLUMN = Struct("<BB6xqQ")
"""encoding, width, base, bytes of data."""
_COLUMNS = 31
_ALIGN = 8
_U32, _I64 = (1 << 32) - 1, (1 << 63) - 1


class LocationKind(enum.IntEnum):
    """How a chunk can be had from a blob."""

    LOCAL = 0
    """From no blob: only from the segment itself, here or at a peer."""
    PACK = 1
    """A zstd frame of its own in a pack."""


@dataclass(frozen=True, slots=True, eq=False)
class Locations:
    """Where each of C chunks lies outside of this host; B blobs."""

    kind: NDArray[np.uint8]
    """[C] of :class:`LocationKind`."""
    blob: NDArray[np.uint32]
    """[C] number of the blob in ``blobs``; 0 where the kind has none."""
    offset: NDArray[np.uint64]
    """[C] first byte in the blob."""
    length: NDArray[np.uint32]
    """[C] bytes in the blob."""
    blobs: tuple[Digest, ...] = ()
    """The B blobs' digests."""

    @classmethod
    def local(cls, count: int) -> Locations:
        """``count`` chunks that are nowhere but here."""
        return cls(np.zeros(count, np.uint8), np.zeros(count, np.uint32), np.zeros(count, np.uint64), np.zeros(count, np.uint32))


@dataclass(frozen=True, slots=True, eq=False)
class LayerIndex:
    """All that composing a rootfs, fetching and checking need to know of one layer."""

    diff_id: Digest
    toc: Toc
    chunk_size: int
    """Bytes of a chunk; the segment's last one may be shorter."""
    digests: NDArray[np.uint8]
    """[C, 32] BLAKE3-256 of each chunk."""
    zero: NDArray[np.bool_]
    """[C] chunks of nothing but zeros: holes, never fetched."""
    locations: Locations

    @property
    def segment_size(self) -> int:
        """Bytes of the segment."""
        return self.toc.segment_size


def write_index(path: Path, index: LayerIndex) -> None:
    """Writes a new file and syncs it; the caller gives it its final name.

    Raises:
        FileExistsError, OSError: As the system says.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        for part in encode_index(index):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def read_index(path: Path) -> LayerIndex:
    """Reads the layer index at ``path``.

    Raises:
        NotFound: There is none.
        Unavailable: It cannot be read.
        Invalid: It is damaged or forged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such layer index") from error
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    try:
        return decode_index(data)
    except Invalid as error:
        raise Invalid(f"{path}: {error.what}", hint=error.hint) from error


def encode_index(index: LayerIndex) -> list[bytes | bytearray | memoryview]:
    """The file's bytes, in parts; the same for the same index, always."""
    toc, locations = index.toc, index.locations
    columns = [Encoded(RAW, 0, 0, item.tobytes()) if isinstance(item, _Pool) else column.encode(item) for item in _stored(index)]
    heads = b"".join(_COLUMN.pack(item.encoding, item.width, item.base, len(item.data)) for item in columns)
    parts: list[bytes | bytearray | memoryview] = [heads]
    for item in columns:
        parts += (item.data, bytes(-len(item.data) % _ALIGN))
    head = _HEADER.pack(
        MAGIC,
        VERSION,
        _COLUMNS,
        toc.segment_size,
        index.chunk_size,
        len(toc),
        len(toc.directory_offsets) - 1,
        len(toc.extent_row),
        len(toc.xattr_offsets) - 1,
        len(index.digests),
        len(locations.blobs),
        0,
        bytes.fromhex(index.diff_id.hex),
        bytes(32),
    )
    digest = blake3(head[:_DIGEST_AT])
    for part in parts:
        digest.update(part)
    return [head[:_DIGEST_AT], digest.digest(), *parts]


class _Pool(bytes):
    """A column that is stored as it is."""

    def tobytes(self) -> bytes:
        return self


def _stored(index: LayerIndex) -> list[Any]:
    toc, locations = index.toc, index.locations
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
        _Pool(index.digests.tobytes()),
        _Pool(np.packbits(index.zero, bitorder="little").tobytes()),
        locations.kind,
        locations.blob,
        locations.offset,
        locations.length,
        _Pool(b"".join(bytes.fromhex(blob.hex) for blob in locations.blobs)),
    ]


class _Reader:
    """Walks over the columns of a file, in order."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._head = _HEADER.size
        self._at = _HEADER.size + _COLUMNS * _COLUMN.size

    def _next(self, what: str) -> Encoded:
        encoding, width, base, length = _COLUMN.unpack_from(self._data, self._head)
        self._head += _COLUMN.size
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


def decode_index(data: bytes, limits: Limits | None = None) -> LayerIndex:
    """Reads a layer index.

    Raises:
        Invalid: It is damaged, forged, of another version, or over the limits.
    """
    limits = limits or Limits()
    view = memoryview(data)
    if len(view) < _HEADER.size + _COLUMNS * _COLUMN.size or view[:8] != MAGIC:
        raise Invalid("this is no layer index")
    head = _HEADER.unpack_from(view)
    _, version, columns, segment_size, chunk_size, entries, directories, extents, sets, chunks, blobs, zero, diff_id, digest = (
        head
    )
    if version != VERSION or columns != _COLUMNS or zero:
        raise Invalid(f"the layer index is of version {version}; this castoff reads version {VERSION}")
    if blake3(view[:_DIGEST_AT]).update(view[_HEADER.size :]).digest() != digest:
        raise Invalid("the layer index is damaged: its own checksum is wrong", hint="remove the layer and convert it again")
    if entries > limits.max_entries or extents > 2 * limits.max_entries or max(directories, sets) > limits.max_entries + 1:
        raise Invalid(f"the layer index has {entries} entries and {extents} extents; {limits.max_entries} entries are allowed")
    if chunk_size != CHUNK or segment_size % BLOCK or segment_size > 1 << 44 or chunks != -(-segment_size // chunk_size):
        raise Invalid(f"the layer index has {chunks} chunks of {chunk_size} bytes for {segment_size} bytes")
    reader = _Reader(view)
    toc = _toc(reader, segment_size, entries, directories, extents, sets, limits)
    digests = reader.pool("chunk digests", 32 * chunks).reshape(chunks, 32)
    zeros = np.unpackbits(reader.pool("zero chunks", -(-chunks // 8)), count=chunks, bitorder="little").astype(np.bool_)
    locations = _locations(reader, chunks, blobs)
    reader.end()
    check_toc(toc)
    return LayerIndex(Digest(diff_id.hex()), toc, chunk_size, digests, zeros, locations)


def _toc(reader: _Reader, segment_size: int, entries: int, directories: int, extents: int, sets: int, limits: Limits) -> Toc:
    base = reader.integers("directory bases", directories, np.uint32, _U32)
    suffix_length = reader.integers("directory suffix lengths", directories, np.uint32, limits.max_path)
    suffixes = reader.pool("directory suffixes", int(suffix_length.sum(dtype=np.int64)))
    directory_pool, directory_offsets = tree.decode_paths(
        tree.FrontCoded(base, suffix_length, suffixes), longest=limits.max_path, limit=limits.max_strings
    )
    directory = reader.integers("directories", entries, np.uint32, directories - 1)
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
    xattr = reader.integers("attribute sets", entries, np.uint32, sets - 1)
    xattr_pool, xattr_offsets = reader.strings("attributes", sets, limits.max_xattr)
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


def _locations(reader: _Reader, chunks: int, blobs: int) -> Locations:
    kind = reader.integers("location kinds", chunks, np.uint8, max(LocationKind))
    blob = reader.integers("location blobs", chunks, np.uint32, max(blobs - 1, 0))
    offset = reader.integers("location offsets", chunks, np.uint64, 1 << 44)
    length = reader.integers("location lengths", chunks, np.uint32, 2 * CHUNK)
    digests = reader.pool("blobs", 32 * blobs).tobytes()
    if not blobs and kind.any():
        raise Invalid("the layer index has chunks in a blob and no blob")
    return Locations(kind, blob, offset, length, tuple(Digest(digests[at : at + 32].hex()) for at in range(0, 32 * blobs, 32)))
