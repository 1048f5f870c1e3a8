"""What a host keeps for others: frames beside their layer as long as they are asked for, and word of what comes in."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import aclosing
from pathlib import Path

import pytest

from castoff.agent.peers.growth import Growth
from castoff.agent.peers.shelf import Shelf
from castoff.errors import Conflict
from castoff.fakes.chunk_source import FakeChunkSource
from castoff.peers.kept import KeptFrames, frames_file, kept_files
from castoff.sources.chunks import ChunkReader
from castoff.store.layers import layer_path
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from packed_layer import PackedLayer, random_files
from peer_hosts import put, real_pack


@pytest.fixture(name="layer")
async def _layer(tmp_path: Path) -> PackedLayer:
    return await real_pack(tmp_path / "layer", random_files(9, chunks=6))


@pytest.fixture(name="store")
def _store(scratch_xfs: Path) -> Store:
    return Store.open(scratch_xfs / "host", StoreSettings(backing="native"))


async def _fetch(store: Store, layer: PackedLayer) -> None:
    """As a preload does: chunks come in, and their frames are kept."""
    source = FakeChunkSource({layer.digest: layer.pack}, name="registry")
    reader = ChunkReader(source, keeper=KeptFrames(store))
    async with aclosing(reader.fetch(layer.index, layer.packed)) as chunks:
        async for _ in chunks:
            pass
    await reader.close()


def _asked(layer: PackedLayer) -> list[tuple[int, int]]:
    return [(number, int(layer.index.locations.length[number])) for number in layer.packed]


def _frames(layer: PackedLayer) -> list[bytes]:
    offsets = layer.index.locations.offset
    return [layer.pack[int(offsets[number]) : int(offsets[number]) + length] for number, length in _asked(layer)]


async def test_frames_that_came_in_are_given_as_they_are(store: Store, layer: PackedLayer) -> None:
    """The segment is not read for them: they are right also where it has been spoiled since."""
    await put(store, layer)
    await _fetch(store, layer)
    directory = layer_path(store.root, layer.index.diff_id)
    (directory / "segment").write_bytes(bytes(len(layer.segment)))
    shelf = Shelf(store)
    assert await shelf.frames(layer.index.diff_id, _asked(layer)) == _frames(layer)
    shelf.close()


async def test_a_frame_of_another_length_is_not_given(store: Store, layer: PackedLayer) -> None:
    """Then it is made anew, and where that has another length too, the host is of no use, and says so."""
    await put(store, layer)
    await _fetch(store, layer)
    shelf = Shelf(store)
    number, length = _asked(layer)[0]
    with pytest.raises(Conflict):
        await shelf.frames(layer.index.diff_id, [(number, length - 1)])
    shelf.close()


async def test_what_was_torn_is_made_anew(store: Store, layer: PackedLayer) -> None:
    """A slot without its head, as a process leaves it that is killed between the two writes."""
    await put(store, layer)
    await _fetch(store, layer)
    path = frames_file(layer_path(store.root, layer.index.diff_id))
    with path.open("r+b") as file:
        for number in layer.packed:
            file.seek(number * ((320 << 10) + 4096))
            file.write(bytes(16))
    shelf = Shelf(store)
    assert await shelf.frames(layer.index.diff_id, _asked(layer)) == _frames(layer)
    shelf.close()


async def test_frames_go_when_nobody_asks_for_them(store: Store, layer: PackedLayer) -> None:
    """Those of an earlier boot at once: nothing says what of them had reached the disk."""
    await put(store, layer)
    await _fetch(store, layer)
    path = frames_file(layer_path(store.root, layer.index.diff_id))
    earlier = path.with_name("frames-00000000")
    earlier.write_bytes(path.read_bytes())
    shelf = Shelf(store)
    shelf.tidy()
    assert list(kept_files(store.root)) == [path]
    await shelf.frames(layer.index.diff_id, _asked(layer))
    os.utime(path, (0, 0))
    shelf.tidy()
    assert path.exists()  # it was asked for a moment ago
    Shelf(store).tidy()
    assert not path.exists()
    assert await shelf.frames(layer.index.diff_id, _asked(layer)) == _frames(layer)
    shelf.close()


async def test_without_room_nothing_is_kept(scratch_xfs: Path, layer: PackedLayer) -> None:
    store = Store.open(scratch_xfs / "full", StoreSettings(backing="native", reserve=1 << 60))
    await put(store, layer)
    await _fetch(store, layer)
    assert list(kept_files(store.root)) == []


async def test_growth_is_told_when_it_happens(tmp_path: Path) -> None:
    """Every write wakes whoever waits for the file, in whatever process it is done; no other file's does."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    for path in (mine, other):
        path.write_bytes(b"0")
    growth = Growth()
    async with growth.watching(mine) as changed, growth.watching(mine) as same, growth.watching(other) as foreign:
        assert same is changed
        done = await asyncio.create_subprocess_exec("sh", "-c", f"sleep 0.1; printf 1 >{mine}")
        begun = time.monotonic()
        await growth.wait(changed, 10.0)
        assert changed.is_set()
        assert not foreign.is_set()
        assert time.monotonic() - begun < 10.0
        await done.wait()
    growth.close()


async def test_a_file_that_is_not_there_is_waited_for_all_the_same(tmp_path: Path) -> None:
    """Waiting ends by itself: a layer may be replaced by another file of the same name."""
    growth = Growth()
    async with growth.watching(tmp_path / "none") as changed:
        await asyncio.wait_for(growth.wait(changed, 0.05), 5)
        assert not changed.is_set()
    growth.close()
