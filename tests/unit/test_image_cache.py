"""The cache of documents, and the verifier."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from castoff.errors import DigestMismatch, Invalid, Unavailable
from castoff.image.cache import DocumentCache
from castoff.image.digest import Digest
from castoff.image.verify import Verifier


def test_documents_come_back_and_corrupt_ones_do_not(tmp_path: Path) -> None:
    """What does not hash to its name is dropped."""
    cache = DocumentCache(tmp_path / "cache", 1 << 20)
    digest = Digest.of(b"hello")
    assert cache.get(digest) is None
    cache.put(digest, b"hello")
    path = tmp_path / "cache" / "sha256" / digest.hex
    assert cache.get(digest) == path.read_bytes() == b"hello"
    path.write_bytes(b"hellp")
    assert cache.get(digest) is None
    assert not path.exists()


def test_the_least_recently_used_documents_go(tmp_path: Path) -> None:
    """Over the limit; what was read lately stays. Nothing else is left behind."""
    cache = DocumentCache(tmp_path, 250)
    documents = [bytes([number]) * 100 for number in range(3)]
    for age, data in zip((300, 200), documents, strict=False):
        cache.put(Digest.of(data), data)
        os.utime(tmp_path / "sha256" / Digest.of(data).hex, (1_000_000 - age, 1_000_000 - age))
    assert cache.get(Digest.of(documents[0])) is not None
    cache.put(Digest.of(documents[2]), documents[2])
    assert [cache.get(Digest.of(data)) is not None for data in documents] == [True, False, True]
    assert len(list((tmp_path / "sha256").iterdir())) == 2


def test_a_tag_is_remembered_and_nonsense_is_not(tmp_path: Path) -> None:
    """By the whole name; a broken note is none."""
    cache = DocumentCache(tmp_path, 1000)
    digest = Digest.of(b"x")
    assert cache.last_seen("docker.io/library/alpine:3") is None
    cache.saw("docker.io/library/alpine:3", digest)
    assert cache.last_seen("docker.io/library/alpine:3") == digest
    assert cache.last_seen("docker.io/library/alpine:4") is None
    next((tmp_path / "tags").iterdir()).write_bytes(b"\xff")
    assert cache.last_seen("docker.io/library/alpine:3") is None


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """Names the path."""
    (tmp_path / "sha256").write_text("a file where a directory should be")
    with pytest.raises(Unavailable, match="sha256"):
        DocumentCache(tmp_path, 1000).put(Digest.of(b"x"), b"x")


def test_a_verifier_takes_what_it_should() -> None:
    """Bytes, bytearrays and views."""
    verifier = Verifier("blob", Digest.of(b"abcd"), 4)
    for piece in (b"a", bytearray(b"b"), memoryview(b"cd")):
        verifier.update(piece)
    verifier.finish()
    assert verifier.seen == 4


def test_a_verifier_refuses_the_rest() -> None:
    """Too long at once, too short and wrong at the end."""
    verifier = Verifier("blob", Digest.of(b"abcd"), 4)
    with pytest.raises(Invalid, match="blob is longer than the 4 bytes"):
        verifier.update(b"abcde")
    verifier = Verifier("blob", Digest.of(b"abcd"), 4)
    verifier.update(b"abc")
    with pytest.raises(Invalid, match="ended after 3 of the 4"):
        verifier.finish()
    verifier.update(b"x")
    with pytest.raises(DigestMismatch) as caught:
        verifier.finish()
    assert caught.value.expected == str(Digest.of(b"abcd"))
    assert caught.value.actual == str(Digest.of(b"abcx"))
