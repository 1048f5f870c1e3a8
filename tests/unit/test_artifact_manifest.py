"""Artifact manifests that are wrong in one way each."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from artifacts import artifact_of, built
from castoff.artifact.artifact import INDEX_TYPE, PACK_TYPE
from castoff.artifact.manifest import DIFF_ID, MAX_INDEX, MAX_PACK, parse_manifest
from castoff.errors import Invalid

Change = Callable[[dict[str, Any]], Any]


def test_the_bytes_are_these() -> None:
    """A published format: what it was, it stays."""
    document = json.loads(artifact_of(built("one", "two")).data)
    assert list(document) == ["annotations", "artifactType", "config", "layers", "mediaType", "schemaVersion", "subject"]
    assert document["artifactType"] == "application/vnd.castoff.rootfs.v1"
    assert [row["mediaType"] for row in document["layers"]] == [INDEX_TYPE, PACK_TYPE] * 2
    assert document["config"] == {
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "mediaType": "application/vnd.oci.empty.v1+json",
        "size": 2,
    }
    assert document["annotations"] == {"vnd.castoff.compressor": "zstd 1.5.7 level 3"}


WRONG: dict[str, tuple[Change, str]] = {
    "another version": (lambda m: m.update(schemaVersion=1), "not a rootfs artifact"),
    "another media type": (lambda m: m.update(mediaType="application/vnd.oci.image.index.v1+json"), "not a rootfs artifact"),
    "another artifact type": (lambda m: m.update(artifactType="application/vnd.castoff.rootfs.v2"), "not a rootfs artifact"),
    "no artifact type": (lambda m: m.pop("artifactType"), "cannot be read"),
    "no subject": (lambda m: m.pop("subject"), "cannot be read"),
    "a subject of sha512": (lambda m: m["subject"].update(digest="sha512:" + "0" * 128), "is not a sha256 digest"),
    "a config": (lambda m: m["config"].update(mediaType="application/vnd.oci.image.config.v1+json"), "has a config"),
    "a pack too few": (lambda m: m["layers"].pop(), "not an index and a pack for each layer"),
    "too many layers": (lambda m: m.update(layers=m["layers"] * 1000), "not an index and a pack for each layer"),
    "the same layer twice": (lambda m: m["layers"].extend(m["layers"][:2]), "a layer twice"),
    "packs before indexes": (lambda m: m["layers"].reverse(), "not the index and the pack of one layer"),
    "packs exchanged": (lambda m: _exchange(m["layers"], 1, 3), "not the index and the pack of one layer"),
    "a row of another type": (lambda m: m["layers"][1].update(mediaType="text/plain"), "not the index and the pack"),
    "no diffID": (lambda m: m["layers"][0].pop("annotations"), "does not say of which layer"),
    "a diffID that is none": (lambda m: m["layers"][1]["annotations"].update({DIFF_ID: "sha256:"}), "does not say of which"),
    "an index of nothing": (lambda m: m["layers"][0].update(size=0), "has 0 bytes"),
    "an index too large": (lambda m: m["layers"][0].update(size=MAX_INDEX + 1), f"has {MAX_INDEX + 1} bytes"),
    "a pack too large": (lambda m: m["layers"][1].update(size=MAX_PACK + 1), f"has {MAX_PACK + 1} bytes"),
    "a negative size": (lambda m: m["layers"][1].update(size=-1), "cannot be read"),
    "a size beyond all": (lambda m: m["layers"][1].update(size=1 << 70), "cannot be read"),
    "a blob of sha512": (lambda m: m["layers"][1].update(digest="sha512:" + "0" * 128), "is not a sha256 digest"),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_manifest_that_is_wrong_in_one_way_is_refused(how: str) -> None:
    """And the error says in which."""
    change, said = WRONG[how]
    document = json.loads(artifact_of(built("one", "two")).data)
    change(document)
    with pytest.raises(Invalid, match=said):
        parse_manifest("the manifest", json.dumps(document).encode())


def test_what_is_unknown_is_passed_over() -> None:
    """Later versions may say more; what was signed is all of it."""
    artifact = artifact_of(built("one"))
    document = json.loads(artifact.data)
    document["annotations"]["org.example"] = "x"
    document["more"] = {"of": "it"}
    assert parse_manifest("it", json.dumps(document).encode()) == parse_manifest("it", artifact.data)


def _exchange(rows: list[Any], first: int, second: int) -> None:
    rows[first], rows[second] = rows[second], rows[first]
