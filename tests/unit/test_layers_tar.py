"""Headers that archivers seldom or never write: each is read as Go's archive/tar and GNU tar read it, or refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from castoff.errors import Invalid, LimitExceeded
from castoff.layers.settings import Limits
from castoff.layers.toc import ALIGNED, BLOCK, CHUNK, GAPS, Kind
from layer_reader import Row, convert_bytes, read_rows
from oci_builder import LayerTar
from tar_blocks import END, header, padded, pax


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Awaitable[list[Row]]]:
    """Converts a tar (without its end) and reads it back."""

    async def read(*parts: bytes, limits: Limits | None = None) -> list[Row]:
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        await convert_bytes(directory, b"".join(parts) + END, limits=limits)
        return read_rows(directory)

    return read


async def test_v7_header_without_magic(rows) -> None:
    """V7 has no magic and no type: a name that ends in a slash is a directory, a prefix is not looked for."""
    files = header(b"old", kind=b"\0", magic=b"\0" * 8, size=3, rest=b"nonsense") + padded(b"abc")
    found = await rows(header(b"dir/", kind=b"\0", magic=b"\0" * 8), files)
    assert [(row.path, row.kind, row.data) for row in found] == [(b"dir", Kind.DIRECTORY, None), (b"old", Kind.FILE, b"abc")]


async def test_ustar_prefix(rows) -> None:
    """A long name lies in two fields."""
    found = await rows(header(b"name", rest=b"a" * 150 + b"/b"))
    assert found[0].path == b"a" * 150 + b"/b/name"


async def test_star_prefix_ends_before_its_times(rows) -> None:
    """star keeps times behind a shorter prefix."""
    rest = (b"p" * 120).ljust(131, b"\0") + b"00000000000\x0000000000000\0"
    found = await rows(header(b"name", rest=rest.ljust(163, b"\0") + b"tar\0"))
    assert found[0].path == b"p" * 120 + b"/name"


async def test_gnu_header_has_no_prefix(rows) -> None:
    """GNU's header has other things where ustar has a prefix."""
    found = await rows(header(b"name", magic=b"ustar  \0", rest=b"12345670123"))
    assert found[0].path == b"name"


@pytest.mark.parametrize("signed", [False, True])
async def test_checksum_of_signed_and_unsigned_bytes(rows, signed: bool) -> None:
    """Both ways to add up bytes over 127 are right."""
    found = await rows(header(b"\xff\xfe\x80" * 20, signed=signed))
    assert found[0].path == b"\xff\xfe\x80" * 20


async def test_wrong_checksum_is_refused(rows) -> None:
    """A header that does not add up ends the conversion, with its place."""
    block = bytearray(header())
    block[0] ^= 1
    with pytest.raises(Invalid, match="tar header at byte 512 has a wrong checksum"):
        await rows(header(b"ok"), bytes(block))


async def test_checksum_off_by_the_modulus_is_refused(rows) -> None:
    """The quick check is modulo 65,521; the full one decides, so a checksum that differs by it is wrong."""
    block = header(b"\xff" * 100)
    total = int(block[148:154], 8) + 65521
    with pytest.raises(Invalid, match="checksum"):
        await rows(block[:148] + b"%07o\0" % total + block[156:])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"\x80" + bytes(7) + b"\x01\x00\x00\x00", 1 << 24),
        (b"\xff" * 12, -1),
        (b"\xff" * 8 + b"\xfe\x00\x00\x00", -(1 << 25)),
        (b"\x80\x00\x00\x00\x02" + bytes(7), 1 << 57),
        (b" 12345     \0", 0o12345),
        (b"12345670123 ", 0o12345670123),
        (b"\0" * 12, 0),
    ],
)
async def test_numbers(rows, field: bytes, value: int) -> None:
    """Octal in all its spellings, and base-256, negative too."""
    found = await rows(header(mtime=field))
    assert found[0].mtime == value


@pytest.mark.parametrize("field", [b"+0000000001\0", b"1_000000000\0", b"0o000000001\0", b"8          \0", b"0x1        \0"])
async def test_numbers_that_only_python_reads_are_refused(rows, field: bytes) -> None:
    """``int`` takes more than octal digits; a header may not."""
    with pytest.raises(Invalid, match="octal"):
        await rows(header(mtime=field))


