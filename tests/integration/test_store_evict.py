"""Layers that must stay give up, chunk by chunk, what nobody shares: on a real XFS, with real clones."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from castoff.layers.index import write_index
from castoff.layers.locations import Locations
from castoff.layers.toc import CHUNK
from castoff.store.evict import evict_chunks
from castoff.store.extents import clone_range
from castoff.store.hydration import HaveMap
from castoff.store.layers import StoredLayer
from castoff.store.machines import MachineRootfs, write_machine_rootfs
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from packed_layer import PackedLayer, packed_layer, random_files


@pytest.fixture
def store(scratch_xfs: Path) -> Store:
    return Store.open(scratch_xfs / "state", StoreSettings(backing="native"))


@pytest.fixture
async def layer(tmp_path: Path) -> PackedLayer:
    return await packed_layer(tmp_path / "layer", random_files(11, chunks=20))


async def stored_layer(store: Store, layer: PackedLayer, numbers: list[int]) -> StoredLayer:
    """The layer with these chunks, and a machine that stands on it."""
    stored = await store.begin_layer(layer.index.diff_id, layer.index)
    with stored.segment.open("r+b", buffering=0) as segment, HaveMap.open(stored.path) as have:
        for number in numbers:
            os.pwrite(segment.fileno(), layer.chunk(number), number * CHUNK)
        os.fdatasync(segment.fileno())
        have.set_many(numbers)
        if not have.missing():
            have.complete()
    (store.machines / "m").mkdir(exist_ok=True)
    write_machine_rootfs(store.machines / "m", MachineRootfs(provider="layered", layers=(str(layer.index.diff_id),)))
    return stored


def share(store: Store, stored: StoredLayer, numbers: list[int]) -> Path:
    """A clone, as the machine has it, of these chunks."""
    path = store.machines / "m" / "root.ext4"
    with stored.segment.open("rb") as segment, path.open("w+b") as clone:
        clone.truncate(stored.have.segment_size)
        for number in numbers:
            place = number * CHUNK
            assert clone_range(segment.fileno(), clone.fileno(), length=CHUNK, source_offset=place, target_offset=place)
    return path


def check(stored: StoredLayer, layer: PackedLayer) -> np.ndarray:
    """Every bit tells the truth; gives which are set."""
    with HaveMap.open(stored.path) as have:
        present = have.present()
        assert have.is_complete == present.all()
    segment = stored.segment.read_bytes()
    for number in np.flatnonzero(present):
        assert segment[number * CHUNK : (number + 1) * CHUNK] == layer.chunk(int(number))
    return present


async def test_shared_chunks_stay_and_others_go(store: Store, layer: PackedLayer) -> None:
    """Not while a process has the layer; then all that the clone does not share, and no more."""
    stored = await stored_layer(store, layer, layer.packed)
    assert stored.complete is False  # as it was when it was begun
    kept = layer.packed[3:8]
    clone = share(store, stored, kept)
    before = stored.segment.stat().st_blocks * 512
    assert evict_chunks(stored.path, needed=1 << 40) == 0
    stored.pin.close()
    freed = evict_chunks(stored.path, needed=1 << 40)
    assert freed >= (len(layer.packed) - len(kept) - 1) * CHUNK
    assert before - stored.segment.stat().st_blocks * 512 == freed
    present = check(stored, layer)
    assert [number for number in layer.packed if present[number]] == kept
    assert clone.read_bytes()[kept[0] * CHUNK : (kept[-1] + 1) * CHUNK] == b"".join(map(layer.chunk, kept))
    assert evict_chunks(stored.path, needed=1 << 40) == 0


async def test_room_that_is_reserved_goes_first(store: Store, layer: PackedLayer) -> None:
    """No chunk is lost while there is any; then one after the other, as few as will do."""
    stored = await stored_layer(store, layer, layer.packed[:5])
    stored.pin.close()
    assert evict_chunks(stored.path, needed=2 * CHUNK) == 2 * CHUNK
    assert check(stored, layer)[layer.packed[:5]].all()
    evict_chunks(stored.path, needed=stored.segment.stat().st_blocks * 512 - 4 * CHUNK)
    assert check(stored, layer)[layer.packed[:5]].sum() == 4


async def test_what_was_converted_here_stays_whole(store: Store, layer: PackedLayer) -> None:
    """It can be fetched from nowhere."""

    async def build(directory: Path) -> None:
        (directory / "segment").write_bytes(layer.segment)
        write_index(directory / "index", replace(layer.index, locations=Locations.local(len(layer.index.zero))))

    stored = await store.build_layer(layer.index.diff_id, build)
    stored.pin.close()
    assert stored.segment.stat().st_blocks
    taken = stored.segment.stat().st_blocks
    evict_chunks(stored.path, needed=1 << 40)
    found = store.layer(layer.index.diff_id)
    assert found is not None
    assert found.complete
    assert check(found, layer).all()
    assert stored.segment.stat().st_blocks <= taken  # holes of zeros, at most


async def test_a_limit_is_reached_that_way_too(store: Store, layer: PackedLayer) -> None:
    """A layer on which a machine stands gives what it can; the machine's own is untouched."""
    stored = await stored_layer(store, layer, layer.packed)
    kept = layer.packed[:6]
    clone = share(store, stored, kept)
    stored.pin.close()
    pruned = await store.prune(limit=8 * CHUNK)
    assert pruned.layers == ()
    assert pruned.evicted > 0
    assert pruned.after <= 8 * CHUNK
    present = check(stored, layer)
    assert present[kept].all()
    assert clone.read_bytes()[:CHUNK] == layer.chunk(0)
    again = await store.begin_layer(layer.index.diff_id, layer.index)
    assert not again.complete
