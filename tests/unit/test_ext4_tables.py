"""A layer's tables: kept, found again, made again; hashes, checksums, ACLs and sizes against plain arithmetic."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castoff.errors import Invalid
from castoff.ext4.acl import disk_acl, mode_of_acl
from castoff.ext4.check.image import checksum
from castoff.ext4.check.namehash import half_md4
from castoff.ext4.checksum import advance, contribution, raw_crc, row_crcs
from castoff.ext4.geometry import Contents, geometry, minimum_blocks
from castoff.ext4.lexical import path_key, path_keys
from castoff.ext4.namehash import HASH_SEED, hash_names
from castoff.ext4.strings import Strings
from castoff.ext4.tablefile import save
from castoff.ext4.tables import compile_tables, load_tables, save_tables
from castoff.layers.toc import BLOCK, CHUNK, Kind
from ext4_toc import Row, build_toc

ROWS = [
    Row(b"a", Kind.DIRECTORY, attributes=((b"user.x", b"v" * 300),)),
    Row(b"a/f", contents=b"f" * 5000),
    Row(b"a/l", Kind.SYMLINK, target=b"t" * 70),
    Row(b"h", Kind.HARDLINK, target=b"a/f"),
    Row(b"outside", Kind.HARDLINK, target=b"below"),
]


def same(one: Any, two: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two)
    if is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(two, field.name)) for field in fields(one) if field.compare)
    return bool(one == two)


def test_tables_come_back_as_they_were(tmp_path: Path) -> None:
    """Every column, also the empty ones."""
    for rows in (ROWS, []):
        tables = compile_tables(build_toc(rows)[0])
        save_tables(tables, tmp_path / "tables")
        found = load_tables(tmp_path / "tables")
        assert found is not None
        assert same(tables, found)


@pytest.mark.parametrize("short_items", [0, 1 << 18])
def test_large_tables_come_back_as_they_were(tmp_path: Path, short_items: int) -> None:
    """However columns are kept: of one value, ascending, shrinking or not; the keys that are not kept, too."""
    shapes = random.Random(3)
    rows = [Row(b"d", Kind.DIRECTORY), Row(b"d/gone", Kind.WHITEOUT)]
    for number in range(3000):
        path = b"d/%03d/%08d" % (number // 40, number)
        if number % 40 == 0:
            rows.append(Row(path.rpartition(b"/")[0], Kind.DIRECTORY))
        rows.append(
            Row(path, contents=b"x" * shapes.randrange(2000), mtime=1_700_000_000 - number * shapes.randrange(3), gid=number % 3)
        )
    rows += [Row(b"a", Kind.SYMLINK, target=b"d"), Row(b"h", Kind.HARDLINK, target=b"d/000/00000000")]
    tables = compile_tables(build_toc(rows)[0])
    save(tables, tmp_path / "tables", short_items=short_items)
    found = load_tables(tmp_path / "tables")
    assert found is not None
    assert same(tables, found)
    each = (tmp_path / "tables").stat().st_size / len(tables)
    assert each < 40 if short_items else each > 100


def test_missing_broken_and_other_tables_are_none(tmp_path: Path) -> None:
    """A flipped bit anywhere, a cut, another version, an empty file: made again, never used."""
    path = tmp_path / "tables"
    assert load_tables(path) is None
    save_tables(compile_tables(build_toc(ROWS)[0]), path)
    whole = path.read_bytes()
    cases = [whole[:cut] for cut in (0, 5, 40, len(whole) // 2, len(whole) - 1)]
    places = (0, 9, 13, 40, len(whole) // 2, len(whole) - 2)
    cases += [whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :] for place in places]
    for case in cases:
        path.write_bytes(case)
        assert load_tables(path) is None


_COMPOSE = """
import hashlib, os, sys
sys.path.insert(0, sys.argv[1])
from castoff.ext4.compose import compose
from castoff.ext4.tables import compile_tables, load_tables, save_tables
from castoff.image.digest import Digest
from pathlib import Path
from ext4_toc import Row, build_toc
rows = [Row(b"d%d/%d" % (n % 7, n), contents=b"x" * n, attributes=((b"user.%d" % (n % 3), b"v" * n),)) for n in range(300)]
tables = compile_tables(build_toc(rows)[0])
if sys.argv[3] == "kept":
    save_tables(tables, Path(sys.argv[2] + ".tables"))
    tables = load_tables(Path(sys.argv[2] + ".tables"))
with open(sys.argv[2], "wb") as file:
    compose([(Digest.of(b"0"), tables)], size=64 << 20).write(file.fileno())