async def test_number_over_64_bits_is_refused(rows) -> None:
    """Base-256 fields can say more than any time or size."""
    with pytest.raises(Invalid, match="64 bits"):
        await rows(header(mtime=b"\x80\x01" + bytes(10)))


async def test_negative_size_is_refused(rows) -> None:
    """A size below zero would move the reader backwards."""
    for kind in (b"0", b"D", b"S", b"1"):
        with pytest.raises(Invalid):
            await rows(header(size=b"\xff" * 12, kind=kind, link=b"x"))


async def test_ids_that_do_not_fit_are_refused(rows) -> None:
    """-1 means "leave it" to chown, and Linux has 32 bits."""
    for uid in (b"\xff" * 8, b"\x80\x00\x00\x01" + bytes(4), b"\x80\x00\x00\x00\xff\xff\xff\xff"):
        with pytest.raises(Invalid, match="belongs to"):
            await rows(header(uid=uid))
    found = await rows(header(uid=b"\x80\x00\x00\x00\xff\xff\xff\xfe"))
    assert found[0].uid == 0xFFFFFFFE


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (b"1.5", (1, 500_000_000)),
        (b"-1.5", (-2, 500_000_000)),
        (b"-0.1", (-1, 900_000_000)),
        (b"12.1234567899", (12, 123_456_789)),
        (b"7", (7, 0)),
        (b"7.", (7, 0)),
        (b"-7", (-7, 0)),
    ],
)
async def test_pax_times(rows, text: bytes, time: tuple[int, int]) -> None:
    """Fractions are rounded down, before 1970 too."""
    found = await rows(pax((b"mtime", text)), header())
    assert (found[0].mtime, found[0].mtime_ns) == time


@pytest.mark.parametrize("text", [b"1e3", b"nan", b"--1", b".5", b"1.5x", b"9" * 19, b"9" * 30])
async def test_pax_times_that_are_none(rows, text: bytes) -> None:
    """What is no time of 64 bits is refused."""
    with pytest.raises(Invalid, match="no time"):
        await rows(pax((b"mtime", text)), header())


async def test_pax_overrides_and_empty_values(rows) -> None:
    """Records win over the header; an empty one leaves the header's value; the next entry has none of it."""
    first = pax((b"path", b"long/name"), (b"uid", b"4000000000"), (b"gid", b"7"), (b"linkpath", b""), (b"comment", b"\0"))
    found = await rows(first, header(b"short", kind=b"2", link=b"to"), header(b"next"))
    assert [(row.path, row.uid, row.gid, row.link) for row in found] == [
        (b"long/name", 4_000_000_000, 7, b"to"),
        (b"next", 0, 0, b""),
    ]


async def test_pax_size_counts_for_the_data(rows) -> None:
    """Files over 8 GiB have their size in a record only."""
    found = await rows(pax((b"size", b"600")), header(size=0), padded(b"x" * 600), header(b"g"))
    assert [(row.path, row.data) for row in found] == [(b"f", b"x" * 600), (b"g", b"")]


@pytest.mark.parametrize(
    "data",
    [
        b"5 a=b",
        b"99 a=b\n",
        b"0 a=b\n",
        b"6 ab=\nxx",
        b"x a=b\n",
        b"6 =ab\n",
        b"-6 a=b\n",
        b"3 \n",
        b"12 path=a\0b\n",
        b"6 a\0=\n",
        b" ",
    ],
)
async def test_broken_pax_headers_are_refused(rows, data: bytes) -> None:
    """Every record is as long as it says, has a key, and a path has no NUL."""
    with pytest.raises(Invalid, match="pax"):
        await rows(header(kind=b"x", size=len(data)), padded(data), header())


