"""The hot pack: one blob with the chunks of a boot profile, in its order (docs/formats.md, "Hot pack").

One GET that starts with the create brings all that a boot is going to read, without a round trip in between. The frames
hold the same chunks as those of the packs, so each is checked by its layer's index when it is here, and the blob needs no
trust: one that was tampered with can be slow, but never wrong. What fails in it is fetched from the packs like any other chunk.

Version 1 holds whole chunks. Boots touch about two thirds of the 4 KiB blocks of their chunks, so a pack of blocks would be
a third smaller; it needs digests of blocks, and is a later version's (docs/lazy.md, "What it costs", has the figures).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from struct import Struct
from typing import Final

import numpy as np

from castoff.errors import DigestMismatch, Invalid, Unavailable
from castoff.hydrate.profile import MAX_CHUNKS, ChunkId, Profile
from castoff.image.digest import Digest
from castoff.layers.index import LayerIndex
from castoff.layers.pack import chunk_size, pack_chunk, verify_chunk
from castoff.layers.toc import CHUNK
from castoff.layers.writer import translate

__all__ = ["HEAD_SIZE", "MAX_FRAME", "HotPack", "HotTable", "decode_head", "head_size", "write_hot_pack"]

_SKIPPABLE: Final = 0x184D2A50
_VERSION: Final = 1
_HEAD: Final = Struct("<II8sIIII32s")
"""Magic and bytes of a zstd skippable frame, as a pack's; then ours: magic, version, chunk size, layers, frames, image."""
_MAGIC: Final = b"castoffB"
_ROW: Final = np.dtype([("layer", "<u2"), ("zero", "<u2"), ("chunk", "<u4"), ("length", "<u4")])
_MAX_LAYERS: Final = 1 << 16
_PIECE: Final = 1 << 20

HEAD_SIZE: Final = _HEAD.size
MAX_FRAME: Final = CHUNK + 1024
"""Bytes of a chunk's frame: what zstd makes of a chunk that cannot be compressed is a little over it."""


@dataclass(frozen=True, slots=True)
class HotPack:
    """A hot pack that was written."""

    digest: Digest
    size: int
    chunks: int


@dataclass(frozen=True, slots=True)
class HotTable:
    """What a hot pack holds, in the order in which it comes."""

    chunks: tuple[ChunkId, ...]
    lengths: tuple[int, ...]
    """Bytes of each chunk's frame."""


def head_size(start: bytes, image: Digest) -> int:
    """Bytes of the head, table and all, of a hot pack of ``image``, whose first ``HEAD_SIZE`` bytes are ``start``.

    Raises:
        Invalid: It is none, is another image's, or another version's.
    """
    frame, length, magic, version, chunk, layers, frames, subject = _HEAD.unpack(start)
    if frame != _SKIPPABLE or magic != _MAGIC:
        raise Invalid(f"what should be the hot pack of {image} is none")
    if version != _VERSION or chunk != CHUNK:
        raise Invalid(f"the hot pack of {image} is of version {version}; this castoff reads version {_VERSION}")
    if subject.hex() != image.hex:
        raise Invalid(f"the hot pack of sha256:{subject.hex()} stands where {image}'s should")
    size: int = HEAD_SIZE + 32 * layers + _ROW.itemsize * frames
    if layers > min(frames, _MAX_LAYERS) or frames > MAX_CHUNKS or length != size - 8:
        raise Invalid(f"the hot pack of {image} tells of {frames} chunks of {layers} layers in a head of {length} bytes")
    return size


def decode_head(head: bytes, size: int) -> HotTable:
    """The table in a head of :func:`head_size` bytes.

    Args:
        head: All of it.
        size: Bytes of the whole blob.

    Raises:
        Invalid: It contradicts itself, or the blob's size.
    """
    *_, layers, frames, subject = _HEAD.unpack_from(head)
    names = [Digest(head[at : at + 32].hex()) for at in range(HEAD_SIZE, HEAD_SIZE + 32 * layers, 32)]
    rows = np.frombuffer(head, _ROW, frames, HEAD_SIZE + 32 * layers)
    lengths = rows["length"].astype(np.int64)
    keys = rows["layer"].astype(np.int64) << 32 | rows["chunk"]
    if (rows["layer"] >= layers).any() or rows["zero"].any() or len(np.unique(keys)) != frames or len(set(names)) != layers:
        raise Invalid(f"the hot pack of sha256:{subject.hex()} has a table that contradicts itself")
    if not frames or lengths.min() < 1 or lengths.max() > MAX_FRAME or len(head) + lengths.sum() != size:
        raise Invalid(f"the hot pack of sha256:{subject.hex()} tells of other than its {size} bytes")
    chunks = (ChunkId(names[layer], chunk) for layer, chunk in zip(rows["layer"].tolist(), rows["chunk"].tolist(), strict=True))
    return HotTable(tuple(chunks), tuple(lengths.tolist()))


