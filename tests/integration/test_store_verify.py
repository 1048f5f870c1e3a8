"""Verifying the store: every kind of damage is seen, named, and mended when asked."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from castoff.disk.clone import CloneKind
from castoff.layers.toc import CHUNK
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.layered import LayeredProvider
from castoff.rootfs.provider import RootfsRequest
from castoff.rootfs.settings import RootfsSettings
from castoff.rootfs.verify import Verdict, verify_rootfs, verify_store
from castoff.store.hydration import HaveMap
from castoff.store.rootfs import rootfs_names
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from image_requests import request_of
from oci_builder import LayerTar, build_image
from packed_layer import packed_layer, random_files

MIB = 1 << 20


@pytest.fixture(params=["xfs", "ext4"])
def store(request: pytest.FixtureRequest, scratch_xfs: Path, tmp_path: Path) -> Store:
    directory = scratch_xfs if request.param == "xfs" else tmp_path
    return Store.open(directory / "state", StoreSettings(backing="native"))


@pytest.fixture
def request_(store: Store) -> RootfsRequest:
    """An image of two layers."""
    dice = random.Random(5)
    lower = LayerTar().directory("etc").file("etc/motd", b"hello\n").file("data", dice.randbytes(3 * MIB))
    return request_of(build_image([lower, LayerTar().file("more", dice.randbytes(700_000)).whiteout("etc/motd")]))


def provider(store: Store) -> LayeredProvider:
    return LayeredProvider(ProviderContext(store, RootfsSettings(size=64 * MIB)))


def flip(path: Path, place: int) -> None:
    """Changes a bit, in place."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def place_of_data(rootfs: Path) -> int:
    """Where the image's largest file begins."""
    return rootfs.read_bytes().index(random.Random(5).randbytes(64))


def problems(verdicts: tuple[Verdict, ...]) -> dict[str, str]:
    return {f"{verdict.kind} {verdict.name[:14]}": verdict.problem for verdict in verdicts if verdict.problem}


async def test_a_healthy_store_is_healthy(store: Store, request_: RootfsRequest) -> None:
    """Two layers, two sizes, an overlay's upper half: nothing to say."""
    found = await provider(store).locate(request_)
    await provider(store).locate(RootfsRequest(request_.image, request_.source, size=96 * MIB))
    overlay = await provider(store).locate(RootfsRequest(request_.image, request_.source, clone=CloneKind.OVERLAY))
    assert found is not None
    assert overlay is not None
    (store.machines / "m").mkdir()
    await overlay.clone("m", store.machines / "m")
    verdicts = await verify_store(store)
    assert len(verdicts) == 5
    assert problems(verdicts) == {}


async def test_a_damaged_chunk_is_named(store: Store, request_: RootfsRequest) -> None:
    """With the layer, and every rootfs that is made of it."""
    await provider(store).locate(request_)
    lower = store.root / "layers" / request_.image.layers[0].diff_id.hex
    flip(lower / "segment", 2 * MIB + 5)
    verdicts = await verify_store(store)
    (layer,) = [verdict for verdict in verdicts if verdict.kind == "layer" and verdict.problem]
    assert layer.name.endswith(lower.name)
    assert "1 of 13 chunks of its segment are damaged, the first is 8" in layer.problem
    (rootfs,) = [verdict for verdict in verdicts if verdict.kind == "rootfs"]
    assert "is broken: 1 of 13 chunks" in rootfs.problem


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda rootfs: flip(rootfs, 1024 + 0x38), "its metadata is damaged at byte 1080"),
        (lambda rootfs: flip(rootfs, 63 * MIB), f"its metadata is damaged at byte {63 * MIB}"),
        (
            lambda rootfs: flip(rootfs, rootfs.read_bytes().index(random.Random(5).randbytes(64)) + MIB),
            "differs from layer sha256:",
        ),
        (lambda rootfs: os.truncate(rootfs, 32 * MIB), f"it has {32 * MIB} bytes and should have {64 * MIB}"),
        (lambda rootfs: rootfs.unlink(), "rootfs.ext4: No such file"),
        (lambda rootfs: (rootfs.parent / "record.json").write_bytes(b"{}"), "record.json"),
    ],
)
async def test_a_damaged_rootfs_is_seen(
    store: Store, request_: RootfsRequest, damage: Callable[[Path], object], said: str
) -> None:
    """Metadata, free space that was written, a segment's copy, its size, its record."""
    await provider(store).locate(request_)
    (rootfs,) = (store.root / "rootfs").glob("*/rootfs.ext4")
    damage(rootfs)
    (problem,) = problems(await verify_store(store)).values()
    assert said in problem