async def test_global_headers_are_checked_and_ignored(rows) -> None:
    """As in containerd; ``git archive`` writes one with a comment."""
    found = await rows(pax((b"path", b"everywhere"), (b"comment", b"x"), kind=b"g"), header(b"a"), header(b"b"))
    assert [row.path for row in found] == [b"a", b"b"]
    with pytest.raises(Invalid):
        await rows(header(kind=b"g", size=4), padded(b"junk"), header())


async def test_gnu_long_names_win(rows) -> None:
    """``L`` and ``K`` end at their first NUL, and win over pax, as in Go."""
    long = header(kind=b"L", size=205) + padded(b"n" * 200 + b"\0junk") + header(kind=b"K", size=4) + padded(b"tgt\0")
    found = await rows(pax((b"path", b"other")), long, header(kind=b"2", link=b"short"))
    assert (found[0].path, found[0].link) == (b"n" * 200, b"tgt")


async def test_extended_header_without_an_entry_is_refused(rows, tmp_path: Path) -> None:
    """A name for nothing."""
    with pytest.raises(Invalid, match="after an extended header"):
        await convert_bytes(tmp_path / "x", pax((b"path", b"x")))


async def test_extended_headers_have_a_limit(rows) -> None:
    """A pax header of gigabytes is not gathered in memory."""
    with pytest.raises(LimitExceeded, match=r"layers\.max_header"):
        await rows(header(kind=b"x", size=5 << 20))


@pytest.mark.parametrize("kind", [b"M", b"N", b"Z", b"9", b"\xff", b"A"])
async def test_unknown_types_are_refused(rows, kind: bytes) -> None:
    """As containerd does: a type that it does not know ends the unpacking."""
    with pytest.raises(Invalid, match="unknown tar type"):
        await rows(header(kind=kind))


async def test_volume_labels_dumps_and_contiguous_files(rows) -> None:
    """GNU's label is nothing, its dump of a directory's names a directory, type 7 a file."""
    found = await rows(
        header(b"label", kind=b"V"),
        header(b"d/", kind=b"D", size=5),
        padded(b"Yabc\0"),
        header(b"c", kind=b"7", size=1),
        padded(b"c"),
    )
    assert [(row.path, row.kind, row.data) for row in found] == [(b"d", Kind.DIRECTORY, None), (b"c", Kind.FILE, b"c")]


async def test_hardlink_with_and_without_its_data(rows) -> None:
    """A size on a hardlink means nothing to GNU tar and Go; where data does follow (pax -o linkdata) it is passed over."""
    found = await rows(
        header(b"a", size=600), padded(b"a" * 600), header(b"b", kind=b"1", link=b"./a", size=600),
        header(b"c", kind=b"1", link=b"/x/../a", size=600), padded(b"a" * 600), header(b"d"),
    )  # fmt: skip
    assert [(row.path, row.kind, row.link, row.size) for row in found[1:]] == [
        (b"b", Kind.HARDLINK, b"a", 0),
        (b"c", Kind.HARDLINK, b"a", 0),
        (b"d", Kind.FILE, b"", 0),
    ]


async def test_sizes_of_what_has_no_data(rows) -> None:
    """Directories, symlinks and devices may carry a size; no data follows (Go: header only)."""
    found = await rows(
        header(b"d", kind=b"5", size=99), header(b"s", kind=b"2", link=b"t", size=99), header(b"p", kind=b"6", size=9)
    )
    assert [row.kind for row in found] == [Kind.DIRECTORY, Kind.SYMLINK, Kind.FIFO]


async def test_devices(rows) -> None:
    """Numbers of devices, and the ones that Linux cannot have."""
    found = await rows(header(kind=b"3", device=b"0007777\x003777777\0"))
    assert (found[0].kind, found[0].device) == (Kind.CHARACTER, (4095, 1048575))
    with pytest.raises(Invalid, match="device"):
        await rows(header(kind=b"4", device=b"0010000\x000000000\0"))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"/etc/x", b"etc/x"),
        (b"./a/./b//c", b"a/b/c"),
        (b"../../x", b"x"),
        (b"a/../../b", b"b"),
        (b"a/b/..", b"a"),
        (b"a/b/", b"a/b"),
        (b"/", b""),
        (b"./", b""),
        (b"..", b""),
        (b"", b""),
    ],
)
async def test_paths_are_under_the_root(rows, name: bytes, path: bytes) -> None:
    """Names mean what containerd makes of them."""
    found = await rows(header(name, kind=b"5"))
    assert [row.path for row in found] == [path]


