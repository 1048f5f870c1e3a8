"""Layers that come in chunk by chunk: how they begin, what is remembered of them, what takes their place."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from castoff.errors import Conflict, Internal, Invalid, NotFound
from castoff.image.digest import Digest
from castoff.layers.index import read_index
from castoff.layers.locations import Locations
from castoff.layers.toc import CHUNK
from castoff.store.hydration import HaveMap
from castoff.store.layers import StoredLayer
from castoff.store.machines import MachineRootfs, write_machine_rootfs
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from packed_layer import PackedLayer, packed_layer, random_files


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "state", StoreSettings(backing="native"))


@pytest.fixture
async def layer(tmp_path: Path) -> PackedLayer:
    return await packed_layer(tmp_path / "layer", random_files(1))


async def begin(store: Store, layer: PackedLayer) -> StoredLayer:
    return await store.begin_layer(layer.index.diff_id, layer.index)


def left_behind(store: Store) -> list[str]:
    return [entry.name for area in ("tmp", "locks") for entry in (store.root / area).iterdir()]


async def convert(store: Store, layer: PackedLayer, segment: bytes | None = None) -> StoredLayer:
    """What a conversion does: the index without locations, the segment whole."""

    async def build(directory: Path) -> None:
        from castoff.layers.index import write_index

        (directory / "segment").write_bytes(segment or layer.segment)
        write_index(directory / "index", replace(layer.index, locations=Locations.local(len(layer.index.zero))))

    return await store.build_layer(layer.index.diff_id, build)


async def test_a_begun_layer_has_its_zeros_and_nothing_else(store: Store, layer: PackedLayer) -> None:
    """Segment at full length, index with locations, a bit for each chunk of zeros."""
    stored = await begin(store, layer)
    assert not stored.complete
    assert stored.segment.stat().st_size == layer.index.segment_size
    assert stored.present().tolist() == layer.index.zero.tolist()
    assert layer.index.zero.any()
    assert read_index(stored.index).locations.blobs == layer.index.locations.blobs
    assert store.segment_size(layer.index.diff_id) == layer.index.segment_size
    assert left_behind(store) == []


async def test_its_blocks_are_reserved(store: Store, layer: PackedLayer) -> None:
    """So that chunks have room, and the file few extents."""
    stored = await begin(store, layer)
    assert stored.segment.stat().st_blocks * 512 >= layer.index.segment_size


async def test_many_begin_it_once(store: Store, layer: PackedLayer) -> None:
    """And each gets it."""
    found = await asyncio.gather(*(begin(store, layer) for _ in range(5)))
    assert len({one.segment.stat().st_ino for one in found}) == 1
    assert left_behind(store) == []


async def test_bits_are_kept_and_the_last_makes_it_complete(store: Store, layer: PackedLayer) -> None:
    """Also by two that fill at once, each of which learns of the other's."""
    stored = await begin(store, layer)
    numbers = layer.packed
    with HaveMap.open(stored.path) as one, HaveMap.open(stored.path) as other:
        assert one.missing() == len(numbers)
        one.set_many(numbers[:-1:2])
        other.set_many(numbers[1:-1:2])
        one.set_many([])
        assert one.present().tolist() == other.present().tolist()
        with pytest.raises(Internal, match="lacks 1 chunks"):
            one.complete()
        assert not store.layer(layer.index.diff_id).complete  # type: ignore[union-attr]
        assert not one.has(numbers[-1])
        one.set_many(numbers[-1:])
        assert one.has(numbers[-1])
        one.complete()
        other.refresh()
        assert other.is_complete
    found = store.layer(layer.index.diff_id)
    assert found is not None
    assert found.complete
    assert found.present().all()


async def test_a_chunk_that_is_not_its_own_is_refused(store: Store, layer: PackedLayer) -> None:
    """A number past the end is our mistake."""
    stored = await begin(store, layer)
    with HaveMap.open(stored.path) as have, pytest.raises(Internal, match="was told of chunk"):
        have.set_many([have.chunks])
    with pytest.raises(NotFound):
        HaveMap.open(store.root)


async def test_a_layer_of_nothing_is_whole_at_once(store: Store, tmp_path: Path) -> None:
    """No data at all, or zeros alone."""
    for number, files in enumerate([{}, {"data/zeros": bytes(3 * CHUNK)}]):
        layer = await packed_layer(tmp_path / str(number), files)
        assert layer.packed == []
        assert (await begin(store, layer)).complete


async def test_what_could_never_be_complete_is_not_begun(store: Store, layer: PackedLayer) -> None:
    """A chunk in no pack; an index of another layer."""
    nowhere = replace(layer.index, locations=Locations.local(len(layer.index.zero)))
    with pytest.raises(Invalid, match="is in no pack"):
        await store.begin_layer(layer.index.diff_id, nowhere)
    with pytest.raises(Invalid, match="is that of"):
        await store.begin_layer(Digest.of(b"other"), layer.index)
    assert left_behind(store) == []


async def test_a_whole_layer_stays_as_it_is(store: Store, layer: PackedLayer) -> None:
    """Beginning it gives what is here."""
    await convert(store, layer)
    assert (await begin(store, layer)).complete