def write_hot_pack(profile: Profile, layers: Mapping[Digest, tuple[Path, LayerIndex]], target: Path) -> HotPack | None:
    """Writes the hot pack of a profile; blocks.

    Chunks that are not on this host (any more), are zeros, or belong to no layer of ``layers`` are left out.

    Args:
        profile: Which chunks, in which order.
        layers: Segment and index of the image's layers.
        target: The file, which may not exist; the caller deletes it after a failure. It is not synced.

    Returns:
        None where no chunk is left: then there is no file.

    Raises:
        NoSpace, Unavailable: The disk is full, or failed.
    """
    named = {chunk.diff_id for chunk in profile.chunks if chunk.diff_id in layers}
    most = HEAD_SIZE + 32 * len(named) + _ROW.itemsize * len(profile.chunks)
    try:
        with target.open("xb+") as file:
            file.seek(most)
            with _Segments(layers) as segments:
                found = [(chunk, file.write(pack_chunk(data))) for chunk, data in segments.read_all(profile.chunks)]
            if found:
                return _finish(file, profile.image, found, most)
    except OSError as error:
        raise translate(error, target) from error
    target.unlink()
    return None


def _finish(file: BufferedRandom, image: Digest, found: Sequence[tuple[ChunkId, int]], begin: int) -> HotPack:
    """Puts the head before the frames, which begin at ``begin``: known only when all chunks were read, once each.

    A head that is shorter than was thought, because chunks were left out, has its frames moved up to it.
    """
    names = sorted({chunk.diff_id for chunk, _ in found})
    rows = np.zeros(len(found), _ROW)
    rows["layer"] = [names.index(chunk.diff_id) for chunk, _ in found]
    rows["chunk"] = [chunk.number for chunk, _ in found]
    rows["length"] = [length for _, length in found]
    size = HEAD_SIZE + 32 * len(names) + _ROW.itemsize * len(found)
    head = _HEAD.pack(_SKIPPABLE, size - 8, _MAGIC, _VERSION, CHUNK, len(names), len(found), bytes.fromhex(image.hex))
    end = size + sum(length for _, length in found)
    if size != begin:
        _move_up(file, begin, size, end - size)
        file.truncate(end)
    file.seek(0)
    file.write(b"".join((head, *(bytes.fromhex(name.hex) for name in names), rows.tobytes())))
    file.seek(0)
    return HotPack(Digest(hashlib.file_digest(file, "sha256").hexdigest()), end, len(found))


def _move_up(file: BufferedRandom, source: int, target: int, length: int) -> None:
    """Moves bytes towards the file's beginning, a piece at a time."""
    for at in range(0, length, _PIECE):
        file.seek(source + at)
        piece = file.read(min(_PIECE, length - at))
        file.seek(target + at)
        file.write(piece)


class _Segments:
    """The layers' segments, open for reading; a context manager."""

    def __init__(self, layers: Mapping[Digest, tuple[Path, LayerIndex]]) -> None:
        self._layers = layers
        self._open: dict[Digest, int] = {}

    def __enter__(self) -> _Segments:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def read_all(self, chunks: Iterable[ChunkId]) -> Iterator[tuple[ChunkId, bytes]]:
        """Those of the chunks that are here."""
        for chunk in chunks:
            data = self.read(chunk)
            if data is not None:
                yield chunk, data

    def read(self, chunk: ChunkId) -> bytes | None:
        """The chunk's bytes, verified; None where they are not here."""
        if chunk.diff_id not in self._layers:
            return None
        path, index = self._layers[chunk.diff_id]
        if chunk.number >= len(index.digests) or index.zero[chunk.number]:
            return None
        try:
            if chunk.diff_id not in self._open:
                self._open[chunk.diff_id] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            data = os.pread(self._open[chunk.diff_id], chunk_size(index, chunk.number), chunk.number * CHUNK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(f"{path}: {error.strerror}") from error
        try:
            verify_chunk(index, chunk.number, data)
        except DigestMismatch:
            return None  # a hole: it was not hydrated, or is evicted
        return data