async def test_a_file_for_the_root_is_nothing(rows) -> None:
    """containerd ignores what resolves to the root; a directory is kept for its attributes."""
    found = await rows(header(b"./", size=3), padded(b"abc"), header(b"../", kind=b"2", link=b"x"), header(b"f"))
    assert [row.path for row in found] == [b"f"]


async def test_names_that_linux_cannot_have(rows) -> None:
    """255 bytes is the longest component, 4,096 the longest path."""
    assert (await rows(pax((b"path", b"n" * 255)), header()))[0].path == b"n" * 255
    for path in (b"n" * 256, b"n" * 256 + b"/x"):
        with pytest.raises(Invalid, match="256 bytes; Linux allows 255"):
            await rows(pax((b"path", path)), header())
    with pytest.raises(LimitExceeded, match=r"layers\.max_path"):
        await rows(pax((b"path", b"x/" * 2050)), header())


async def test_links_need_targets(rows) -> None:
    """Neither kind of link goes nowhere; a symlink's target is kept as it is."""
    for kind in (b"1", b"2"):
        with pytest.raises(Invalid, match="no target"):
            await rows(header(kind=kind))
    assert (await rows(header(kind=b"2", link=b"../..//x/./")))[0].link == b"../..//x/./"
    with pytest.raises(LimitExceeded, match="link target"):
        await rows(pax((b"linkpath", b"t" * 4096)), header(kind=b"2"))


async def test_whiteouts(rows) -> None:
    """``.wh.NAME`` hides NAME, whatever type the entry has; AUFS' own files are nothing; what hides no name is refused."""
    found = await rows(
        header(b"a/.wh.gone", size=3), padded(b"abc"), header(b".wh.dir/", kind=b"5"), header(b"b/.wh..wh..opq"),
        header(b".wh..wh..opq"), header(b".wh..wh.plnk", kind=b"5"), header(b".wh..wh.aufs"), header(b".wh.c", kind=b"3"),
        header(b".wh.a.b"), header(b"x.wh.y"),
    )  # fmt: skip
    assert [(row.path, row.kind) for row in found] == [
        (b"a/gone", Kind.WHITEOUT),
        (b"dir", Kind.WHITEOUT),
        (b"b", Kind.OPAQUE),
        (b"", Kind.OPAQUE),
        (b"c", Kind.WHITEOUT),
        (b"a.b", Kind.WHITEOUT),
        (b"x.wh.y", Kind.FILE),
    ]
    for name in (b".wh.", b"d/.wh..", b".wh..."):
        with pytest.raises(Invalid, match="whiteout"):
            await rows(header(name))


async def test_inside_of_aufs_directories_is_nothing(rows) -> None:
    """AUFS kept hardlinked files under ``.wh..wh.plnk`` at the root: they are no part of the image."""
    found = await rows(header(b".wh..wh.plnk/1.2", size=2), padded(b"ab"), header(b"f"))
    assert [row.path for row in found] == [b"f"]


async def test_the_end_marker(rows, tmp_path: Path) -> None:
    """Two blocks of zeros end the archive, and so does the stream; what follows counts for the diffID only."""
    for index, tail in enumerate((b"", bytes(512), END, END + b"trailing rubbish", END + header(b"later"))):
        await convert_bytes(tmp_path / str(index), header() + tail)
        assert [row.path for row in read_rows(tmp_path / str(index))] == [b"f"]
    with pytest.raises(Invalid, match="lone block of zeros"):
        await convert_bytes(tmp_path / "lone", header() + bytes(512) + header())


@pytest.mark.parametrize("cut", [100, 511, 513, 600, 1023])
async def test_truncated_tars_are_refused(tmp_path: Path, cut: int) -> None:
    """An archive that ends inside of a header or of a file's data."""
    tar = (header(size=600) + padded(b"x" * 600))[:cut]
    with pytest.raises(Invalid, match="ends inside"):
        await convert_bytes(tmp_path / "layer", tar)


