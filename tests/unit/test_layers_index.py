"""The layer index: what is written is read, small, and no bytes of it are believed unchecked."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from castoff.errors import Invalid, NotFound
from castoff.image.digest import Digest
from castoff.layers import column, tree
from castoff.layers.index import LayerIndex, LocationKind, Locations, decode_index, encode_index, read_index, write_index
from castoff.layers.settings import Limits
from castoff.layers.toc import CHUNK, Kind, Toc
from layer_reader import convert_bytes
from oci_builder import LayerTar


def encoded(index: LayerIndex) -> bytes:
    """The file's bytes."""
    return b"".join(encode_index(index))


def assert_equal(one: LayerIndex, other: LayerIndex) -> None:
    """Field by field, types of columns too."""
    for name in Toc.__dataclass_fields__:
        left, right = getattr(one.toc, name), getattr(other.toc, name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype, name
            assert np.array_equal(left, right), name
        else:
            assert left == right, name
    assert (one.diff_id, one.chunk_size) == (other.diff_id, other.chunk_size)
    for name in ("digests", "zero"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    for name in ("kind", "blob", "offset", "length"):
        assert np.array_equal(getattr(one.locations, name), getattr(other.locations, name)), name
    assert one.locations.blobs == other.locations.blobs


@pytest.fixture
async def index(tmp_path: Path) -> LayerIndex:
    """One of everything."""
    layer = LayerTar().directory("usr").directory("usr/lib").directory("opt/deep/down/below").directory("./")
    layer.file("usr/lib/a", b"a" * 5000, mtime=1.25, xattrs={"user.x": b"1", "user.y": b"2"}).file("usr/lib/b", bytes(2 * CHUNK))
    layer.file("usr/c", b"c" * (CHUNK + 1), uid=1000, gid=4_000_000_000, mtime=-5).symlink("l", "usr").hardlink("h", "usr/c")
    layer.character("null", 1, 3).fifo("p").whiteout("usr/gone").opaque("usr/lib").opaque("").file("empty")
    return await convert_bytes(tmp_path / "layer", layer.bytes())


async def test_round_trip(index: LayerIndex, tmp_path: Path) -> None:
    """Read, encoded and read again: the same values and the same bytes."""
    data = encoded(index)
    assert data == (tmp_path / "layer" / "index").read_bytes()
    assert_equal(decode_index(data), index)
    write_index(tmp_path / "again", index)
    assert_equal(read_index(tmp_path / "again"), index)


async def test_locations_in_packs(index: LayerIndex) -> None:
    """A chunk may be in one of several blobs, or nowhere."""
    count = len(index.digests)
    locations = Locations(
        kind=np.array([LocationKind.PACK] * (count - 1) + [LocationKind.LOCAL], np.uint8),
        blob=np.append(np.arange(count - 1, dtype=np.uint32) % 2, np.uint32(0)),
        offset=np.append(np.arange(count - 1, dtype=np.uint64)[::-1] * 70_000, np.uint64(0)),
        length=np.append(np.full(count - 1, 70_000, np.uint32), np.uint32(0)),
        blobs=(Digest("ab" * 32), Digest("cd" * 32)),
    )
    packed = dataclasses.replace(index, locations=locations)
    assert_equal(decode_index(encoded(packed)), packed)


async def test_empty_layer(tmp_path: Path) -> None:
    """No entries, no chunks."""
    index = await convert_bytes(tmp_path / "layer", bytes(1024))
    assert (len(index.toc), len(index.digests), index.segment_size) == (0, 0, 0)
    assert_equal(decode_index(encoded(index)), index)


async def test_size_of_a_typical_index(tmp_path: Path) -> None:
    """At most 60 bytes an entry and 48 a chunk, for names, owners and times as images have them."""
    rng = random.Random(1)
    layer = LayerTar()
    parents = ["usr"]
    for number in range(6000):
        if number % 10 == 0:
            parent = f"{rng.choice(parents)[:120]}/package-{number}"
            parents.append(parent)
            layer.directory(parent, mtime=1_700_000_000 + rng.randrange(100))
        name = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz_", k=rng.randrange(5, 28)))
        data = rng.randbytes(rng.randrange(1, 30_000)) if number % 20 == 0 else b"x" * rng.randrange(4000)
        layer.file(
            f"{rng.choice(parents)}/{name}.py",
            data,
            mtime=rng.randrange(1_500_000_000, 1_700_000_000),
            uid=rng.choice((0, 0, 33)),
        )
    index = await convert_bytes(tmp_path / "layer", layer.bytes())
    size = (tmp_path / "layer" / "index").stat().st_size
    assert size <= 60 * len(index.toc) + 48 * len(index.digests)


def forged(index: LayerIndex, *, toc: dict[str, Any] | None = None, **changes: Any) -> bytes:
    """The bytes of an index with other columns and a right checksum."""
    return encoded(dataclasses.replace(index, toc=dataclasses.replace(index.toc, **(toc or {})), **changes))


def changed(values: np.ndarray, at: int, value: int) -> np.ndarray:
    """A copy of a column with one other value."""
    copy = values.copy()
    copy[at] = value
    return copy


async def test_forged_columns_are_refused(index: LayerIndex) -> None:
    """Each value that no conversion writes, with a checksum that agrees."""
    toc = index.toc
    name = int(toc.name_offsets[4])
    directory = int(toc.directory_offsets[2])
    device = int((toc.kind == Kind.CHARACTER).nonzero()[0][0])
    link = int(toc.link_offsets[int((toc.kind == Kind.HARDLINK).nonzero()[0][0])])
    cases: dict[str, dict[str, Any]] = {
        "kind": {"kind": changed(toc.kind, 0, 9)},
        "mode": {"mode": changed(toc.mode, 0, 0o10000)},
        "uid": {"uid": changed(toc.uid, 0, 0xFFFFFFFF)},
        "nanoseconds": {"mtime_ns": changed(toc.mtime_ns, 0, 10**9)},
        "size": {"size": changed(toc.size, 4, 1 << 45)},
        "size under its extents": {"size": changed(toc.size, 4, 4096)},
        "directory": {"directory": changed(toc.directory, 0, len(toc.directory_offsets) - 1)},
        "xattr set": {"xattr": changed(toc.xattr, 0, 2)},
        "device major": {"rdev_major": changed(toc.rdev_major, device, 4096)},
        "device minor": {"rdev_minor": changed(toc.rdev_minor, device, 1 << 20)},
        "slash in name": {"name_pool": changed(toc.name_pool, name, ord("/"))},
        "NUL in name": {"name_pool": changed(toc.name_pool, name, 0)},
        "dot as name": {"name_pool": changed(toc.name_pool, name, ord("."))},
        "NUL in directory": {"directory_pool": changed(toc.directory_pool, directory, 0)},
        "two slashes in directory": {"directory_pool": changed(toc.directory_pool, directory, ord("/"))},
        "slash before a hardlink's target": {"link_pool": changed(toc.link_pool, link, ord("/"))},
        "NUL in a link": {"link_pool": changed(toc.link_pool, 0, 0)},
        "extent of a directory": {"extent_row": changed(toc.extent_row, 0, 0)},
        "extent of no row": {"extent_row": changed(toc.extent_row, 2, len(toc))},
        "extent past its file": {"extent_logical": changed(toc.extent_logical, 2, 5)},
        "extent of nothing": {"extent_blocks": changed(toc.extent_blocks, 0, 0)},
        "xattr name length": {"xattr_pool": changed(toc.xattr_pool, 0, 200)},
        "xattrs out of order": {"xattr_pool": changed(toc.xattr_pool, 11, ord("z"))},
    }
    for what, columns in cases.items():
        with pytest.raises(Invalid, match="layer index"):
            decode_index(forged(index, toc=columns))
            pytest.fail(what)


async def test_overlapping_extents_are_refused(index: LayerIndex) -> None:
    """Two files with the same block would be a corrupt filesystem; the format's gaps cannot even say it."""
    data = forged(index, toc={"extent_segment": changed(index.toc.extent_segment, 1, 0)})
    with pytest.raises(Invalid):
        decode_index(data)


HEADER = struct.Struct("<8sIIQIIIIIIII32s32s")


def with_header(data: bytes, **fields: int) -> bytes:
    """Other counts in the header, and a right checksum."""
    names = (
        "magic",
        "version",
        "columns",
        "segment",
        "chunk",
        "entries",
        "directories",
        "extents",
        "sets",
        "chunks",
        "blobs",
        "zero",
    )
    values = list(HEADER.unpack_from(data))
    for name, value in fields.items():
        values[names.index(name)] = value
    head = HEADER.pack(*values)
    return head[:-32] + blake3(head[:-32] + data[HEADER.size :]).digest() + data[HEADER.size :]


async def test_headers_are_checked(index: LayerIndex) -> None:
    """Counts that the columns do not have, or that would fill memory."""
    data = encoded(index)
    assert with_header(data) == data
    huge = (1 << 32) - 1
    for fields in (
        {"zero": 1},
        {"version": 2}, {"columns": 30}, {"columns": 32}, {"segment": 1 << 50}, {"segment": 4095}, {"chunk": 4096}, {"chunk": 0},
        *({name: count} for name in ("entries", "directories", "extents", "sets", "chunks", "blobs") for count in (7, 90, huge)),
    ):  # fmt: skip
        with pytest.raises(Invalid):
            decode_index(with_header(data, **fields))
            pytest.fail(str(fields))


def test_constant_columns_cannot_fill_memory() -> None:
    """A file of a kilobyte that claims four billion rows, of a constant column each, is refused by its counts."""
    head = HEADER.pack(b"castoffI", 1, 31, 0, CHUNK, (1 << 32) - 1, 1, 0, 1, 0, 0, 0, bytes(32), bytes(32))
    columns = struct.pack("<BB6xqQ", column.OFFSET, 0, 0, 0) * 31
    with pytest.raises(Invalid, match="1048576 entries are allowed"):
        decode_index(with_header(head + columns))


async def test_every_flipped_byte_is_noticed(index: LayerIndex) -> None:
    """The file's own checksum covers all of it."""
    data = encoded(index)
    for at in range(0, len(data), 3):
        with pytest.raises(Invalid):
            decode_index(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    for cut in (0, 7, 100, len(data) - 1):
        with pytest.raises(Invalid):
            decode_index(data[:cut])
    with pytest.raises(Invalid):
        decode_index(data + bytes(8))


async def test_flipped_bytes_with_a_right_checksum(index: LayerIndex) -> None:
    """Whatever the bytes are, the answer is an index or Invalid."""
    data = encoded(index)
    rng = random.Random(5)
    for _ in range(3000):
        mutated = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            mutated[rng.randrange(HEADER.size, min(len(data), 1400) if rng.random() < 0.7 else len(data))] = rng.randrange(256)
        with contextlib.suppress(Invalid):
            decode_index(with_header(bytes(mutated)), Limits(max_entries=1000))


async def test_missing_and_damaged_files(tmp_path: Path) -> None:
    """The error names the file."""
    with pytest.raises(NotFound, match="nowhere"):
        read_index(tmp_path / "nowhere")
    (tmp_path / "bad").write_bytes(b"rubbish")
    with pytest.raises(Invalid, match="bad: this is no layer index"):
        read_index(tmp_path / "bad")


@pytest.mark.parametrize(
    "values",
    [
        [0],
        [5, 5, 5],
        [0, 255],
        [0, 256],
        [-1, 1 << 40],
        [-(1 << 63), (1 << 63) - 1],
        [1_700_000_000, 1_500_000_000] * 500,
        list(range(-70_000, 70_000)),
        [1 << 40, 0, 3] * 1000,
    ],
)
def test_columns_round_trip(values: list[int]) -> None:
    """Any 64-bit integers, as narrow as they allow."""
    stored = column.encode(np.array(values, np.int64))
    decoded = column.decode(stored, len(values), np.int64, low=-(1 << 63), high=(1 << 63) - 1, what="x")
    assert decoded.tolist() == values
    assert len(stored.data) <= max(len(values) * 8, 1)


def test_columns_are_narrow() -> None:
    """A few far values cost a byte a row by the dictionary; a constant costs nothing."""
    assert column.encode(np.full(1000, 7, np.uint64)).data == b""
    assert len(column.encode(np.array([1, 1 << 40] * 1000, np.int64)).data) == 2 * 8 + 2000
    assert len(column.encode(np.arange(200, dtype=np.int64)).data) == 200


def test_directory_paths_round_trip() -> None:
    """Missing parents, shared prefixes that are no components, depth, order."""
    paths = [
        b"",
        b"usr/lib/python3",
        b"usr",
        b"usr/lib",
        b"usr/lib/python3.11/x",
        b"usr/lib/python3/dist",
        b"a/b/c/d/e/f",
        b"a/b/c",
        b"us",
    ]
    pool = np.frombuffer(b"".join(paths), np.uint8)
    offsets = np.cumsum([0, *map(len, paths)]).astype(np.uint32)
    decoded, bounds = tree.decode_paths(tree.encode_paths(pool, offsets), longest=4096, limit=1 << 20)
    assert decoded.tobytes() == pool.tobytes()
    assert bounds.tolist() == offsets.tolist()


@pytest.mark.parametrize("depth", [2, 1000, 3000])
def test_directory_tables_that_blow_up_are_refused(depth: int) -> None:
    """A chain of short suffixes makes long paths: bounded for each and for all."""
    coded = tree.FrontCoded(
        base=np.array([0, *range(depth)], np.uint32),
        suffix_length=np.array([0] + [3] * depth, np.uint32),
        suffixes=np.frombuffer(b"abc" * depth, np.uint8),
    )
    if depth == 2:
        assert tree.decode_paths(coded, longest=4096, limit=1000)[0].tobytes() == b"abcabc/abc"
    else:
        with pytest.raises(Invalid, match="over"):
            tree.decode_paths(coded, longest=4096, limit=100_000)


@pytest.mark.parametrize(
    ("base", "lengths"), [([0, 1], [0, 1]), ([0, 0, 5], [0, 1, 1]), ([0, 0], [0, 0]), ([0, 0], [1, 1]), ([], [])]
)
def test_directory_tables_build_on_earlier_rows(base: list[int], lengths: list[int]) -> None:
    """No cycles, no nameless directory but the root."""
    coded = tree.FrontCoded(np.array(base, np.uint32), np.array(lengths, np.uint32), np.zeros(sum(lengths), np.uint8))
    with pytest.raises(Invalid):
        tree.decode_paths(coded, longest=4096, limit=1000)
