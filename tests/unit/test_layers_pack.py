"""Packs and published indexes: the same bytes each time, read by range, believed only when they were checked."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import zstandard

from castoff.errors import DigestMismatch, Invalid, LimitExceeded, NotFound, Unavailable
from castoff.image.digest import Digest
from castoff.layers.convert import convert
from castoff.layers.index import LayerIndex, LocationKind
from castoff.layers.pack import HEAD, Pack, check_locations, chunk_size, pack_chunks, unpack_chunk, verify_chunk
from castoff.layers.packing import write_pack
from castoff.layers.pipeline import Stopped
from castoff.layers.published import publish_index, read_published
from castoff.layers.settings import Limits
from castoff.layers.toc import CHUNK
from layer_reader import convert_bytes, layer_of, pieces
from oci_builder import LayerTar


def layer_tar() -> bytes:
    """Chunks of text, noise and zeros, a short last one."""
    rng = random.Random(4)
    layer = LayerTar().file("noise", rng.randbytes(5 * CHUNK)).file("zeros", bytes(3 * CHUNK))
    return layer.file("text", b"all work and no play\n" * 60_000).file("last", b"x" * 5000).bytes()


@pytest.fixture
async def index(tmp_path: Path) -> LayerIndex:
    """A converted layer in ``tmp_path/layer``."""
    return await convert_bytes(tmp_path / "layer", layer_tar())


@pytest.fixture
def pack(index: LayerIndex, tmp_path: Path) -> Pack:
    """Its pack, in ``tmp_path/pack``."""
    return write_pack(tmp_path / "layer" / "segment", index, tmp_path / "pack")


def test_a_pack_holds_every_chunk_but_those_of_zeros(index: LayerIndex, pack: Pack, tmp_path: Path) -> None:
    """Each frame is found by the index' locations, in the order of the segment, without gaps."""
    data, segment = (tmp_path / "pack").read_bytes(), (tmp_path / "layer" / "segment").read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (pack.size, pack.digest.hex)
    assert data.startswith(HEAD)
    at = len(HEAD)
    where = pack.locations
    assert index.zero.sum() == 3 and where.blobs == (pack.digest,)
    for number in range(len(index.digests)):
        start, length = int(where.offset[number]), int(where.length[number])
        if index.zero[number]:
            assert (where.kind[number], start, length) == (LocationKind.LOCAL, 0, 0)
            continue
        assert (where.kind[number], start) == (LocationKind.PACK, at)
        chunk = unpack_chunk(data[start : start + length], chunk_size(index, number))
        assert chunk == segment[number * CHUNK : (number + 1) * CHUNK]
        verify_chunk(index, number, chunk)
        at += length
    assert at == len(data)
    check_locations(dataclasses.replace(index, locations=where), pack.digest, pack.size)


def test_a_pack_is_the_same_whatever_the_threads(index: LayerIndex, pack: Pack, tmp_path: Path) -> None:
    """Twice, with one thread and with five: the same bytes."""
    for threads in (1, 5):
        again = write_pack(tmp_path / "layer" / "segment", index, tmp_path / f"again{threads}", threads=threads)
        assert (again.digest, again.size) == (pack.digest, pack.size)
        assert (tmp_path / f"again{threads}").read_bytes() == (tmp_path / "pack").read_bytes()


def test_any_zstd_decoder_reads_a_pack(index: LayerIndex, pack: Pack, tmp_path: Path) -> None:
    """Its first frame is skipped; what comes out is the segment without its chunks of zeros."""
    plain = zstandard.ZstdDecompressor().stream_reader((tmp_path / "pack").read_bytes(), read_across_frames=True).read()
    segment = (tmp_path / "layer" / "segment").read_bytes()
    assert plain == b"".join(segment[n * CHUNK : (n + 1) * CHUNK] for n in np.flatnonzero(~index.zero))


async def test_a_layer_without_contents_has_a_pack_too(tmp_path: Path) -> None:
    """Of the head alone: not every registry takes a blob of no bytes."""
    index = await convert_bytes(tmp_path / "layer", LayerTar().directory("etc").bytes())
    pack = write_pack(tmp_path / "layer" / "segment", index, tmp_path / "pack")
    assert ((tmp_path / "pack").read_bytes(), pack.locations.blobs) == (HEAD, ())
    check_locations(dataclasses.replace(index, locations=pack.locations), pack.digest, pack.size)


def test_a_damaged_segment_is_not_packed(index: LayerIndex, tmp_path: Path) -> None:
    """One flipped bit, a segment cut short, none at all."""
    segment = tmp_path / "layer" / "segment"
    data = bytearray(segment.read_bytes())
    data[CHUNK + 7] ^= 1
    segment.write_bytes(data)
    with pytest.raises(DigestMismatch, match="chunk 1 of layer"):
        write_pack(segment, index, tmp_path / "one")
    data[CHUNK + 7] ^= 1
    segment.write_bytes(data[:-4096])
    with pytest.raises(DigestMismatch, match=f"chunk {len(index.digests) - 1} of layer"):
        write_pack(segment, index, tmp_path / "two")
    segment.unlink()
    with pytest.raises(NotFound):
        write_pack(segment, index, tmp_path / "three")


