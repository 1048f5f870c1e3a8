"""Converts layers in tests, and reads back what the index and the segment say, entry by entry."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from struct import unpack_from

from castoff.image.digest import Digest
from castoff.image.image import Layer
from castoff.layers.convert import convert
from castoff.layers.index import LayerIndex, read_index
from castoff.layers.settings import Limits
from castoff.layers.toc import BLOCK, Kind

__all__ = ["Row", "convert_bytes", "layer_of", "pieces", "read_rows"]

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table of contents, with its data."""

    path: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_ns: int
    size: int
    device: tuple[int, int]
    link: bytes
    xattrs: dict[bytes, bytes]
    data: bytes | None
    """A file's content, holes as zeros; None where it is over 64 MiB."""
    extents: tuple[tuple[int, int, int], ...]


def layer_of(blob: bytes, tar: bytes, media_type: str = GZIP) -> Layer:
    """What a manifest and a config would say of a blob and the tar inside."""
    return Layer(digest=Digest.of(blob), size=len(blob), media_type=media_type, diff_id=Digest.of(tar))


async def pieces(blob: bytes, sizes: Iterable[int] = (65536,)) -> AsyncIterator[bytes]:
    """The blob in pieces of the given sizes, over and over."""
    at = 0
    for size in itertools.cycle(sizes):
        if at >= len(blob):
            return
        yield blob[at : at + size]
        at += size


async def convert_bytes(
    directory: Path, blob: bytes, tar: bytes | None = None, *, sizes: Iterable[int] = (65536,), limits: Limits | None = None
) -> LayerIndex:
    """Converts a blob into ``directory``, which is made, and reads the index."""
    directory.mkdir(exist_ok=True)
    await convert(layer_of(blob, blob if tar is None else tar), pieces(blob, sizes), directory, limits or Limits())
    assert sorted(entry.name for entry in directory.iterdir()) == ["index", "segment"]
    return read_index(directory / "index")


def read_rows(directory: Path) -> list[Row]:
    """All rows of a converted layer, in order; checks that the segment has the size that the index says."""
    index = read_index(directory / "index")
    segment = (directory / "segment").read_bytes()
    assert len(segment) == index.segment_size == index.toc.segment_size
    return [_row(index, number, segment) for number in range(len(index.toc))]


def _row(index: LayerIndex, number: int, segment: bytes) -> Row:
    toc = index.toc
    parent = int(toc.directory[number])
    directory = toc.directory_pool[toc.directory_offsets[parent] : toc.directory_offsets[parent + 1]].tobytes()
    name = toc.name_pool[toc.name_offsets[number] : toc.name_offsets[number + 1]].tobytes()
    extents = tuple(
        (int(toc.extent_logical[extent]), int(toc.extent_segment[extent]), int(toc.extent_blocks[extent]))
        for extent in (toc.extent_row == number).nonzero()[0]
    )
    size = int(toc.size[number])
    kind = Kind(toc.kind[number])
    return Row(
        path=directory + b"/" + name if directory and name else directory or name,
        kind=kind,
        mode=int(toc.mode[number]),
        uid=int(toc.uid[number]),
        gid=int(toc.gid[number]),
        mtime=int(toc.mtime[number]),
        mtime_ns=int(toc.mtime_ns[number]),
        size=size,
        device=(int(toc.rdev_major[number]), int(toc.rdev_minor[number])),
        link=toc.link_pool[toc.link_offsets[number] : toc.link_offsets[number + 1]].tobytes(),
        xattrs=_xattrs(index, int(toc.xattr[number])),
        data=_data(size, extents, segment) if kind == Kind.FILE and size <= 64 << 20 else None,
        extents=extents,
    )


def _xattrs(index: LayerIndex, number: int) -> dict[bytes, bytes]:
    at, end = (int(offset) for offset in index.toc.xattr_offsets[number : number + 2])
    pool = index.toc.xattr_pool.tobytes()
    found = {}
    while at < end:
        name, value = unpack_from("<HI", pool, at)
        at += 6
        found[pool[at : at + name]] = pool[at + name : at + name + value]
        at += name + value
    return found


def _data(size: int, extents: Iterable[tuple[int, int, int]], segment: bytes) -> bytes:
    data = bytearray(-(-size // BLOCK) * BLOCK)
    for logical, first, count in extents:
        data[logical * BLOCK : (logical + count) * BLOCK] = segment[first * BLOCK : (first + count) * BLOCK]
    assert not any(data[size:]), "the tail of a file's last block is not zeros"
    return bytes(data[:size])
