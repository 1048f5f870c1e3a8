"""Whatever bytes a tar has: the answer is a table of contents that passes all checks, or one of castoff's errors."""

from __future__ import annotations

import io
import tarfile

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from castoff.errors import CastoffError, Invalid
from castoff.image.digest import Digest
from castoff.layers.blocks import Blocks
from castoff.layers.content import read_layer
from castoff.layers.index import LayerIndex, Locations, decode_index, encode_index
from castoff.layers.pipeline import Buffer, Channel, Pipeline, Pool
from castoff.layers.segment import STAGING, Segment
from castoff.layers.settings import Limits
from castoff.layers.toc import ALIGNED, BLOCK, CHUNK, Kind, Toc
from tar_blocks import END, header, padded, pax

LIMITS = Limits(max_entries=1000, max_header=65536, max_strings=1 << 20)
BUFFER = 4096


def read(tar: bytes) -> tuple[Toc, bytes]:
    """Parses a tar without threads, through small buffers; the table and the segment."""
    pipeline = Pipeline("fuzz", lambda: None)
    pool = Pool(pipeline, 0, BUFFER)
    source: Channel[Buffer] = pipeline.channel()
    for at in range(0, len(tar), BUFFER):
        buffer = Buffer(BUFFER)
        buffer.filled = min(BUFFER, len(tar) - at)
        buffer.view[: buffer.filled] = tar[at : at + buffer.filled]
        source.put(buffer)
    source.close()
    sink: Channel[Buffer] = pipeline.channel()
    rows = read_layer(Blocks(source, pool), Segment(sink, Pool(pipeline, 64, STAGING)), LIMITS)
    sink.close()
    segment = b""
    while (buffer := sink.get()) is not None:
        segment += buffer.view[: buffer.filled]
    return rows.toc(len(segment)), segment


def check(tar: bytes) -> tuple[Toc, bytes] | None:
    """Reads ``tar``; what comes out must survive the checks that an index from a stranger has to pass."""
    try:
        toc, segment = read(tar)
    except CastoffError as error:
        assert isinstance(error, Invalid)
        assert "\n" not in str(error)
        return None
    chunks = -(-len(segment) // CHUNK)
    index = LayerIndex(
        Digest("0" * 64), toc, CHUNK, np.zeros((chunks, 32), np.uint8), np.zeros(chunks, np.bool_), Locations.local(chunks)
    )
    again = decode_index(b"".join(encode_index(index)), LIMITS)
    for name in Toc.__dataclass_fields__:
        assert np.array_equal(getattr(again.toc, name), getattr(toc, name)), name
    return toc, segment


kinds = st.sampled_from([bytes([kind]) for kind in b"\x000123456777SDVgxLKMNZ"])
names = st.one_of(
    st.binary(max_size=100),
    st.sampled_from(
        [b"a", b"a/b", b"./a", b"/x", b"..", b"a/..", b"", b".wh.a", b"d/.wh..wh..opq", b".wh..wh.plnk/x", b"d/", b"\xff"]
    ),
)
numbers = st.one_of(
    st.integers(0, 3000).map(lambda value: b"%011o\0" % value),
    st.binary(min_size=12, max_size=12),
    st.sampled_from([b"\xff" * 12, b"\x80" + b"\xff" * 11, b" " * 12, b"77777777777 ", b"\x80" + bytes(10) + b"\x09"]),
)
eight = st.one_of(st.binary(min_size=8, max_size=8), st.integers(0, 0o7777777).map(lambda value: b"%07o\0" % value))
magics = st.sampled_from([b"ustar\x0000", b"ustar  \0", bytes(8)])
keys = st.sampled_from(
    b"path linkpath size uid gid mtime GNU.sparse.map GNU.sparse.size GNU.sparse.realsize GNU.sparse.name GNU.sparse.major "
    b"GNU.sparse.minor GNU.sparse.offset GNU.sparse.numbytes SCHILY.xattr.user.a LIBARCHIVE.xattr.user.b comment".split()
)
values = st.one_of(
    st.binary(max_size=40),
    st.integers(-5, 1 << 45).map(lambda value: b"%d" % value),
    st.lists(st.integers(0, 9000), max_size=8).map(lambda found: b",".join(b"%d" % value for value in found)),
    st.sampled_from([b"1", b"0", b"1.5", b"-1.25", b"a/../b", b"x" * 300]),
)


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    """An entry: a header that adds up, of any fields, and some data."""
    if draw(st.integers(0, 4)) == 0:
        return pax(*draw(st.lists(st.tuples(keys, values), max_size=6)))
    data = draw(st.binary(max_size=1500))
    size: bytes | int = len(data) if draw(st.integers(0, 3)) else draw(numbers)
    block = header(
        draw(names),
        mode=draw(eight),
        uid=draw(st.one_of(eight, st.just(b"0000000\0"))),
        gid=draw(st.one_of(eight, st.just(b"0000000\0"))),
        size=size,
        mtime=draw(st.one_of(numbers, st.just(b"00000000000\0"))),
        kind=draw(kinds),
        link=draw(names),
        magic=draw(magics),
        device=draw(st.one_of(st.binary(min_size=16, max_size=16), st.just(b"0000000\x000000000\0"))),
        rest=draw(st.one_of(st.just(b""), st.binary(max_size=167))),
    )
    return block + padded(data)


@given(st.lists(entries(), max_size=8))
def test_any_entries(parts: list[bytes]) -> None:
    """Headers that add up, with every field and record that hypothesis thinks of."""
    check(b"".join(parts) + END)


@given(
    st.lists(entries(), max_size=6),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=5),
    st.integers(0, 1 << 16),
)
def test_mutated_archives(parts: list[bytes], flips: list[tuple[int, int]], cut: int) -> None:
    """Bytes changed anywhere, the stream cut anywhere."""
    tar = bytearray(b"".join(parts) + END)
    for at, value in flips:
        tar[at % len(tar)] = value
    check(bytes(tar[: cut % (len(tar) + 1)] if cut & 1 else tar))


@given(st.binary(max_size=3000))
def test_any_bytes(data: bytes) -> None:
    """Rubbish."""
    check(data)


plain_names = st.lists(
    st.text("abc.", min_size=1, max_size=9).filter(lambda name: not name.startswith((".wh.", ".."))), min_size=1, max_size=4
)
files = st.tuples(
    plain_names.map("/".join), st.one_of(st.binary(max_size=600), st.integers(0, 6 * CHUNK).map(lambda size: b"\1" * size))
)


@given(st.lists(files, max_size=8), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]))
def test_sound_archives_are_read(members: list[tuple[str, bytes]], archive_format: int) -> None:
    """What tarfile writes is read back, data and all, and the layout is what docs/formats.md says."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=archive_format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    found = check(buffer.getvalue())
    assert found is not None
    toc, segment = found
    files_found = (toc.kind == Kind.FILE).nonzero()[0].tolist()
    expected = [data for name, data in members if name.strip("./")]
    assert toc.size[files_found].tolist() == [len(data) for data in expected]
    end = 0
    for row, data in zip(toc.extent_row.tolist(), [data for data in expected if data], strict=True):
        number = toc.extent_row.tolist().index(row)
        first, count = int(toc.extent_segment[number]), int(toc.extent_blocks[number])
        wanted = -(-end // CHUNK) * CHUNK if count >= ALIGNED // BLOCK else end
        assert first * BLOCK == wanted
        assert segment[first * BLOCK : first * BLOCK + len(data)] == data
        end = (first + count) * BLOCK
        assert not any(segment[first * BLOCK + len(data) : end])
