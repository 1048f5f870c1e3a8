"""Layers that come in ahead of need: what is fetched, what is kept, where the next time begins."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from castoff.errors import CastoffError, Unavailable
from castoff.image.digest import Digest
from castoff.layers.verify import verify_segment
from castoff.rootfs.preload import fetch_layers
from castoff.sources.chunks import ChunkReader
from castoff.sources.source import ByteRange, Located, Piece
from castoff.store.have import Have
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from packed_layer import PackedLayer, begin, packed_layer, random_files


class Packs:
    """A source of packs in memory; fails after ``patience`` ranges."""

    def __init__(self, layers: Sequence[PackedLayer], *, patience: int = 1 << 30) -> None:
        self.name = "memory"
        self.asked: list[ByteRange] = []
        self._packs = {layer.digest: layer.pack for layer in layers}
        self._patience = patience

    async def locate(self, pack: Digest) -> Located | None:
        return Located(self.name) if pack in self._packs else None

    async def read(self, pack: Digest, ranges: Sequence[ByteRange]) -> AsyncGenerator[Piece, None]:
        for one in ranges:
            if len(self.asked) >= self._patience:
                raise Unavailable("memory is lost")
            self.asked.append(one)
            yield Piece(one, self._packs[pack][one.start : one.end], self.name)

    async def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(name="store")
def _store(scratch_xfs: Path) -> Store:
    return Store.open(scratch_xfs / "state", StoreSettings(backing="native"))


@pytest.fixture(name="layers")
async def _layers(tmp_path: Path) -> list[PackedLayer]:
    return [await packed_layer(tmp_path / str(seed), random_files(seed, chunks=6)) for seed in (1, 2)]


async def _fetch(store: Store, layers: Sequence[PackedLayer], packs: Packs, **how: object) -> int:
    reader = ChunkReader(packs)
    try:
        with ExitStack() as pins:
            return await fetch_layers(await begin(store, layers, pins), reader, store, **how)  # type: ignore[arg-type]
    finally:
        await reader.close()


async def test_all_that_is_missing_comes_in_once(store: Store, layers: list[PackedLayer]) -> None:
    """Both layers are complete, every chunk what its index says; the next time nothing is asked for. Twice is once."""
    packs = Packs(layers)
    fetched = await _fetch(store, [*layers, layers[0]], packs)
    assert fetched == sum(map(len, packs.asked)) == sum(int(layer.index.locations.length.sum()) for layer in layers)
    for layer in layers:
        stored = store.layer(layer.index.diff_id)
        assert stored is not None
        assert stored.complete
        assert verify_segment(stored.path) == []
    assert await _fetch(store, layers, packs) == 0
    assert len(packs.asked) == sum(len(layer.packed) for layer in layers)


async def test_what_was_interrupted_goes_on_where_it_was(store: Store, layers: list[PackedLayer]) -> None:
    """Chunks that came before the failure are on disk and told to be; only the others are fetched then."""
    broken = Packs(layers, patience=4)
    with pytest.raises(CastoffError, match="memory is lost"):
        await _fetch(store, layers, broken)
    first = store.layer(layers[0].index.diff_id)
    assert first is not None
    assert not first.complete
    assert int(first.present().sum()) == 4 + int(layers[0].index.zero.sum())
    packs = Packs(layers)
    await _fetch(store, layers, packs)
    assert not set(packs.asked) & set(broken.asked) or len(packs.asked) == sum(len(layer.packed) for layer in layers) - 4
    for layer in layers:
        have = Have.read(store.root / "layers" / layer.index.diff_id.hex / "have")
        assert have is not None and have.complete


async def test_only_what_a_profile_names_comes_in(store: Store, layers: list[PackedLayer]) -> None:
    """And what is no chunk of the layer is passed over."""
    wanted = layers[1].packed[1:4]
    packs = Packs(layers)
    only = {layers[1].index.diff_id: [*wanted, 1 << 20], Digest("f" * 64): [1]}
    await _fetch(store, layers, packs, only=only)
    stored = store.layer(layers[1].index.diff_id)
    assert stored is not None
    assert [number for number in layers[1].packed if stored.present()[number]] == wanted
    assert len(packs.asked) == 3
    untouched = store.layer(layers[0].index.diff_id)
    assert untouched is not None
    assert (untouched.present() == layers[0].index.zero).all()