async def test_missing_padding_at_the_end_is_forgiven(tmp_path: Path) -> None:
    """As in Go: the last file's padding may be missing."""
    await convert_bytes(tmp_path / "layer", header(size=600) + b"x" * 600)
    assert read_rows(tmp_path / "layer")[0].data == b"x" * 600


def old_sparse(regions: list[tuple[int, int]], size: int, stored: int, extended: bool = False) -> bytes:
    """A type S header: four regions fit."""
    rest = bytes(41) + b"".join(b"%011o\0%011o\0" % region for region in regions[:4]).ljust(96, b"\0")
    return header(kind=b"S", magic=b"ustar  \0", size=stored, rest=rest + bytes([extended]) + b"%011o\0" % size)


@pytest.mark.parametrize(
    "regions",
    [[(0, 10), (5, 10)], [(100, 10), (0, 10)], [(90, 20)], [(0, 10)], [(0, 30)], [(1 << 32, 20)]],
)
async def test_broken_sparse_maps_are_refused(rows, regions: list[tuple[int, int]]) -> None:
    """Overlaps, wrong order, past the end, more or fewer bytes than there are."""
    with pytest.raises(Invalid, match="sparse map"):
        await rows(old_sparse(regions, 100, 20), padded(bytes(20)))


async def test_old_sparse_with_extension_headers(rows) -> None:
    """More than four regions go on in blocks of 21."""
    regions = [(at * 2 * BLOCK, 100) for at in range(40)]
    blocks = b"".join(
        (b"".join(b"%011o\0%011o\0" % region for region in part).ljust(504, b"\0") + bytes([more])).ljust(512, b"\0")
        for part, more in ((regions[4:25], True), (regions[25:], False))
    )
    data = b"".join(bytes([at]) * 100 for at in range(40))
    found = await rows(old_sparse(regions, 1 << 20, 4000, extended=True), blocks, padded(data), header(b"next"))
    expected = bytearray(1 << 20)
    for at, (offset, length) in enumerate(regions):
        expected[offset : offset + length] = bytes([at]) * length
    assert found[0].data == expected
    assert len(found[0].extents) == 40
    assert found[1].path == b"next"


@pytest.mark.parametrize(
    "records",
    [
        [(b"GNU.sparse.map", b"0,5,10")],
        [(b"GNU.sparse.map", b"0,x")],
        [(b"GNU.sparse.map", b"0,,")],
        [(b"GNU.sparse.map", b"-1,5")],
        [(b"GNU.sparse.offset", b"0"), (b"GNU.sparse.offset", b"0")],
        [(b"GNU.sparse.numbytes", b"0"), (b"GNU.sparse.offset", b"0")],
        [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")],
    ],
)
async def test_broken_pax_sparse_maps_are_refused(rows, records: list[tuple[bytes, bytes]]) -> None:
    """Maps of all pax formats are checked before they are believed."""
    with pytest.raises(Invalid):
        await rows(pax((b"GNU.sparse.size", b"100"), *records), header(size=10), padded(b"x" * 10))


async def test_sparse_map_longer_than_the_data(rows) -> None:
    """A format 1.0 map that uses up more than the entry has."""
    records = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"100"))
    with pytest.raises(Invalid, match="longer than the entry's data"):
        await rows(pax(*records), header(size=10), padded(b"1\n0\n5\n12345"))


async def test_sparse_maps_have_a_limit(rows) -> None:
    """A map that promises a billion regions is refused before they are read."""
    records = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"100"))
    with pytest.raises(Invalid, match="1000000000 regions"):
        await rows(pax(*records), header(size=2048), padded(b"1000000000\n".ljust(2048, b"0")))


