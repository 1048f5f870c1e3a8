"""The layer index: what the rest of the world needs of one layer, in one file (docs/formats.md, "Layer index").

It is read from disk, and from other hosts: every count, length and value is checked before it is used.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from castoff.errors import Invalid, NotFound, Unavailable
from castoff.image.digest import Digest
from castoff.layers import columns
from castoff.layers.check import check_toc
from castoff.layers.locations import LocationKind, Locations
from castoff.layers.settings import Limits
from castoff.layers.toc import BLOCK, CHUNK, Toc

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
_HEADER = Struct("<8sIIQIIIIIIII32s")
"""magic, version, columns, segment size, chunk size, entries, directories, extents, attribute sets, chunks, blobs, zero,
diffID; the file's BLAKE3 follows it."""
_BODY = _HEADER.size + 32


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
    toc = index.toc
    head = _HEADER.pack(
        MAGIC,
        VERSION,
        columns.COUNT,
        toc.segment_size,
        index.chunk_size,
        len(toc),
        len(toc.directory_offsets) - 1,
        len(toc.extent_row),
        len(toc.xattr_offsets) - 1,
        len(index.digests),
        len(index.locations.blobs),
        0,
        bytes.fromhex(index.diff_id.hex),
    )
    parts = columns.encode_columns(toc, index.digests, index.zero, index.locations)
    digest = blake3(head)
    for part in parts:
        digest.update(part)
    return [head, digest.digest(), *parts]


def decode_index(data: bytes, limits: Limits | None = None) -> LayerIndex:
    """Reads a layer index.

    Raises:
        Invalid: It is damaged, forged, of another version, or over the limits.
    """
    limits = limits or Limits()
    view = memoryview(data)
    if len(view) < _BODY + columns.HEADS or view[:8] != MAGIC:
        raise Invalid("this is no layer index")
    _, version, count, segment_size, chunk_size, *numbers, zero, diff_id = _HEADER.unpack_from(view)
    if version != VERSION or count != columns.COUNT or zero:
        raise Invalid(f"the layer index is of version {version}; this castoff reads version {VERSION}")
    if blake3(view[: _HEADER.size]).update(view[_BODY:]).digest() != view[_HEADER.size : _BODY]:
        raise Invalid("the layer index is damaged: its own checksum is wrong", hint="remove the layer and convert it again")
    counts = columns.Counts(*numbers)
    _bound(counts, segment_size, chunk_size, limits)
    reader = columns.Reader(view[_BODY:])
    toc = columns.read_toc(reader, segment_size, counts, limits)
    chunks = counts.chunks
    digests = reader.pool("chunk digests", 32 * chunks).reshape(chunks, 32)
    zeros = np.unpackbits(reader.pool("zero chunks", -(-chunks // 8)), count=chunks, bitorder="little").astype(np.bool_)
    locations = columns.read_locations(reader, chunks, counts.blobs)
    reader.end()
    check_toc(toc)
    return LayerIndex(Digest(diff_id.hex()), toc, chunk_size, digests, zeros, locations)


def _bound(counts: columns.Counts, segment_size: int, chunk_size: int, limits: Limits) -> None:
    """Refuses counts before memory is taken for them: a constant column has no bytes that would bound it."""
    most = limits.max_entries
    if counts.entries > most or counts.extents > 2 * most or max(counts.directories, counts.sets) > most + 1:
        raise Invalid(f"the layer index has {counts.entries} entries and {counts.extents} extents; {most} entries are allowed")
    if chunk_size != CHUNK or segment_size % BLOCK or segment_size > 1 << 44 or counts.chunks != -(-segment_size // CHUNK):
        raise Invalid(f"the layer index has {counts.chunks} chunks of {chunk_size} bytes for {segment_size} bytes")
