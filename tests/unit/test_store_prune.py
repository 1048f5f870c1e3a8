"""What pruning takes, in which order, and what it leaves alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from castoff.errors import Conflict, Invalid, NotFound
from castoff.image.digest import Digest
from castoff.store.machines import MachineRootfs, write_machine_rootfs
from castoff.store.rootfs import RootfsName, RootfsRecord, layered_key
from castoff.store.settings import StoreSettings
from castoff.store.store import Store

PIECE = 256 * 1024


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "state", StoreSettings(backing="native"))


def digest(name: str) -> Digest:
    return Digest.of(name.encode())


async def add_layer(store: Store, name: str, *, used: int) -> None:
    """A layer of 256 KiB, last used at ``used``."""

    async def build(directory: Path) -> None:
        (directory / "segment").write_bytes(os.urandom(PIECE))
        (directory / "index").write_bytes(b"index")

    os.utime((await store.build_layer(digest(name), build)).path, (used, used))


async def add_rootfs(store: Store, *layers: str, used: int) -> RootfsName:
    """A rootfs of 256 KiB made of these layers, last used at ``used``."""

    async def build(directory: Path) -> None:
        (directory / "rootfs.ext4").write_bytes(os.urandom(PIECE))

    name = RootfsName(layered_key([digest(layer) for layer in layers]), PIECE)
    ids = tuple(str(digest(layer)) for layer in layers)
    record = RootfsRecord(provider="layered", layers=ids, reference="/".join(layers), image=str(digest("manifest")))
    os.utime((await store.build_rootfs(name, record, build)).path, (used, used))
    return name


def add_machine(store: Store, machine: str, rootfs: RootfsName, *layers: str) -> None:
    (store.machines / machine).mkdir()
    record = MachineRootfs(provider="layered", rootfs=str(rootfs), layers=tuple(str(digest(layer)) for layer in layers))
    write_machine_rootfs(store.machines / machine, record)


async def test_everything_unused_goes_the_oldest_first(store: Store) -> None:
    """A layer's turn comes when no rootfs needs it any more."""
    await add_layer(store, "old", used=100)
    await add_layer(store, "new", used=300)
    rootfs = await add_rootfs(store, "old", used=200)
    pruned = await store.prune()
    assert pruned.rootfs == (str(rootfs),)
    assert pruned.layers == (str(digest("old")), str(digest("new")))
    assert pruned.before >= 3 * PIECE
    assert pruned.after == 0
    assert [path.name for area in ("layers", "rootfs", "tmp", "locks") for path in (store.root / area).iterdir()] == []


async def test_a_limit_keeps_what_was_used_last(store: Store) -> None:
    """No more goes than must."""
    for used, name in enumerate(["a", "b", "c", "d"]):
        await add_layer(store, name, used=used)
    pruned = await store.prune(limit=2 * PIECE + 65536)
    assert pruned.layers == (str(digest("a")), str(digest("b")))
    assert pruned.after <= 2 * PIECE + 65536


async def test_a_machine_keeps_its_rootfs_and_layers(store: Store) -> None:
    """Until its directory is gone."""
    await add_layer(store, "a", used=1)
    await add_layer(store, "b", used=2)
    rootfs = await add_rootfs(store, "a", used=3)
    add_machine(store, "m", rootfs, "a")
    pruned = await store.prune()
    assert (pruned.rootfs, pruned.layers) == ((), (str(digest("b")),))
    with pytest.raises(Conflict, match="in use by m"):
        await store.remove_rootfs(rootfs)
    (store.machines / "m" / "rootfs.json").unlink()
    (store.machines / "m").rmdir()
    assert (await store.prune()).layers == (str(digest("a")),)


async def test_a_machine_that_is_being_made_counts(store: Store) -> None:
    """Its directory has another name yet."""
    await add_layer(store, "a", used=1)
    rootfs = await add_rootfs(store, "a", used=3)
    add_machine(store, ".owner.m", rootfs, "a")
    pruned = await store.prune()
    assert (pruned.rootfs, pruned.layers) == ((), ())


async def test_what_a_process_holds_stays(store: Store) -> None:
    """A create that has located its rootfs and not cloned it yet; a build that has found its layers."""
    await add_layer(store, "a", used=1)
    await add_layer(store, "b", used=1)
    name = await add_rootfs(store, "a", used=3)
    rootfs, layer = store.rootfs(name), store.layer(digest("b"))
    assert rootfs is not None
    assert layer is not None
    assert (await store.prune()).after >= 3 * PIECE
    with pytest.raises(Conflict, match="in use by a process"):
        await store.remove_rootfs(name)
    del rootfs, layer
    assert (await store.prune()).after == 0


async def test_a_dry_run_says_and_does_not(store: Store) -> None:
    """The same names, and all is there after it."""
    await add_layer(store, "a", used=1)
    await add_rootfs(store, "a", used=3)
    said = await store.prune(dry_run=True)
    assert said.before == said.after
    done = await store.prune()
    assert (done.rootfs, done.layers) == (said.rootfs, said.layers)


async def test_a_broken_machine_record_stops_pruning(store: Store) -> None:
    """Nobody knows what that machine stands on."""
    await add_layer(store, "a", used=1)
    (store.machines / "m").mkdir()
    (store.machines / "m" / "rootfs.json").write_bytes(b"{")
    with pytest.raises(Invalid, match=r"m/rootfs\.json"):
        await store.prune()
    assert store.layer(digest("a")) is not None


async def test_removing_one_leaves_its_layers(store: Store) -> None:
    """And a second time it is not there."""
    await add_layer(store, "a", used=1)
    name = await add_rootfs(store, "a", used=2)
    await store.remove_rootfs(name)
    assert store.rootfs(name) is None
    assert store.layer(digest("a")) is not None
    with pytest.raises(NotFound, match=str(name)):
        await store.remove_rootfs(name)


async def test_the_size_limit_of_the_settings_is_kept(tmp_path: Path) -> None:
    """Whoever added something calls for it; without a limit nothing goes."""
    state = tmp_path / "state"
    store = Store.open(state, StoreSettings(backing="native", size_limit=PIECE + 65536))
    await add_layer(store, "a", used=1)
    await add_layer(store, "b", used=2)
    await Store.open(state, StoreSettings(backing="native")).keep_to_limit()
    assert store.layer(digest("a")) is not None
    await store.keep_to_limit()
    assert (store.layer(digest("a")), store.layer(digest("b")) is None) == (None, False)


async def test_usage_names_users_and_times(store: Store) -> None:
    """Who needs what, and what it takes."""
    await add_layer(store, "a", used=100)
    name = await add_rootfs(store, "a", used=200)
    add_machine(store, "m", name, "a")
    usage = await store.usage()
    (layer,), (rootfs,), (machine,) = usage.layers, usage.rootfs, usage.machines
    assert (layer.diff_id, layer.last_used, layer.rootfs, layer.machines) == (str(digest("a")), 100, (str(name),), ("m",))
    assert (rootfs.name, rootfs.last_used, rootfs.reference, rootfs.machines) == (str(name), 200, "a", ("m",))
    assert (machine.id, machine.rootfs) == ("m", str(name))
    assert layer.allocated >= PIECE
    assert rootfs.own >= PIECE
    assert usage.cached >= 2 * PIECE
    assert usage.total >= usage.cached
    assert usage.free > 0
