"""Clones with holes: what is written where, and that filling the holes gives what composing at once gives."""

from __future__ import annotations

import os
import random
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from castoff.disk.compose import write_composition
from castoff.ext4.compose import compose
from castoff.hydrate.map import LazyMap
from castoff.hydrate.record import MAP, STATE
from castoff.hydrate.state import ABSENT, PRESENT
from castoff.layers.toc import CHUNK
from castoff.rootfs.composition import layer_tables
from castoff.rootfs.holes import Holes, write_with_holes
from castoff.rootfs.remote import RemoteLayer
from castoff.store.hydration import HaveMap
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from layer_reader import convert_bytes
from oci_builder import LayerTar
from packed_layer import PackedLayer, begin, pack

MIB = 1 << 20
SIZE = 64 * MIB


def layers() -> list[LayerTar]:
    """Files of many sizes, zeros among them; the upper layer hides one of two chunks and more, and replaces another."""
    dice = random.Random(3)
    lower = LayerTar().directory("data")
    for number in range(30):
        lower.file(f"data/{number}", dice.randbytes(dice.choice([1, 4096, 70_000, 300_000])))
    lower.file("data/large", dice.randbytes(5 * CHUNK + 5000)).file("data/hidden", dice.randbytes(6 * CHUNK))
    lower.file("data/zeros", bytes(5 * CHUNK)).file("data/end", b"end")
    upper = LayerTar().whiteout("data/hidden").file("data/3", b"upper").file("data/new", dice.randbytes(4 * CHUNK))
    return [lower, upper]


async def converted(directory: Path) -> list[PackedLayer]:
    found = []
    directory.mkdir()
    for number, tar in enumerate(layers()):
        index = await convert_bytes(directory / str(number), tar.bytes())
        found.append(pack(index, (directory / str(number) / "segment").read_bytes(), tar.bytes()))
    return found


def fill(layer: RemoteLayer, packed: PackedLayer, numbers: list[int]) -> None:
    """Chunks come into the store."""
    descriptor = os.open(layer.stored.segment, os.O_WRONLY)
    for number in numbers:
        os.pwrite(descriptor, packed.chunk(number), number * CHUNK)
    os.fdatasync(descriptor)
    os.close(descriptor)
    with HaveMap.open(layer.stored.path) as have:
        have.set_many(numbers)


def holed(found: list[RemoteLayer], directory: Path) -> tuple[Path, LazyMap, bytes, Holes]:
    directory.mkdir()
    composition = compose([(layer.stored.diff_id, layer_tables(layer.stored.path)) for layer in found], size=SIZE)
    path = directory / "root.ext4"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        holes = write_with_holes(composition, found, descriptor, directory)
    finally:
        os.close(descriptor)
    return path, LazyMap.read(directory / MAP, size=SIZE, layers=len(found)), (directory / STATE).read_bytes(), holes


def whole(found: list[RemoteLayer], packed: list[PackedLayer], path: Path) -> Path:
    """What composing complete layers gives."""
    segments = []
    for number, layer in enumerate(packed):
        segments.append(path.with_name(f"segment-{number}"))
        segments[-1].write_bytes(layer.segment)
    composition = compose([(layer.stored.diff_id, layer_tables(layer.stored.path)) for layer in found], size=SIZE)
    write_composition(composition, segments, path)
    return path


def chunk_of(data: bytes, number: int) -> bytes:
    return data[number * CHUNK : (number + 1) * CHUNK]


async def test_filled_holes_are_the_whole_rootfs_but_for_what_no_file_has(scratch_xfs: Path) -> None:
    """Every chunk of the map put where it says: each byte is composing's, save in chunks that this image has no file in."""
    store = Store.open(scratch_xfs / "state", StoreSettings(backing="native"))
    packed = await converted(scratch_xfs / "converted")
    with ExitStack() as pins:
        found = await begin(store, packed, pins)
        path, map, state, holes = holed(found, scratch_xfs / "machine")
        assert (holes.present, set(state)) == (0, {ABSENT})
        assert holes.wanted == len(map) < sum(len(layer.packed) for layer in packed), "what is hidden is wanted too"
        with path.open("r+b") as file:
            for row in map.rows:
                file.seek(int(row["rootfs_chunk"]) * CHUNK)
                file.write(packed[row["layer"]].chunk(int(row["chunk"])))
        filled, expected = path.read_bytes(), whole(found, packed, scratch_xfs / "whole").read_bytes()
    assert len(filled) == len(expected) == SIZE
    wanted = set(map.chunk_of)
    different = {at for at in range(SIZE // CHUNK) if chunk_of(filled, at) != chunk_of(expected, at)}
    assert different, "the hidden file's chunks are nowhere in the clone"
    assert not different & wanted
    assert not any(any(chunk_of(filled, at)) for at in different)


async def test_what_is_here_is_shared_and_told_to_be_here(scratch_xfs: Path) -> None:
    """Some chunks of one layer, all of another: they are in the clone, the rest are holes."""
    store = Store.open(scratch_xfs / "state", StoreSettings(backing="native"))
    packed = await converted(scratch_xfs / "converted")
    with ExitStack() as pins:
        found = await begin(store, packed, pins)
        some = packed[0].packed[1::3]
        fill(found[0], packed[0], some)
        fill(found[1], packed[1], packed[1].packed)
        path, map, state, holes = holed(found, scratch_xfs / "machine")
    assert holes.present == state.count(PRESENT)
    data = path.read_bytes()
    for row, there in zip(map.rows, state, strict=True):
        layer, chunk, at = int(row["layer"]), int(row["chunk"]), int(row["rootfs_chunk"]) * CHUNK
        bytes_of = packed[layer].chunk(chunk)
        assert there == (PRESENT if layer == 1 or chunk in some else ABSENT)
        assert data[at : at + len(bytes_of)] == (bytes_of if there == PRESENT else bytes(len(bytes_of)))
    assert {int(row["chunk"]) for row in map.rows if row["layer"] == 1} == set(np.flatnonzero(~packed[1].index.zero).tolist())
