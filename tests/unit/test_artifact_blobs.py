"""What a host remembers of blobs that it published, the tag of a pinned index, and directories for a moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from castoff.artifact.artifact import ArtifactLayer, Blob
from castoff.artifact.blobs import KnownBlobs, read_known, write_known
from castoff.artifact.pin import tag_of
from castoff.errors import Invalid
from castoff.image.digest import Digest
from castoff.image.reference import RegistryReference, parse_reference
from castoff.store.builds import sweep
from castoff.store.scratch import scratch

LAYER = ArtifactLayer(Digest.of(b"layer"), Blob(Digest.of(b"index"), 5), Blob(Digest.of(b"pack"), 4))
KNOWN = KnownBlobs(LAYER, "zstd 1.2.3 level 3")


def test_what_was_published_is_remembered(tmp_path: Path) -> None:
    """Where too, the latest first; only the repositories of a registry can be mounted from."""
    known = KNOWN.at("one.example/a").at("two.example:5000/b/c").at("one.example/d").at("one.example/a")
    write_known(tmp_path, known)
    assert read_known(tmp_path, LAYER.diff_id, KNOWN.compressor) == known
    assert known.repositories == ("one.example/a", "one.example/d", "two.example:5000/b/c")
    assert known.beside("one.example") == ["a", "d"] and known.beside("two.example:5000") == ["b/c"]
    for number in range(100):
        known = known.at(f"three.example/{number}")
    assert len(known.repositories) == 32 and known.repositories[0] == "three.example/99"


def test_a_memory_that_is_of_no_use_is_none(tmp_path: Path) -> None:
    """None there, another compressor's, a broken file, one of another version."""
    assert read_known(tmp_path, LAYER.diff_id, KNOWN.compressor) is None
    write_known(tmp_path, KNOWN)
    assert read_known(tmp_path, LAYER.diff_id, "zstd 1.2.4 level 3") is None
    path = tmp_path / "published" / LAYER.diff_id.hex
    good = path.read_bytes()
    for data in (b"", b"{", good.replace(b"sha256", b"sha512"), good.replace(b'"version":1', b'"version":2'), b"[]" * 100_000):
        path.write_bytes(data)
        assert read_known(tmp_path, LAYER.diff_id, KNOWN.compressor) is None


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("h.example/app:v1", "v1-castoff"),
        ("h.example/app", "latest-castoff"),
        (f"h.example/app@sha256:{'ab' * 32}", f"sha256-{'ab' * 8}-castoff"),
        (f"h.example/app:v2@sha256:{'ab' * 32}", "v2-castoff"),
    ],
)
def test_the_tag_of_a_pinned_index(text: str, tag: str) -> None:
    """The image's, with a suffix; of a digest alone, its beginning."""
    reference = parse_reference(text)
    assert isinstance(reference, RegistryReference)
    assert tag_of(reference) == tag


def test_a_tag_without_room_for_the_suffix_is_refused() -> None:
    """Registries take 128 characters."""
    assert len(tag_of(RegistryReference("h", "app", "x" * 120))) == 128
    with pytest.raises(Invalid, match="no room"):
        tag_of(RegistryReference("h", "app", "x" * 121))


async def test_a_scratch_directory_stays_while_it_is_used(tmp_path: Path) -> None:
    """The store's sweep leaves it alone; it goes with the block, however that ends; what a dead process left is swept."""
    for name in ("locks", "tmp"):
        (tmp_path / name).mkdir()
    async with scratch(tmp_path) as directory:
        (directory / "pack").write_bytes(b"pack")
        assert sweep(tmp_path) == []
        assert (directory / "pack").exists()
    assert list((tmp_path / "tmp").iterdir()) == list((tmp_path / "locks").iterdir()) == []
    with pytest.raises(asyncio.CancelledError):
        async with scratch(tmp_path):
            raise asyncio.CancelledError
    assert list((tmp_path / "tmp").iterdir()) == []
    dead = tmp_path / "tmp" / "scratch-0123456789abcdef.01234567"
    dead.mkdir()
    assert sweep(tmp_path) == [dead]