"""


def test_the_same_layers_and_size_give_the_same_bytes(tmp_path: Path) -> None:
    """In other processes, with other hash seeds, from tables that were kept."""
    seen = set()
    for number, (seed, kept) in enumerate((("0", "made"), ("1", "made"), ("77", "kept"))):
        path = tmp_path / f"rootfs{number}"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        tests = str(Path(__file__).parents[1])
        subprocess.run([sys.executable, "-c", _COMPOSE, tests, str(path), kept], check=True, env=environment)
        seen.add(path.read_bytes())
    assert len(seen) == 1


@given(st.lists(st.binary(min_size=1, max_size=255), min_size=1, max_size=20))
def test_hashes_of_many_names_are_those_of_each(names: list[bytes]) -> None:
    """The vectorised half-MD4 against one that reads like the kernel's."""
    major, _ = hash_names(Strings.from_list(names))
    assert major.tolist() == [half_md4(name, HASH_SEED.tolist()) for name in names]


def test_the_hash_is_e2fsprogs(tmp_path: Path) -> None:
    """Against debugfs, with names over 127."""
    seed = HASH_SEED.tobytes().hex()
    uuid = "-".join((seed[:8], seed[8:12], seed[12:16], seed[16:20], seed[20:]))
    for name in ("a", "abcd", "hello world", "x" * 32, "y" * 33, "z" * 255):
        command = ["debugfs", "-R", f'dx_hash -h half_md4 -s {uuid} "{name}"']
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert f"{half_md4(name.encode(), HASH_SEED.tolist()):#x} " in said.replace("(", " ")


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=70))
def test_checksums_of_columns_are_those_of_bytes(seed: int, words: list[int]) -> None:
    """Rows at once, and a sum of what each word contributes."""
    row = np.array([words], dtype=np.uint32)
    expected = checksum(seed, row.tobytes())
    assert raw_crc(seed, row.tobytes()) == expected == int(row_crcs(row, seed)[0])
    total = advance(seed, 4 * len(words))
    for index in range(len(words)):
        total ^= int(contribution(row[:, index], 4 * (len(words) - index - 1))[0])
    assert total == expected


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_one_key_is_as_many_keys(parent: int, major: int, minor: int) -> None:
    """Replaying computes keys one by one, tables all at once."""
    columns = np.array([parent], dtype=np.uint64), np.array([major], dtype=np.uint32), np.array([minor], dtype=np.uint32)
    assert int(path_keys(*columns)[0]) == path_key(parent, major << 32 | minor)


sizes = st.integers(0, 1 << 20)


@given(sizes, sizes, st.lists(st.integers(0, 1 << 22), max_size=5), st.integers(0, 1 << 26))
def test_every_size_from_the_least_on_has_a_geometry(inodes: int, metadata: int, segments: list[int], more: int) -> None:
    """Whatever the contents, and however many blocks more; nothing overlaps, segments stand on chunks."""
    contents = Contents(inodes + 2, metadata + 2, tuple(segments))
    least = minimum_blocks(contents)
    for blocks in (least, least + more):
        layout = geometry(blocks * BLOCK, contents)
        assert layout is not None
        assert layout.blocks <= blocks
        assert layout.inodes >= inodes + 2 + 10
        edges = [layout.block_bitmaps, layout.inode_bitmaps, layout.inode_tables, layout.journal, layout.metadata, layout.front]
        assert edges == sorted(edges)
        end = layout.front
        for start, length in zip(layout.segments, segments, strict=True):
            assert start >= end
            assert start * BLOCK % CHUNK == 0 or not length
            end = start + length
        assert end == layout.end <= layout.blocks


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


ANY = 2**32 - 1


def test_an_acl_that_the_mode_says_is_not_kept() -> None:
    """Owner, group and others alone are the mode's bits; a default ACL is kept all the same."""
    plain = acl((1, 7, ANY), (4, 5, ANY), (32, 4, ANY))
    assert mode_of_acl(plain) == 0o754
    assert disk_acl(plain, access=True) is None
    assert disk_acl(plain, access=False) == struct.pack("<IHHHHHH", 1, 1, 7, 4, 5, 32, 4)


def test_the_mask_is_the_groups_mode() -> None:
    """And named entries keep their number, the others lose it."""
    named = acl((1, 6, ANY), (2, 7, 1000), (4, 0, ANY), (16, 5, ANY), (32, 0, ANY))
    assert mode_of_acl(named) == 0o650
    assert disk_acl(named, access=True) == struct.pack("<IHHHHIHHHHHH", 1, 1, 6, 2, 7, 1000, 4, 0, 16, 5, 32, 0)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\1\0\0\0",
        acl((1, 7, ANY)) + b"x",
        acl((1, 7, ANY), (4, 5, ANY)),
        acl((1, 8, ANY), (4, 5, ANY), (32, 4, ANY)),
        acl((1, 7, ANY), (2, 7, 5), (4, 5, ANY), (32, 4, ANY)),
        acl((4, 5, ANY), (1, 7, ANY), (32, 4, ANY)),
        acl((1, 7, ANY), (4, 5, ANY), (32, 4, ANY), (64, 4, ANY)),
    ],
)
def test_an_acl_that_linux_refuses_is_refused(value: bytes) -> None:
    """Cut, of another version, without an owner, over all permissions, without a mask, out of order, of unknown tags."""
    with pytest.raises(Invalid):
        disk_acl(value, access=True)
