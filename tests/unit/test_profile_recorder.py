"""Recording: what is read until READY, in order of first use, merged into the store's profile of the image."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from castoff.errors import Invalid, Unavailable
from castoff.hydrate import profile_file
from castoff.hydrate.map import ROW, LazyMap
from castoff.hydrate.profile import BOOTS, MAX_CHUNKS, Boot, ChunkId, Profile
from castoff.hydrate.profile_file import LIMIT, decode_profile, encode_profile, profile_path, read_profile, update_profile
from castoff.hydrate.recorder import ProfileRecorder
from castoff.image.digest import Digest
from castoff.layers.toc import CHUNK

IMAGE = Digest("f" * 64)
LAYERS = [Digest("a" * 64), Digest("b" * 64)]
ROWS = [(2, 0, 0), (3, 0, 1), (4, 0, 5), (6, 1, 0), (7, 1, 3)]
"""Chunk of the rootfs, layer, chunk of the layer; 0, 1 and 5 are metadata."""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store's directory, as far as profiles need one."""
    (tmp_path / "locks").mkdir()
    return tmp_path


def recorder(store: Path) -> ProfileRecorder:
    """Of a machine with ROWS."""
    rows = np.array([(at, layer, 0, chunk) for at, layer, chunk in ROWS], dtype=ROW)
    return ProfileRecorder(store, IMAGE, LazyMap(rows, size=8 * CHUNK, layers=2), LAYERS)


def chunk(layer: int, number: int) -> ChunkId:
    """Short for tests."""
    return ChunkId(LAYERS[layer], number)


async def test_records_first_uses_in_order(store: Path) -> None:
    """Metadata does not count, nor a second use; a range counts with each chunk that it touches."""
    one = recorder(store)
    one.access(0, 2 * CHUNK, 1.0, False)
    one.access(7 * CHUNK + 4096, 7 * CHUNK + 8192, 2.0, True)
    one.access(3 * CHUNK - 1, 3 * CHUNK + 1, 3.0, True)
    one.access(7 * CHUNK, 8 * CHUNK, 4.0, False)
    found = await one.ready(5.0)
    assert found is not None
    assert found.chunks == (chunk(1, 3), chunk(0, 0), chunk(0, 1))
    assert read_profile(store, IMAGE) == found


async def test_what_is_read_after_ready_does_not_count(store: Path) -> None:
    """READY is told a little late, with the moment when it was."""
    one = recorder(store)
    one.access(2 * CHUNK, 2 * CHUNK + 1, 1.0, True)
    one.access(6 * CHUNK, 6 * CHUNK + 1, 3.0, True)
    found = await one.ready(2.0)
    one.access(4 * CHUNK, 4 * CHUNK + 1, 1.5, True)
    assert found is not None
    assert found.chunks == (chunk(0, 0),)
    assert await one.ready(9.0) == found, "a second READY changes nothing"
    assert read_profile(store, IMAGE) == found


async def test_an_access_past_the_end_is_bounded(store: Path) -> None:
    """A guest may ask for more than there is."""
    one = recorder(store)
    one.access(7 * CHUNK, 1 << 62, 1.0, True)
    assert one.trace(2.0) == (chunk(1, 3),)


async def test_threads_may_note_at_once(store: Path) -> None:
    """Each chunk stands once in the trace, however many threads read it."""
    one = recorder(store)

    def read() -> None:
        for at in range(8):
            one.access(at * CHUNK, at * CHUNK + 1, float(at), False)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.trace(9.0) == tuple(chunk(layer, number) for _, layer, number in ROWS)


async def test_boots_are_merged(store: Path) -> None:
    """The second boot's trace joins the first's; the oldest goes when there are too many."""
    for number in range(BOOTS + 2):
        one = recorder(store)
        one.access(2 * CHUNK, 2 * CHUNK + 1, 1.0, True)
        if number % 4 == 0:  # under half of any eight: of boots of the same instant, no order says which is older
            one.access(6 * CHUNK, 6 * CHUNK + 1, 2.0, True)
        found = await one.ready(3.0)
        assert found is not None
        assert len(found.boots) == min(number + 1, BOOTS)
    assert found is not None
    assert found.chunks == (chunk(0, 0),), "the other was used by a few of the boots"


async def test_machines_may_be_ready_at_once(store: Path) -> None:
    """No boot is lost."""
    boots = [recorder(store) for _ in range(6)]
    for one in boots:
        one.access(2 * CHUNK, 2 * CHUNK + 1, 1.0, True)
    await asyncio.gather(*(one.ready(2.0) for one in boots))
    found = read_profile(store, IMAGE)
    assert found is not None
    assert len(found.boots) == 6
    assert not [entry for entry in (store / "profiles").iterdir() if entry.suffix != ".json"]


