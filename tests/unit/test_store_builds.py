"""Layers and root filesystems are built once, appear whole, and leave nothing when they fail."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from castoff.errors import Conflict, Internal, NoSpace
from castoff.image.digest import Digest
from castoff.store.builds import sweep
from castoff.store.layers import StoredLayer
from castoff.store.rootfs import RootfsName, RootfsRecord, layered_key, read_record
from castoff.store.settings import StoreSettings
from castoff.store.store import Store

LAYER = Digest.of(b"a layer")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "state", StoreSettings(backing="native"))


async def write_layer(directory: Path) -> None:
    (directory / "segment").write_bytes(bytes(4096))
    (directory / "index").write_bytes(b"index")


def left_behind(store: Store) -> list[str]:
    return [entry.name for area in ("tmp", "locks") for entry in (store.root / area).iterdir()]


async def test_many_that_want_a_layer_build_it_once(store: Store) -> None:
    """Ten tasks get one layer, of one build."""
    builds = 0

    async def build(directory: Path) -> None:
        nonlocal builds
        builds += 1
        await asyncio.sleep(0.02)
        await write_layer(directory)

    found = await asyncio.gather(*(store.build_layer(LAYER, build) for _ in range(10)))
    assert builds == 1
    assert {layer.path for layer in found} == {store.root / "layers" / LAYER.hex}
    assert all(layer.complete for layer in found)
    assert left_behind(store) == []


async def test_a_failed_build_leaves_nothing_and_the_next_one_starts_anew(store: Store) -> None:
    """The error is the builder's own; a waiter builds in its place."""

    async def fail(directory: Path) -> None:
        (directory / "segment").write_bytes(b"half")
        await asyncio.sleep(0.02)
        raise ValueError("broken layer")

    results = await asyncio.gather(store.build_layer(LAYER, fail), store.build_layer(LAYER, write_layer), return_exceptions=True)
    assert isinstance(results[0], ValueError)
    assert isinstance(results[1], StoredLayer)
    assert left_behind(store) == []


async def test_a_cancelled_build_leaves_nothing(store: Store) -> None:
    """Neither a directory nor a lock."""
    started = asyncio.Event()

    async def forever(directory: Path) -> None:
        (directory / "segment").write_bytes(b"half")
        started.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(store.build_layer(LAYER, forever))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.layer(LAYER) is None
    assert left_behind(store) == []


async def test_a_full_disk_is_no_space(store: Store) -> None:
    """ENOSPC from anywhere inside a build becomes the error that says what to do."""

    async def full(directory: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NoSpace, match="castoff store prune"):
        await store.build_layer(LAYER, full)
    assert left_behind(store) == []


async def test_a_builder_must_make_what_a_layer_is(store: Store) -> None:
    """A converter that leaves no index is our mistake, and nothing is kept of it."""

    async def half(directory: Path) -> None:
        (directory / "segment").write_bytes(bytes(4096))

    with pytest.raises(Internal, match="no index"):
        await store.build_layer(LAYER, half)
    assert store.layer(LAYER) is None


async def test_what_a_dead_builder_left_is_swept(store: Store) -> None:
    """Also of another layer; a living builder's is left alone."""
    dead = store.root / "tmp" / f"layer-{Digest.of(b'dead').hex}.0123abcd"
    dead.mkdir()
    (dead / "segment").write_bytes(bytes(100))
    swept: list[Path] = []

    async def build(directory: Path) -> None:
        swept.extend(sweep(store.root))
        await write_layer(directory)

    await store.build_layer(LAYER, build)
    assert swept == [dead]
    assert left_behind(store) == []


async def test_an_incomplete_layer_is_not_overwritten(store: Store) -> None:
    """A directory that a hydrator fills, or that lost its `have`, is no place for a rename."""
    (store.root / "layers" / LAYER.hex).mkdir()
    with pytest.raises(Conflict, match="is incomplete"):
        await store.build_layer(LAYER, write_layer)


async def test_a_rootfs_is_built_once_with_its_record(store: Store) -> None:
    """Beside the image stands what it was made of."""
    name = RootfsName(layered_key([LAYER]), 1 << 20)
    record = RootfsRecord(provider="layered", layers=(str(LAYER),), reference="a:b", image=str(Digest.of(b"manifest")))

    async def build(directory: Path) -> None:
        (directory / "rootfs.ext4").write_bytes(bytes(4096))

    first, second = await asyncio.gather(store.build_rootfs(name, record, build), store.build_rootfs(name, record, build))
    assert first == second
    assert read_record(first.path) == record
    assert first.file.stat().st_mode & 0o777 == 0o644
    assert store.rootfs(RootfsName(name.key, 2 << 20)) is None


def test_keys_depend_on_layers_and_their_order() -> None:
    """And on nothing else."""
    other = Digest.of(b"other")
    keys = {layered_key(layers) for layers in ([], [LAYER], [other], [LAYER, other], [other, LAYER], [LAYER, LAYER])}
    assert len(keys) == 6
    assert layered_key([LAYER]) == layered_key((LAYER,))


@pytest.mark.parametrize("text", ["", "x", f"{'0' * 64}", f"{'0' * 64}-", f"{'0' * 64}-0", f"{'0' * 64}-1\n", f"{'G' * 64}-1"])
def test_other_names_are_no_rootfs(text: str) -> None:
    """What lies in the directory by mistake is passed over."""
    assert RootfsName.parse(text) is None
    assert RootfsName.parse(f"{'0a' * 32}-4096") == RootfsName("0a" * 32, 4096)
