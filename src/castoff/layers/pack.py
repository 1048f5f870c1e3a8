"""The pack of a layer: its segment's chunks, each its own zstd frame, one after another (docs/formats.md, "Pack").

One pack is one blob of a registry, read by ranges. Chunks of zeros are left out. The bytes follow from the segment, the
chunk size, and the compressor with its version, which the artifact records: two hosts with the same make the same blob, so
the registry's own deduplication is ours.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

import zstandard
from blake3 import blake3

from castoff.errors import DigestMismatch, Invalid
from castoff.image.digest import Digest
from castoff.layers.index import LayerIndex
from castoff.layers.locations import LocationKind, Locations

__all__ = [
    "COMPRESSOR",
    "HEAD",
    "Pack",
    "check_locations",
    "chunk_size",
    "pack_chunk",
    "pack_chunks",
    "unpack_chunk",
    "verify_chunk",
]

LEVEL = 3
COMPRESSOR = f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))} level {LEVEL}"
"""What made the frames: with another, the same chunks give other bytes, as good."""
_SKIPPABLE = 0x184D2A50
HEAD = Struct("<II8sI").pack(_SKIPPABLE, 12, b"castoffP", 1)
"""The pack's first bytes: a skippable frame (RFC 8878 3.1.2) with magic and version. So no pack is empty, which not every
registry takes, and ``zstd -d`` makes of a pack the segment without its chunks of zeros."""
_local = threading.local()


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack that was made."""

    digest: Digest
    size: int
    locations: Locations
    """Where in it each chunk of the segment is."""
    compressor: str = COMPRESSOR


def pack_chunks(chunks: Sequence[bytes | memoryview]) -> list[bytes]:
    """The chunks' frames, in order, each with its content size and without a checksum: BLAKE3 is what counts.

    One call of zstandard for all: it keeps the GIL away for as long, and getting that back is what costs beside a thread
    that parses a tar (up to 5 ms each time, CPython's switch interval; a chunk takes 1 ms).
    """
    if not chunks:
        return []
    compressor: zstandard.ZstdCompressor | None = getattr(_local, "compressor", None)
    if compressor is None:  # one a thread: neither may be used by two at once
        compressor = _local.compressor = zstandard.ZstdCompressor(
            level=LEVEL, write_checksum=False, write_content_size=True, write_dict_id=False
        )
    frames = compressor.multi_compress_to_buffer(list(chunks), threads=0)
    return [frames[number].tobytes() for number in range(len(frames))]


def pack_chunk(data: bytes | memoryview) -> bytes:
    """One chunk's frame, as :func:`pack_chunks` makes it."""
    return pack_chunks([data])[0]


def unpack_chunk(frame: bytes | memoryview, size: int) -> bytes:
    """The chunk in a frame that came from anywhere: exactly ``size`` bytes, which are all the memory that it can take.

    Raises:
        Invalid: It is no zstd frame, has another size, or something follows it.
    """
    decompressor: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    try:
        told = zstandard.get_frame_parameters(frame).content_size
        if told != size:
            raise Invalid(f"a frame says that it holds {told} bytes and should hold {size}")
        return decompressor.decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Invalid(f"a chunk's frame cannot be decompressed: {error}") from error


def chunk_size(index: LayerIndex, number: int) -> int:
    """Bytes of a chunk: the segment's last one may be shorter."""
    return min(index.chunk_size, index.segment_size - number * index.chunk_size)


def verify_chunk(index: LayerIndex, number: int, data: bytes | memoryview) -> None:
    """Checks a chunk's bytes.

    Raises:
        DigestMismatch: They are not those of chunk ``number``.
    """
    expected, actual = index.digests[number].tobytes(), blake3(data).digest()
    if actual != expected:
        what = f"chunk {number} of layer {index.diff_id}"
        raise DigestMismatch(what, expected=f"blake3:{expected.hex()}", actual=f"blake3:{actual.hex()}")


def check_locations(index: LayerIndex, pack: Digest, size: int) -> None:
    """Checks that an index says of every chunk where it lies in the pack of ``size`` bytes.

    Raises:
        Invalid: A chunk is nowhere, in another blob, or outside of the pack.
    """
    where = index.locations
    here = where.kind == LocationKind.PACK
    ends = where.offset + where.length
    if where.blobs not in ((), (pack,)) or (here == index.zero).any():
        raise Invalid(f"the index of layer {index.diff_id} has chunks that are not in its pack")
    if (where.length[here] == 0).any() or (where.offset[here] < len(HEAD)).any() or (ends[here] > size).any():
        raise Invalid(f"the index of layer {index.diff_id} has chunks outside of its pack's {size} bytes")