async def test_a_cut_trace_makes_way(store: Path) -> None:
    """It is the profile only as long as there is none."""
    cut = recorder(store)
    cut.access(2 * CHUNK, 2 * CHUNK + 1, 1.0, True)
    cut.cut()
    first = await cut.ready(2.0)
    assert first is not None
    again = recorder(store)
    again.access(3 * CHUNK, 3 * CHUNK + 1, 1.0, True)
    again.cut()
    assert await again.ready(2.0) == first


async def test_a_boot_that_read_nothing_makes_no_profile(store: Path) -> None:
    """And leaves no file."""
    assert await recorder(store).ready(1.0) is None
    assert not profile_path(store, IMAGE).exists()


async def test_a_broken_profile_is_recorded_anew(store: Path) -> None:
    """Reading it is an error that names the file; the next boot replaces it."""
    path = profile_path(store, IMAGE)
    path.parent.mkdir()
    path.write_bytes(b"{")
    with pytest.raises(Invalid, match="profiles/ffff"):
        read_profile(store, IMAGE)
    one = recorder(store)
    one.access(2 * CHUNK, 2 * CHUNK + 1, 1.0, True)
    assert await one.ready(2.0) == read_profile(store, IMAGE)


async def test_a_failed_write_leaves_the_old_profile(store: Path) -> None:
    """Whole or not at all."""
    one = recorder(store)
    one.access(2 * CHUNK, 2 * CHUNK + 1, 1.0, True)
    first = await one.ready(2.0)
    path = profile_path(store, IMAGE)
    path.parent.rename(store / "aside")
    (store / "profiles").write_text("in the way")
    other = recorder(store)
    other.access(3 * CHUNK, 3 * CHUNK + 1, 1.0, True)
    with pytest.raises(Unavailable):
        await other.ready(2.0)
    assert decode_profile((store / "aside" / path.name).read_bytes(), IMAGE) == first


async def test_profiles_are_bounded_in_number(store: Path) -> None:
    """The longest untouched goes when a new one comes over the count."""
    directory = store / "profiles"
    directory.mkdir()
    for number in range(profile_file.KEPT):
        (directory / f"{number:064x}.json").touch()
    boot = Boot(1, "0" * 16, (chunk(0, 0),))
    await update_profile(store, IMAGE, lambda before: Profile.of(IMAGE, [boot]))
    assert len(list(directory.iterdir())) == profile_file.KEPT
    assert profile_path(store, IMAGE).exists()


def test_the_largest_profile_fits_its_limit() -> None:
    """Boots of scattered chunks are large: the oldest are left out of the file then, never the newest."""
    boots = [Boot(at, f"{at:016x}", tuple(chunk(0, 2 * number) for number in range(MAX_CHUNKS))) for at in range(BOOTS)]
    data = encode_profile(Profile.of(IMAGE, boots))
    assert len(data) <= LIMIT
    found = decode_profile(data, IMAGE)
    assert found.boots == tuple(boots[-len(found.boots) :])


@pytest.mark.parametrize("change", [b'"version":2', b'"image":"sha256:' + b"0" * 64 + b'"', b'"chunk_size":4096'])
def test_other_files_are_refused(change: bytes) -> None:
    """Another version's, another image's, another chunk size's: each with the reason."""
    data = encode_profile(Profile.of(IMAGE, [Boot(1, "0" * 16, (chunk(0, 0),))]))
    key, _, _ = change.partition(b":")
    start = data.index(key)
    end = data.index(b",", start)
    with pytest.raises(Invalid, match=r"version 2|stands where"):
        decode_profile(data[:start] + change + data[end:], IMAGE)


def test_a_chunk_twice_in_a_boot_is_refused() -> None:
    """Runs may not overlap."""
    data = encode_profile(Profile.of(IMAGE, [Boot(1, "0" * 16, (chunk(0, 0), chunk(0, 1)))]))
    with pytest.raises(Invalid, match="twice"):
        decode_profile(data.replace(b"[[0,0,2]]", b"[[0,0,2],[0,1,1]]"), IMAGE)
    with pytest.raises(Invalid, match="cannot be"):
        decode_profile(data.replace(b"[[0,0,2]]", b"[[0,0,65537]]"), IMAGE)
    with pytest.raises(Invalid, match="cannot be"):
        decode_profile(data.replace(b"[[0,0,2]]", b"[[1,0,2]]"), IMAGE)
