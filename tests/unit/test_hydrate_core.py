"""The hydrator's parts by themselves: map, states, record, pace, origins."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import numpy as np
import pytest

from castoff.errors import Invalid, NotFound, Unavailable
from castoff.hydrate.map import LazyMap, write_map
from castoff.hydrate.origin import Origin
from castoff.hydrate.pace import Pace
from castoff.hydrate.record import RECORD, FrontKind, LazyLayer, LazyRecord, read_record, write_record
from castoff.hydrate.state import ABSENT, FILLING, PRESENT, ChunkStates, write_state
from castoff.layers.index import LayerIndex
from castoff.layers.toc import CHUNK
from castoff.peers.settings import PeerSettings


def lazy_map(path: Path) -> LazyMap:
    """Chunks 2, 3 and 7 of a rootfs of ten, given in any order."""
    write_map(path / "lazy.map", np.array([7, 2, 3]), np.array([1, 0, 0]), np.array([5, 0, 1]))
    return LazyMap.read(path / "lazy.map", size=10 * CHUNK, layers=2)


def test_a_map_finds_rows_by_bytes_and_by_layer(tmp_path: Path) -> None:
    """Ascending by the rootfs' chunks; bytes without a row have none."""
    found = lazy_map(tmp_path)
    assert found.chunk_of == [2, 3, 7]
    assert found.rows_in(0, 2 * CHUNK) == []
    assert found.rows_in(0, 2 * CHUNK + 1) == [0]
    assert found.rows_in(3 * CHUNK - 1, 8 * CHUNK) == [0, 1, 2]
    assert found.rows_in(7 * CHUNK, 7 * CHUNK) == [2]  # nothing, there
    assert found.by_layer(0) == {0: 0, 1: 1}
    assert found.by_layer(1) == {5: 2}


@pytest.mark.parametrize(
    ("chunks", "layers"),
    [([2, 2, 3], [0, 0, 0]), ([2, 3, 10], [0, 0, 0]), ([2, 3, 4], [0, 0, 2])],
    ids=["twice", "beyond the rootfs", "of no layer"],
)
def test_a_map_that_does_not_fit_is_refused(tmp_path: Path, chunks: list[int], layers: list[int]) -> None:
    """Before anything is filled by it."""
    write_map(tmp_path / "lazy.map", np.array(chunks), np.array(layers), np.zeros(3, np.int64))
    with pytest.raises(Invalid):
        LazyMap.read(tmp_path / "lazy.map", size=10 * CHUNK, layers=2)


def test_states_go_one_way(tmp_path: Path) -> None:
    """Absent, filling, present; what is filling or present is not filled; what failed is absent again."""
    write_state(tmp_path / "lazy.state", 3, [1])
    states = ChunkStates(tmp_path / "lazy.state", lazy_map(tmp_path))
    assert states.absent() == [0, 2]
    assert not states.begin(1)
    assert states.begin(0)
    assert not states.begin(0)
    states.abandon(0)
    assert states.begin(0)
    assert not states.available(2 * CHUNK, 2 * CHUNK + 1)  # filling is not there yet
    states.finish(0)
    assert states.available(0, 7 * CHUNK)
    assert not states.available(0, 7 * CHUNK + 1)
    assert not states.available(7 * CHUNK, 7 * CHUNK)
    assert (states.present, states.complete) == (2, False)
    states.begin(2)
    states.finish(2)
    assert states.complete
    states.close()
    assert (tmp_path / "lazy.state").read_bytes() == bytes([PRESENT] * 3)


def test_a_watched_row_tells_of_its_first_use(tmp_path: Path) -> None:
    """Once, when it is there; it is there for everybody meanwhile."""
    write_state(tmp_path / "lazy.state", 3)
    states = ChunkStates(tmp_path / "lazy.state", lazy_map(tmp_path))
    states.watch(1)
    for row in range(3):
        assert states.used(0, 10 * CHUNK) == []
        assert states.begin(row)
        states.finish(row)
        if row == 0:
            assert states.used(0, 10 * CHUNK) == []
        if row == 1:
            assert states.available(0, 7 * CHUNK)
            assert states.used(2 * CHUNK, 3 * CHUNK) == []
            assert states.used(3 * CHUNK + 1, 3 * CHUNK + 1) == [1]
    assert states.complete
    assert not any(states.holes)
    states.close()


