"""Artifact manifests and signatures: what was written is read again, and nothing else is believed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import MINE, STRANGER, artifact_of, as_image, built, referrer, signature_of, trusting
from castoff.artifact.artifact import ArtifactLayer, Blob
from castoff.artifact.candidates import Candidate, read_artifact, sort_signatures
from castoff.artifact.manifest import MAX_INDEX, MAX_PACK, ArtifactManifest, Subject, encode_manifest, parse_manifest
from castoff.artifact.signature import read_signature, sign
from castoff.errors import CastoffError, Invalid
from castoff.image.digest import Digest
from castoff.image.media import OCI_MANIFEST
from castoff.image.referrers import Referrer

DIGESTS = st.binary(min_size=32, max_size=32).map(lambda raw: Digest(raw.hex()))
LAYERS = st.builds(
    ArtifactLayer,
    diff_id=DIGESTS,
    index=st.builds(Blob, DIGESTS, st.integers(1, MAX_INDEX)),
    pack=st.builds(Blob, DIGESTS, st.integers(1, MAX_PACK)),
)
MANIFESTS = st.builds(
    ArtifactManifest,
    subject=st.builds(Subject, st.just(OCI_MANIFEST), DIGESTS, st.integers(0, 1 << 40)),
    layers=st.lists(LAYERS, max_size=6, unique_by=lambda layer: layer.diff_id).map(tuple),
    compressor=st.text(max_size=20),
)
IMAGE = built("one", "two", "three")
ARTIFACT = artifact_of(IMAGE)
SIGNATURE = signature_of(IMAGE, ARTIFACT)


@given(MANIFESTS)
def test_a_manifest_is_read_as_it_was_written(manifest: ArtifactManifest) -> None:
    """Value, bytes, value; the bytes follow from the value."""
    data = encode_manifest(manifest)
    assert parse_manifest("it", data) == manifest
    assert encode_manifest(parse_manifest("it", data)) == data


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@given(st.data())
def test_a_manifest_with_any_part_replaced_is_refused_or_harmless(data: st.DataObject) -> None:
    """Whatever stands in the place of one of its values: an error of ours, or a manifest with bounded, well-formed values."""
    document = json.loads(ARTIFACT.data)
    path = data.draw(st.sampled_from(_paths(document)))
    _replace(document, path, data.draw(JSON))
    try:
        manifest = parse_manifest("it", json.dumps(document).encode())
    except CastoffError:
        return
    for layer in manifest.layers:
        assert 0 < layer.index.size <= MAX_INDEX and 0 < layer.pack.size <= MAX_PACK
        assert all(len(digest.hex) == 64 for digest in (layer.diff_id, layer.index.digest, layer.pack.digest))
    assert len({layer.diff_id for layer in manifest.layers}) == len(manifest.layers)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_rubbish_is_refused(data: bytes) -> None:
    """With an error of ours."""
    with pytest.raises(CastoffError):
        parse_manifest("it", data)


@given(st.integers(0, 8 * len(ARTIFACT.data) - 1))
def test_any_bit_changed_in_a_signed_manifest_is_refused(bit: int) -> None:
    """Its digest is what was signed."""
    changed = bytearray(ARTIFACT.data)
    changed[bit // 8] ^= 1 << bit % 8
    candidate = Candidate(Digest.parse(ARTIFACT.digest), MINE.public)
    with pytest.raises(CastoffError, match="should be"):
        read_artifact(bytes(changed), candidate, as_image(IMAGE), "here")


@given(st.sampled_from(sorted(referrer(SIGNATURE)["annotations"])), st.integers(0, 8 * 71 - 1))
def test_any_bit_changed_in_a_signature_makes_it_worthless(name: str, bit: int) -> None:
    """In its key, in the digests that it is for, in its value: no candidate, and not more than a line."""
    annotations = dict(referrer(SIGNATURE)["annotations"])
    text = bytearray(annotations[name].encode())
    text[bit // 8 % len(text)] ^= 1 << bit % 8
    annotations[name] = text.decode("latin-1")
    row = Referrer(Digest.parse(SIGNATURE.digest), 1, OCI_MANIFEST, "application/vnd.castoff.signature.v1", annotations)
    found = sort_signatures([row], as_image(IMAGE), trusting(MINE), "here")
    assert found.candidates == ()
    assert len(found.wrong) + len(found.strange) == 1


@given(DIGESTS, DIGESTS, DIGESTS)
def test_a_signature_holds_for_its_image_and_its_artifact_alone(image: Digest, artifact: Digest, other: Digest) -> None:
    """Not for another of either, not the other way round, not for another key."""
    signature = sign(MINE, image=image, artifact=artifact)
    assert signature.holds()
    assert read_signature(signature.annotations()) == signature
    for wrong in (
        replace(signature, image=other),
        replace(signature, artifact=other),
        replace(signature, image=artifact, artifact=image),
        replace(signature, key=STRANGER.public),
    ):
        assert wrong == signature or not wrong.holds()


@given(st.dictionaries(st.sampled_from(sorted(referrer(SIGNATURE)["annotations"])), st.text(max_size=100)))
def test_annotations_that_are_none_are_refused(annotations: dict[str, str]) -> None:
    """With an error of ours."""
    with pytest.raises(Invalid):
        read_signature(annotations)


def _paths(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, part in inner for path in [(*before, key), *_paths(part, (*before, key))]]


def _replace(document: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value
