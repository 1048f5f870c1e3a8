"""Comparing files without reading what they share."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castoff.disk.compare import first_difference
from castoff.disk.sparse import copy_range, data_ranges

MIB = 1 << 20


def written(path: Path, size: int, pieces: list[tuple[int, bytes]]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for place, data in pieces:
            file.seek(place)
            file.write(data)
    return path


def compared(one: Path, other: Path, **more: int) -> int | None:
    with one.open("rb") as first, other.open("rb") as second:
        return first_difference(first.fileno(), second.fileno(), **{"length": one.stat().st_size, **more})  # type: ignore[arg-type]


def test_equal_files_are_equal_holes_or_not(tmp_path: Path) -> None:
    """Zeros that are written equal those that are not."""
    data = random.Random(1).randbytes(100_000)
    one = written(tmp_path / "one", 8 * MIB, [(5 * MIB + 17, data)])
    other = written(tmp_path / "other", 8 * MIB, [(0, bytes(MIB)), (5 * MIB + 17, data)])
    assert compared(one, other) is None


@pytest.mark.parametrize("place", [0, 1, 4095, MIB - 1, MIB, 3 * MIB + 77, 8 * MIB - 1])
def test_the_first_different_byte_is_told(tmp_path: Path, place: int) -> None:
    """Also where one of the files has a hole."""
    one = written(tmp_path / "one", 8 * MIB, [(place, b"x"), (8 * MIB - 1, b"y")])
    other = written(tmp_path / "other", 8 * MIB, [(8 * MIB - 1, b"y")])
    expected = place if place < 8 * MIB - 1 else None
    assert compared(one, other) == expected
    assert compared(other, one) == expected


def test_stretches_are_compared_at_their_offsets(tmp_path: Path) -> None:
    """And nothing around them."""
    data = random.Random(1).randbytes(MIB)
    one = written(tmp_path / "one", 4 * MIB, [(MIB, data), (0, b"noise")])
    other = written(tmp_path / "other", 2 * MIB, [(4096, data)])
    assert compared(one, other, length=MIB, one_offset=MIB, other_offset=4096) is None
    assert compared(one, other, length=MIB, one_offset=MIB, other_offset=4095) == 0


def test_a_shorter_file_ends_in_zeros(tmp_path: Path) -> None:
    """As a sparse one would."""
    assert compared(written(tmp_path / "one", 2 * MIB, []), written(tmp_path / "other", 5, [])) is None
    assert compared(written(tmp_path / "one", 2 * MIB, [(MIB, b"x")]), written(tmp_path / "other", 5, [])) == MIB


@given(
    pieces=st.lists(st.tuples(st.integers(0, 63), st.integers(1, 9000)), max_size=12),
    start=st.integers(0, 64 * 4096),
    length=st.integers(0, 64 * 4096),
)
def test_sparse_copies_are_copies(tmp_path_factory: pytest.TempPathFactory, pieces: list, start: int, length: int) -> None:
    """Whatever the holes: the stretch is the same, holes stay holes, the rest is untouched."""
    directory = tmp_path_factory.mktemp("sparse")
    size = 64 * 4096 + 9000
    source = written(directory / "source", size, [(block * 4096, os.urandom(count)) for block, count in pieces])
    target = written(directory / "target", 2 * size, [])
    with source.open("rb") as read, target.open("r+b") as write:
        copy_range(read.fileno(), write.fileno(), length=length, source_offset=start, target_offset=start + 1)
        ranges = list(data_ranges(read.fileno(), 0, size))
    data = target.read_bytes()
    assert data[start + 1 : start + 1 + length].rstrip(b"\0") == source.read_bytes()[start : start + length].rstrip(b"\0")
    assert not any(data[: start + 1])
    assert not any(data[start + 1 + length :])
    assert all(begin < end for begin, end in ranges)