def test_what_a_predecessor_left_filling_is_absent(tmp_path: Path) -> None:
    """No guest was let in, so it may be filled anew."""
    lazy = lazy_map(tmp_path)
    (tmp_path / "lazy.state").write_bytes(bytes([FILLING, PRESENT, ABSENT]))
    states = ChunkStates(tmp_path / "lazy.state", lazy)
    assert states.absent() == [0, 2]
    states.close()


def test_states_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Missing, of another length, of a state that there is none of."""
    lazy = lazy_map(tmp_path)
    with pytest.raises(NotFound):
        ChunkStates(tmp_path / "lazy.state", lazy)
    for content in (b"\0\0", b"\0\0\3"):
        (tmp_path / "lazy.state").write_bytes(content)
        with pytest.raises(Invalid):
            ChunkStates(tmp_path / "lazy.state", lazy)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Other versions and unknown fields are refused."""
    record = LazyRecord(
        image="sha256:1",
        repository="localhost:5000/app",
        artifact="sha256:2",
        layers=(LazyLayer(diff_id="sha256:3", pack="sha256:4"),),
        size=1 << 30,
        front=FrontKind.FUSE,
    )
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    text = (tmp_path / RECORD).read_text()
    for broken in (text.replace('"version":1', '"version":2'), text.replace("{", '{"new":1,', 1), text[:-1]):
        (tmp_path / RECORD).write_text(broken)
        with pytest.raises(Invalid):
            read_record(tmp_path)
    with pytest.raises(NotFound):
        read_record(tmp_path / "none")


def pace_of(round_trip: float, rate: float) -> Pace:
    """After requests of one and of eight chunks over such a link."""
    pace = Pace()
    for chunks in (1, 8, 1, 8, 2, 1):
        size = chunks * 70_000
        pace.took(size, chunks, round_trip + size / rate)
    return pace


def test_reading_ahead_pays_where_the_round_trip_costs() -> None:
    """By what the link could carry meanwhile: none on a near registry, a few on a far one, at most what is allowed."""
    assert Pace().ahead(8) == 0
    assert pace_of(0.0, 25e6).ahead(8) == 0
    assert pace_of(0.010, 25e6).ahead(8) in (2, 3)
    assert pace_of(0.050, 25e6).ahead(4) == 4
    assert pace_of(0.050, 25e6).ahead(0) == 0


def test_pace_tells_round_trip_and_rate_apart() -> None:
    """Within a tenth, over a link that is always the same."""
    assert pace_of(0.010, 25e6).round_trip == pytest.approx(0.010, rel=0.1)
    assert pace_of(0.010, 25e6).rate == pytest.approx(25e6, rel=0.35)


class NoReader:
    """Is never asked."""

    def fetch(self, index: LayerIndex, numbers: Sequence[int]) -> AsyncGenerator[tuple[int, bytes], None]:
        raise AssertionError

    async def close(self) -> None:
        raise AssertionError


def test_an_origin_that_fails_is_left_alone_longer_each_time() -> None:
    """Requests that were under way together count once; one that works makes it as good as new. Told once each way."""
    told: list[str] = []
    origin = Origin("registry r", NoReader(), lambda origin, line: told.append(line))
    origin.failed(Unavailable("down"), time.monotonic())
    first = origin.retry_at - time.monotonic()
    origin.failed(Unavailable("down"), time.monotonic())  # it was asked before it may be: of the same time
    assert origin.retry_at - time.monotonic() <= first
    for _ in range(8):
        origin.failed(Unavailable("down"), origin.retry_at)
    later = origin.retry_at - time.monotonic()
    assert 2.0 < later <= 5.0
    assert origin.failing
    origin.worked()
    assert origin.retry_at == 0.0
    assert origin.failing == ""
    assert told == ["registry r fails: down", "registry r is back"]


def test_a_record_keeps_its_peers(tmp_path: Path) -> None:
    """Also the paths of certificates, which JSON has no word for."""
    peers = PeerSettings(urls=("https://10.0.0.1:4290",), certificate=tmp_path / "a.pem", key=tmp_path / "a.key")
    record = LazyRecord(
        image="sha256:" + "0" * 64,
        repository="localhost:5000/app",
        artifact="sha256:" + "1" * 64,
        layers=(),
        size=1 << 20,
        front=FrontKind.FUSE,
        peers=peers,
    )
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
