"""``have`` files: header, bitmap, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from castoff.errors import Invalid
from castoff.layers.toc import CHUNK as TOC_CHUNK
from castoff.store.have import CHUNK, Have


def test_chunks_are_those_of_layers() -> None:
    """The constant that the warm path has of its own is the layers'."""
    assert CHUNK == TOC_CHUNK


@pytest.mark.parametrize("size", [0, 4096, CHUNK, CHUNK + 4096, 8 * CHUNK, 9 * CHUNK - 4096])
def test_a_full_bitmap_has_a_bit_for_each_chunk(tmp_path: Path, size: int) -> None:
    """Bits past the last chunk are 0; the file reads back as what was written."""
    have = Have.full(size)
    data = have.to_bytes()
    chunks = -(-size // CHUNK)
    assert have.chunks == chunks
    assert len(data) == 32 + -(-chunks // 8)
    assert int.from_bytes(data[32:], "little") == (1 << chunks) - 1
    (tmp_path / "have").write_bytes(data)
    assert Have.read(tmp_path / "have") == have


def test_bytes_are_as_documented() -> None:
    """docs/formats.md, byte by byte, for a segment of two chunks and a block."""
    data = Have.full(2 * CHUNK + 4096).to_bytes()
    assert data.hex(" ", -4) == "63617374 6f666648 01000100 00000400 00100800 00000000 03000000 00000000 07"


def test_an_incomplete_one_says_so(tmp_path: Path) -> None:
    """No bit is set without the chunk."""
    (tmp_path / "have").write_bytes(Have(CHUNK * 3, 3, complete=False).to_bytes())
    found = Have.read(tmp_path / "have")
    assert found is not None
    assert not found.complete


def test_none_where_there_is_none(tmp_path: Path) -> None:
    """A layer without one is not here."""
    assert Have.read(tmp_path / "have") is None


@pytest.mark.parametrize("cut", [0, 1, 31, 32])
def test_a_cut_or_changed_file_is_refused(tmp_path: Path, cut: int) -> None:
    """Every length but the right one, and every changed header field that matters."""
    data = Have.full(CHUNK).to_bytes()
    (tmp_path / "have").write_bytes(data[:cut])
    with pytest.raises(Invalid, match="is not a `have` file"):
        Have.read(tmp_path / "have")
    for place in (0, 8, 12, 16, 24):
        changed = bytearray(data)
        changed[place] ^= 0x40
        (tmp_path / "have").write_bytes(changed)
        with pytest.raises(Invalid, match="is not a `have` file"):
            Have.read(tmp_path / "have")