async def test_sparse_files_share_blocks_between_regions(rows) -> None:
    """Regions that meet in a block, or in neighbouring blocks, become one extent with zeros between."""
    data = b"a" * 10 + b"b" * 4086 + b"c" * 20
    regions = [(0, 10), (10, 0), (50, 4086), (BLOCK + 100, 20)]
    text = b",".join(b"%d,%d" % region for region in regions)
    found = await rows(pax((b"GNU.sparse.size", b"20000"), (b"GNU.sparse.map", text)), header(size=len(data)), padded(data))
    expected = bytearray(20000)
    expected[0:10], expected[50 : 50 + 4086], expected[4196:4216] = b"a" * 10, b"b" * 4086, b"c" * 20
    assert found[0].data == expected
    assert found[0].extents == ((0, 0, 2),)


async def test_files_larger_than_ext4_allows(rows) -> None:
    """A hole of 16 TiB is more than ext4's block numbers reach."""
    with pytest.raises(Invalid, match="ext4 allows"):
        await rows(pax((b"GNU.sparse.size", b"%d" % (1 << 44)), (b"GNU.sparse.map", b"0,20")), header(size=20), padded(bytes(20)))


async def test_layout_of_the_segment(rows, tmp_path: Path) -> None:
    """Tar order; blocks; 1 MiB or more starts on a chunk; gaps and tails are zeros; empty files have no extents."""
    sizes = [1, 0, BLOCK + 1, ALIGNED, 5, ALIGNED - BLOCK, ALIGNED - BLOCK + 1, 3 * CHUNK + 1]
    tar = LayerTar()
    for number, size in enumerate(sizes):
        tar.file(f"f{number}", bytes([number + 1]) * size)
    found = await rows(tar.bytes())
    per = CHUNK // BLOCK
    firsts = [row.extents[0][1] if row.extents else None for row in found]
    assert firsts == [0, None, 1, per, 5 * per, 5 * per + 1, 9 * per, 13 * per]
    assert [row.data for row in found] == [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    segment = (tmp_path / "0" / "segment").read_bytes()
    assert len(segment) == 16 * CHUNK + BLOCK
    assert not any(segment[3 * BLOCK : CHUNK])


async def test_gaps_are_bounded(rows) -> None:
    """What starts on a chunk does so until the gaps of the segment come to 32 MiB; then it starts on the next block."""
    pairs = GAPS // (CHUNK - BLOCK) + 3
    tar = LayerTar()
    for number in range(pairs):
        tar.file(f"s{number}", b"s").file(f"l{number}", bytes(ALIGNED))
    found = await rows(tar.bytes())
    starts = [row.extents[0][1] for row in found]
    aligned = [large % (CHUNK // BLOCK) == 0 for large in starts[1::2]]
    gaps = sum(large - small - 1 for small, large in zip(starts[::2], starts[1::2], strict=True)) * BLOCK
    assert GAPS - CHUNK < gaps <= GAPS
    assert aligned == [True] * (GAPS // (CHUNK - BLOCK)) + [False] * 3


async def test_limits_of_counts(rows) -> None:
    """Entries, extents, strings and attributes have limits that name their setting."""
    with pytest.raises(LimitExceeded, match=r"max_entries"):
        await rows(*(header(b"%d" % number) for number in range(6)), limits=Limits(max_entries=5))
    with pytest.raises(LimitExceeded, match=r"max_strings"):
        await rows(*(header(b"%d/x" % (number + 10**9)) for number in range(6)), limits=Limits(max_strings=50))
    with pytest.raises(LimitExceeded, match=r"max_entries"):
        await rows(*(header(b"%d/.wh..wh.x" % number) for number in range(7)), limits=Limits(max_entries=5))
    with pytest.raises(LimitExceeded, match=r"max_xattr"):
        await rows(pax((b"SCHILY.xattr.user.x", b"v" * 100)), header(), limits=Limits(max_xattr=100))


async def test_attributes_that_linux_cannot_have(rows) -> None:
    """A value over 64 KiB, a name over 255 bytes or of none."""
    for key, value in ((b"user.x", b"v" * 65537), (b"user." + b"x" * 251, b""), (b"", b"v")):
        with pytest.raises(Invalid, match="attribute"):
            await rows(pax((b"SCHILY.xattr." + key, value)), header())
    with pytest.raises(Invalid, match="base64"):
        await rows(pax((b"LIBARCHIVE.xattr.user.x", b"a")), header())