async def test_the_latest_artifact_tells_where_chunks_are(store: Store, layer: PackedLayer) -> None:
    """Another pack of the same chunks replaces the locations; other chunks are refused."""
    stored = await begin(store, layer)
    with HaveMap.open(stored.path) as have:
        have.set_many(layer.packed[:3])
    moved = replace(layer.index.locations, blobs=(Digest.of(b"another pack"),))
    again = await store.begin_layer(layer.index.diff_id, replace(layer.index, locations=moved))
    assert read_index(again.index).locations.blobs == moved.blobs
    assert again.present().sum() == 3 + layer.index.zero.sum()
    lies = layer.index.digests.copy()
    lies[0] ^= 1
    with pytest.raises(Conflict, match="says other things"):
        await store.begin_layer(layer.index.diff_id, replace(layer.index, digests=lies))


@pytest.fixture
async def open_segment(store: Store, layer: PackedLayer) -> AsyncIterator[int]:
    """The segment of the layer that comes in, as a hydrator has it open, with its first chunk there."""
    stored = await begin(store, layer)
    descriptor = os.open(stored.segment, os.O_RDWR)
    os.pwrite(descriptor, layer.chunk(0), 0)
    yield descriptor
    os.close(descriptor)


async def test_a_conversion_takes_its_place(store: Store, layer: PackedLayer, open_segment: int) -> None:
    """Whoever looks finds the whole one; whoever has the old one open keeps it."""
    old = store.layer(layer.index.diff_id)
    assert old is not None
    with HaveMap.open(old.path) as have:
        new = await convert(store, layer)
        assert new.complete
        assert new.segment.read_bytes() == layer.segment
        assert os.pread(open_segment, CHUNK, 0) == layer.chunk(0)
        have.set_many([0])
        assert have.has(0)
    assert os.fstat(open_segment).st_nlink == 0
    assert left_behind(store) == []
    assert store.layer(layer.index.diff_id) == new


async def test_a_lie_is_replaced_where_nobody_stands_on_it(store: Store, layer: PackedLayer) -> None:
    """The conversion is the truth; what a machine stands on stays, and the error says whose fault it is."""
    lies = layer.index.digests.copy()
    lies[0] ^= 1
    lying = await store.begin_layer(layer.index.diff_id, replace(layer.index, digests=lies))
    with pytest.raises(Conflict, match="says other things than its origin"):
        await convert(store, layer)
    lying.pin.close()
    (store.machines / "m").mkdir()
    write_machine_rootfs(store.machines / "m", MachineRootfs(provider="layered", layers=(str(layer.index.diff_id),)))
    with pytest.raises(Conflict, match="says other things than its origin"):
        await convert(store, layer)
    (store.machines / "m" / "rootfs.json").unlink()
    assert (await convert(store, layer)).complete
    assert left_behind(store) == []


async def test_prune_takes_it_when_nobody_has_it(store: Store, layer: PackedLayer) -> None:
    """A pin keeps it, and a machine's record."""
    stored = await begin(store, layer)
    assert (await store.prune()).layers == ()
    stored.pin.close()
    (store.machines / "m").mkdir()
    write_machine_rootfs(store.machines / "m", MachineRootfs(provider="layered", layers=(str(layer.index.diff_id),)))
    assert (await store.prune()).layers == ()
    (store.machines / "m" / "rootfs.json").unlink()
    assert (await store.prune()).layers == (str(layer.index.diff_id),)
    assert store.layer(layer.index.diff_id) is None


async def test_usage_tells_how_much_is_here(store: Store, layer: PackedLayer) -> None:
    """From nothing but zeros to all of it; a broken one counts as nothing."""
    stored = await begin(store, layer)
    zeros = float(layer.index.zero.mean())
    assert [one.hydrated for one in (await store.usage()).layers] == [zeros]
    with HaveMap.open(stored.path) as have:
        have.set_many(layer.packed)
        assert [one.hydrated for one in (await store.usage()).layers] == [1.0]
    (stored.path / "have").write_bytes(b"what")
    assert [one.hydrated for one in (await store.usage()).layers] == [0.0]


async def test_a_broken_have_is_no_layer(store: Store, layer: PackedLayer) -> None:
    """It is told, and nothing is put in its place."""
    stored = await begin(store, layer)
    (stored.path / "have").write_bytes(b"what")
    with pytest.raises(Invalid, match="is not a `have` file"):
        HaveMap.open(stored.path)
    with pytest.raises(Invalid, match="is not a `have` file"):
        await convert(store, layer)


def test_bits_are_numpy_s_and_the_files(tmp_path: Path) -> None:
    """Bit i mod 8 of byte i / 8, as docs/formats.md says."""
    from castoff.store.have import Have

    data = bytearray(Have(11 * CHUNK, 11, complete=False).to_bytes())
    data[32:] = bytes([0b00000110, 0b100])
    (tmp_path / "have").write_bytes(data)
    with HaveMap.open(tmp_path) as have:
        assert np.flatnonzero(have.present()).tolist() == [1, 2, 10] == [n for n in range(11) if have.has(n)]
