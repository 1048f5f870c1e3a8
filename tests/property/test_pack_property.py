"""Packs of any segment, and published indexes that nobody published: read as they were, or refused in one line."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import zstandard
from hypothesis import event, given, settings
from hypothesis import strategies as st

from castoff.errors import Invalid
from castoff.layers.convert import convert
from castoff.layers.index import LayerIndex, encode_index
from castoff.layers.locations import LocationKind
from castoff.layers.pack import HEAD, Pack, check_locations, chunk_size, unpack_chunk, verify_chunk
from castoff.layers.packing import write_pack
from castoff.layers.published import publish_index, read_published
from castoff.layers.settings import Limits
from castoff.layers.toc import CHUNK
from layer_reader import convert_bytes, layer_of, pieces
from oci_builder import LayerTar

SIZES = st.sampled_from([0, 1, 4095, 4096, 70_000, CHUNK - 4096, CHUNK, CHUNK + 1, 4 * CHUNK, 5 * CHUNK + 9])
FILES = st.lists(st.tuples(SIZES, st.sampled_from(["zeros", "noise", "text"])), max_size=7)


def tar_of(files: list[tuple[int, str]]) -> bytes:
    layer = LayerTar()
    dice = random.Random(len(files))
    for number, (size, kind) in enumerate(files):
        data = {"zeros": bytes(size), "noise": dice.randbytes(size), "text": (b"lorem ipsum " * (size // 12 + 1))[:size]}[kind]
        layer.file(f"{number}", data)
    return layer.bytes()


@settings(max_examples=25)
@given(FILES)
def test_a_pack_gives_back_every_chunk(files: list[tuple[int, str]]) -> None:
    """Made in the pass or from the segment, by one thread or several: the same, and the index finds each chunk in it."""
    tar = tar_of(files)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        index = asyncio.run(convert_bytes(directory / "layer", tar))
        (directory / "again").mkdir()
        beside = directory / "beside"
        made = asyncio.run(convert(layer_of(tar, tar), pieces(tar), directory / "again", Limits(), pack=beside))
        pack = write_pack(directory / "layer" / "segment", index, directory / "pack", threads=1 + len(files) % 3)
        data, segment = (directory / "pack").read_bytes(), (directory / "layer" / "segment").read_bytes()
        assert made is not None and made.digest == pack.digest and beside.read_bytes() == data
    found = read_published(publish_index(dataclasses.replace(index, locations=pack.locations)))
    check_locations(found, pack.digest, pack.size)
    for number in range(len(found.digests)):
        wanted = segment[number * CHUNK : (number + 1) * CHUNK]
        if found.zero[number]:
            assert not any(wanted)
            continue
        start, length = int(found.locations.offset[number]), int(found.locations.length[number])
        chunk = unpack_chunk(data[start : start + length], chunk_size(found, number))
        verify_chunk(found, number, chunk)
        assert chunk == wanted


@cache
def sample() -> tuple[LayerIndex, Pack]:
    """An index with its locations, and its pack."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tar = tar_of([(5 * CHUNK, "noise"), (4 * CHUNK, "zeros"), (70_000, "text"), (3 * CHUNK, "noise")])
        index = asyncio.run(convert_bytes(directory / "layer", tar))
        pack = write_pack(directory / "layer" / "segment", index, directory / "pack")
    return dataclasses.replace(index, locations=pack.locations), pack


@given(st.data())
def test_a_published_index_with_bytes_changed_is_refused_or_the_same(data: st.DataObject) -> None:
    """In the frame, or in what it holds: never another error, never another index."""
    index, _ = sample()
    inside = data.draw(st.booleans())
    good = b"".join(encode_index(index)) if inside else publish_index(index)
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    changed = changed[: data.draw(st.integers(0, len(changed)))] if data.draw(st.booleans()) else changed
    with contextlib.suppress(Invalid):
        found = read_published(zstandard.compress(bytes(changed)) if inside else bytes(changed))
        assert b"".join(encode_index(found)) == b"".join(encode_index(index)), "a change that no check sees"
        event("a change of the frame that means the same")


@given(st.data())
def test_locations_of_any_kind_are_read_as_written_or_refused(data: st.DataObject) -> None:
    """A forged index whose checksum is right: what check_locations lets through lies in the pack, chunk for chunk."""
    index, pack = sample()
    count = len(index.zero)
    where = index.locations
    columns = {
        "kind": where.kind.copy(),
        "blob": where.blob.copy(),
        "offset": where.offset.copy(),
        "length": where.length.copy(),
    }
    for _ in range(data.draw(st.integers(1, 4))):
        column = columns[data.draw(st.sampled_from(sorted(columns)))]
        value = data.draw(
            st.sampled_from([0, 1, 19, 20, CHUNK, 2 * CHUNK, 2**20, pack.size - 1, pack.size, 2**32 - 1, 2**44, 2**63])
        )
        column[data.draw(st.integers(0, count - 1))] = min(value, int(np.iinfo(column.dtype).max))
    forged = dataclasses.replace(index, locations=dataclasses.replace(where, **columns))
    try:
        found = read_published(publish_index(forged))
        check_locations(found, pack.digest, pack.size)
    except Invalid:
        event("refused")
        return
    event("believed")
    packed = found.locations.kind == LocationKind.PACK
    assert (packed == ~found.zero).all()
    ends = found.locations.offset[packed] + found.locations.length[packed]
    assert (found.locations.offset[packed] >= len(HEAD)).all() and (ends <= pack.size).all()
    assert (found.locations.length[packed] > 0).all()