def test_packing_tells_its_progress_and_stops(index: LayerIndex, tmp_path: Path) -> None:
    """Every byte of the segment is counted once; a stop leaves a file that its owner removes."""
    counts: list[int] = []
    write_pack(tmp_path / "layer" / "segment", index, tmp_path / "pack", advance=counts.append)
    assert sum(counts) == index.segment_size
    with pytest.raises(Stopped):
        write_pack(tmp_path / "layer" / "segment", index, tmp_path / "other", stopped=lambda: True)


def test_frames_from_anywhere_are_bounded() -> None:
    """A frame of another size, one that tells none, one with something behind it, no frame."""
    frame, bomb = pack_chunks([b"a" * CHUNK, bytes(1 << 26)])
    assert unpack_chunk(frame, CHUNK) == b"a" * CHUNK
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(b"a" * CHUNK)
    for bad in (bomb, silent, frame + b"\0", frame[:-1], frame[:3], b"", HEAD, b"a" * 100):
        with pytest.raises(Invalid):
            unpack_chunk(bad, CHUNK)


def test_a_published_index_is_read_with_its_locations(index: LayerIndex, pack: Pack) -> None:
    """The same index, now with the chunks' places; the same bytes each time."""
    published = dataclasses.replace(index, locations=pack.locations)
    data = publish_index(published)
    assert data == publish_index(published)
    found = read_published(data)
    assert np.array_equal(found.digests, index.digests) and np.array_equal(found.zero, index.zero)
    for name in ("kind", "blob", "offset", "length"):
        assert np.array_equal(getattr(found.locations, name), getattr(pack.locations, name)), name
    check_locations(found, pack.digest, pack.size)


def test_locations_outside_of_the_pack_are_refused(index: LayerIndex, pack: Pack) -> None:
    """Another pack, a shorter one, a chunk that is nowhere, one of zeros that is somewhere, one in the pack's head."""
    where = pack.locations
    good = dataclasses.replace(index, locations=where)
    for digest, size in ((Digest.of(b"other"), pack.size), (pack.digest, pack.size - 1)):
        with pytest.raises(Invalid):
            check_locations(good, digest, size)
    zero = int(np.flatnonzero(index.zero)[0])
    for name, at, value in (("kind", 0, 0), ("kind", zero, 1), ("offset", 0, 3), ("length", 0, 0)):
        column = getattr(where, name).copy()
        column[at] = value
        with pytest.raises(Invalid):
            check_locations(
                dataclasses.replace(index, locations=dataclasses.replace(where, **{name: column})), pack.digest, pack.size
            )


def test_a_published_index_is_bounded(index: LayerIndex, pack: Pack) -> None:
    """What would unpack to more than any layer's index, and what is broken, is refused before memory is taken."""
    data = publish_index(dataclasses.replace(index, locations=pack.locations))
    with pytest.raises(LimitExceeded, match="published layer index"):
        read_published(data, Limits(max_entries=1, max_strings=1, max_layer_size=CHUNK))
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 29))
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(zstandard.decompress(data))
    for bad in (bomb, silent, data + b"\0", data[:-1], b"", zstandard.compress(b"no index")):
        with pytest.raises(Invalid):
            read_published(bad)


async def test_size_of_a_typical_published_index(tmp_path: Path) -> None:
    """At most 60 bytes an entry and 48 a chunk, and at most half of that as it is published."""
    rng = random.Random(1)
    layer = LayerTar()
    words = ["core", "test", "utils", "init", "linalg", "config", "array", "io", "random", "sparse", "string", "typing", "io"]
    for package in range(150):
        parent = f"usr/lib/python3/dist-packages/{rng.choice(words)}{package}"
        layer.directory(parent, mtime=1_700_000_000 + package)
        for number in range(40):
            name = f"{parent}/_{rng.choice(words)}_{rng.choice(words)}{number}.py"
            layer.file(name, rng.randbytes(rng.randrange(1, 20_000)), mtime=1_690_000_000 + rng.randrange(10_000_000))
    index = await convert_bytes(tmp_path / "layer", layer.bytes())
    pack = write_pack(tmp_path / "layer" / "segment", index, tmp_path / "pack")
    data = publish_index(dataclasses.replace(index, locations=pack.locations))
    limit = 60 * len(index.toc) + 48 * len(index.digests)
    assert len(zstandard.decompress(data)) <= limit
    assert len(data) <= limit / 2


async def test_a_pack_made_while_converting_is_the_same(index: LayerIndex, pack: Pack, tmp_path: Path) -> None:
    """In one pass with the segment: the same pack, the same segment, the same index."""
    tar = layer_tar()
    again = tmp_path / "again"
    again.mkdir()
    made = await convert(layer_of(tar, tar), pieces(tar), again, Limits(), pack=tmp_path / "beside")
    assert made is not None and (made.digest, made.size) == (pack.digest, pack.size)
    assert (tmp_path / "beside").read_bytes() == (tmp_path / "pack").read_bytes()
    for name in ("kind", "blob", "offset", "length"):
        assert np.array_equal(getattr(made.locations, name), getattr(pack.locations, name)), name
    for name in ("segment", "index"):
        assert (again / name).read_bytes() == (tmp_path / "layer" / name).read_bytes()


async def test_a_pack_that_cannot_be_written_ends_the_conversion(tmp_path: Path) -> None:
    """As any other file that cannot."""
    tar = layer_tar()
    (tmp_path / "layer").mkdir()
    with pytest.raises(Unavailable, match="no-such-directory"):
        await convert(layer_of(tar, tar), pieces(tar), tmp_path / "layer", Limits(), pack=tmp_path / "no-such-directory" / "p")