@pytest.mark.parametrize(
    ("name", "place", "said"),
    [("index", 200, ""), ("have", 0, "is not a `have` file"), ("have", 12, "is not a `have` file")],
)
async def test_a_damaged_layer_file_is_seen(store: Store, request_: RootfsRequest, name: str, place: int, said: str) -> None:
    """The index has a digest of its own, `have` a fixed form."""
    await provider(store).locate(request_)
    flip(store.root / "layers" / request_.image.layers[1].diff_id.hex / name, place)
    layers = [verdict for verdict in await verify_store(store) if verdict.kind == "layer" and verdict.problem]
    assert len(layers) == 1
    assert said in layers[0].problem


async def test_one_rootfs_is_verified_with_its_layers(store: Store, request_: RootfsRequest) -> None:
    """Alone, whatever else the store holds; a layer that is gone leaves it unchecked."""
    await provider(store).locate(request_)
    (name,) = rootfs_names(store.root)
    assert await verify_rootfs(store, name) == Verdict("rootfs", str(name), "")
    segment = store.root / "layers" / request_.image.layers[0].diff_id.hex / "segment"
    flip(segment, 5)
    assert "is broken: 1 of 13" in (await verify_rootfs(store, name)).problem
    shutil.rmtree(segment.parent)
    verdict = await verify_rootfs(store, name)
    assert (verdict.problem, "cannot be checked" in verdict.note) == ("", True)


async def test_repair_removes_what_is_broken_and_it_comes_back(store: Store, request_: RootfsRequest) -> None:
    """What is whole stays; the next create makes the rest again."""
    await provider(store).locate(request_)
    lower, upper = (store.root / "layers" / layer.diff_id.hex for layer in request_.image.layers)
    flip(lower / "segment", 5)
    verdicts = await verify_store(store, repair=True)
    assert {verdict.note for verdict in verdicts if verdict.problem} == {"removed"}
    assert (lower.exists(), upper.exists(), list((store.root / "rootfs").iterdir())) == (False, True, [])
    assert await provider(store).locate(request_) is not None
    assert problems(await verify_store(store)) == {}


async def test_repair_leaves_what_a_machine_uses(store: Store, request_: RootfsRequest) -> None:
    """And says so."""
    found = await provider(store).locate(RootfsRequest(request_.image, request_.source, clone=CloneKind.COPY))
    assert found is not None
    (store.machines / "m").mkdir()
    await found.clone("m", store.machines / "m")
    del found
    flip(store.root / "layers" / request_.image.layers[0].diff_id.hex / "segment", 5)
    verdicts = await verify_store(store, repair=True)
    assert all(verdict.note.startswith("kept: ") for verdict in verdicts if verdict.problem)
    assert len(problems(verdicts)) == 2


async def test_a_layer_that_comes_in_is_checked_as_far_as_it_is_here(scratch_xfs: Path, tmp_path: Path) -> None:
    """What is missing is no damage, and told; what is here and wrong is."""
    store = Store.open(scratch_xfs / "state", StoreSettings(backing="native"))
    packed = await packed_layer(tmp_path / "packed", random_files(3))
    layer = await store.begin_layer(packed.index.diff_id, packed.index)
    here = packed.packed[:3]
    with layer.segment.open("r+b") as segment, HaveMap.open(layer.path) as have:
        for number in here:
            segment.seek(number * CHUNK)
            segment.write(packed.chunk(number))
        segment.flush()
        have.set_many(here)
        zeros = len(packed.index.zero) - len(packed.packed)
    (verdict,) = await verify_store(store)
    assert (verdict.problem, verdict.note) == ("", f"it is coming in: {3 + zeros} of {len(packed.index.zero)} chunks are here")
    flip(layer.segment, here[1] * CHUNK + 5)
    (verdict,) = await verify_store(store)
    assert verdict.problem == f"1 of {len(packed.index.zero)} chunks of its segment are damaged, the first is {here[1]}"
