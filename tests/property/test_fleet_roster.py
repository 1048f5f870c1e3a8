"""What hosts tell of their machines: read as it was written, bounded however many there are and whatever strangers send."""

from __future__ import annotations

import os
import time

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from castoff.errors import Invalid
from castoff.fleet.roster import MachineRow, pack_rows, read_rows

texts = st.text(max_size=40)
rows = st.builds(
    MachineRow,
    id=st.binary(min_size=7, max_size=7).map(bytes.hex),
    app=texts,
    name=texts,
    state=texts,
    region=texts,
    version=texts,
    image=texts,
    created=st.integers(0, 1 << 53),
    updated=st.integers(0, 1 << 53),
)


def a_row(image: str) -> MachineRow:
    """A machine as there are many."""
    identity, version = os.urandom(7).hex(), os.urandom(13).hex().upper()
    now = time.time_ns() // 1_000_000
    return MachineRow(
        id=identity,
        app="shop",
        name=f"web-{identity}",
        state="started",
        region="fra",
        version=version,
        image=image,
        created=now,
        updated=now,
    )


@given(st.lists(rows, max_size=30, unique_by=lambda row: row.id))
def test_rows_are_read_as_they_were_told(found: list[MachineRow]) -> None:
    packed, count = pack_rows(found)
    assert count == len(found)
    assert read_rows(packed) == {row.id: row for row in found}


def test_ten_thousand_machines_are_one_message() -> None:
    """A NATS server as it comes takes 1 MiB."""
    packed, count = pack_rows([a_row("registry.example/shop/web:2026-11-20") for _ in range(10_000)])
    assert count == 10_000
    assert len(packed) <= 1_000_000


def test_of_too_many_some_are_told() -> None:
    """As many as a message has room for, whatever their text is like."""
    many = [a_row(os.urandom(200).hex()) for _ in range(8_000)]
    packed, count = pack_rows(many)
    assert 1_000 < count < 8_000
    assert len(packed) <= 1_000_000
    assert list(read_rows(packed)) == [row.id for row in many[:count]]


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"\x28\xb5\x2f\xfd",
        zstandard.compress(b"{}"),
        zstandard.compress(b'[["x","","","","","","",1,1]]'),
        zstandard.compress(b"[" * 100_000),
        zstandard.compress(b" " * (64 << 20)),  # 64 MiB of 6 KB
        zstandard.compress(msgspec.json.encode([["0" * 14, "a" * 600, "", "", "", "", "", 1, 1]])),
        zstandard.compress(b"[]")[:-1] + b"\xff",
    ],
)
def test_what_strangers_tell(data: bytes) -> None:
    with pytest.raises(Invalid):
        read_rows(data)


@given(st.binary(max_size=100))
def test_any_bytes(data: bytes) -> None:
    """They are rows, or refused."""
    try:
        assert isinstance(read_rows(data), dict)
    except Invalid:
        return
