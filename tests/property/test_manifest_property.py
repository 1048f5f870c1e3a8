"""Documents and archives, for any bytes: an image, or one castoff error, soon."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Literal

from hypothesis import given
from hypothesis import strategies as st

from castoff.errors import CastoffError
from castoff.image.challenge import parse_challenges
from castoff.image.config import decode_config
from castoff.image.digest import Digest
from castoff.image.image import Image, Platform
from castoff.image.manifest import decode
from castoff.image.opening import open_source
from castoff.image.reference import parse_reference
from castoff.image.resolve import read_image
from castoff.image.settings import ImageSettings
from castoff.image.url import Url
from oci_builder import DOCKER_CONFIG, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, LayerTar, build_image

AMD64 = Platform("linux", "amd64")
GOOD = build_image([LayerTar().file("a", b"1")], cmd=["/bin/sh"], env=["A=1"])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
WORDS = st.sampled_from(
    [OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX, OCI_CONFIG, DOCKER_CONFIG, OCI_LAYER, f"{OCI_LAYER}+gzip", "", "x"]
)
DIGESTS = st.sampled_from([GOOD.digest, GOOD.config.digest, GOOD.layers[0].digest, "sha256:" + "0" * 64, "sha256:x", ""])
FIELDS = {
    "mediaType": WORDS,
    "digest": DIGESTS,
    "size": st.integers(-2, 1 << 65) | st.sampled_from([len(GOOD.config.data), len(GOOD.manifest.data)]),
    "platform": st.fixed_dictionaries(
        {},
        optional={
            "os": st.sampled_from(["linux", "unknown"]),
            "architecture": st.sampled_from(["amd64", "arm64", "unknown"]),
            "variant": st.text(max_size=3),
        },
    ),
    "annotations": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
    "urls": st.lists(st.text(max_size=10), max_size=2),
}
DESCRIPTOR = st.fixed_dictionaries({}, optional={key: value | JSON for key, value in FIELDS.items()})
DOCUMENT = st.fixed_dictionaries(
    {},
    optional={
        "schemaVersion": st.sampled_from([2, 1, "2"]),
        "mediaType": WORDS,
        "manifests": st.lists(DESCRIPTOR, max_size=4) | JSON,
        "config": DESCRIPTOR | JSON,
        "layers": st.lists(DESCRIPTOR, max_size=4) | JSON,
        "fsLayers": JSON,
    },
)


def resolve(root: bytes) -> Image:
    """Reads a root document among the documents of a good image."""
    documents = {Digest.parse(blob.digest): blob.data for blob in GOOD.blobs()} | {Digest.of(root): root}
    asked: list[Digest] = []

    async def fetch(kind: Literal["manifest", "config"], digest: Digest, size: int | None) -> bytes:
        asked.append(digest)
        assert len(asked) < 2000, "the walk does not end"
        if digest not in documents or size not in (None, len(documents[digest])):
            raise CastoffError("not there")
        return documents[digest]

    return asyncio.run(read_image("x", Digest.of(root), fetch, AMD64))


def check(root: bytes) -> None:
    try:
        image = resolve(root)
    except CastoffError as error:
        assert len(str(error).splitlines()) <= 1
        assert len(str(error)) < 2000
    else:
        check_image(image)


def check_image(image: Image) -> None:
    """What the rest of castoff takes for granted."""
    for text in (*image.config.entrypoint, *image.config.cmd, *image.config.env, image.config.user, image.config.working_dir):
        text.encode()
        assert "\0" not in text
    for layer in image.layers:
        assert 0 <= layer.size < 1 << 63


@given(st.binary(max_size=200) | JSON.map(lambda document: json.dumps(document).encode()))
def test_any_bytes_are_a_document_or_an_error(data: bytes) -> None:
    """Bytes, and JSON of any shape."""
    check(data)
    try:
        config, _, diff_ids = decode_config("config", data, AMD64)
    except CastoffError:
        return
    assert len(diff_ids) <= 1000
    json.dumps(config.env).encode()


@given(DOCUMENT)
def test_documents_of_nearly_the_right_shape(document: dict[str, Any]) -> None:
    """The right fields with wrong, missing and contradicting values."""
    check(json.dumps(document).encode())


@given(st.sampled_from([GOOD.manifest.data, GOOD.config.data]), st.integers(0, 600), st.binary(min_size=1, max_size=4))
def test_good_documents_with_changed_bytes(data: bytes, at: int, change: bytes) -> None:
    """A manifest and a config that were tampered with."""
    at %= len(data)
    changed = data[:at] + change + data[at + len(change) :]
    check(changed)
    try:
        decode("document", changed)
        decode_config("config", changed, AMD64)
    except CastoffError as error:
        assert len(str(error).splitlines()) == 1


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


ARCHIVE = archive(
    {
        "manifest.json": json.dumps([{"Config": "c", "RepoTags": ["a:1"], "Layers": ["l"]}]).encode(),
        "c": GOOD.config.data,
        "l": GOOD.tars[0],
    }
)


@given(
    st.binary(max_size=2000)
    | st.tuples(st.integers(0, len(ARCHIVE) - 1), st.binary(min_size=1, max_size=12)).map(
        lambda change: ARCHIVE[: change[0]] + change[1] + ARCHIVE[change[0] + len(change[1]) :]
    )
    | st.integers(0, len(ARCHIVE)).map(lambda length: ARCHIVE[:length]),
    st.sampled_from(["docker-archive", "oci-archive"]),
)
def test_any_archive_is_an_image_or_an_error(data: bytes, kind: str) -> None:
    """Random bytes, and a good archive that was changed or cut."""

    async def read(path: Path) -> None:
        source = open_source(parse_reference(f"{kind}:{path}"), ImageSettings(), path.parent / "cache")
        try:
            image = await source.resolve(AMD64)
            check_image(image)
            for layer in image.layers:
                async with source.open_blob(layer) as pieces:
                    assert sum([len(piece) async for piece in pieces]) == layer.size
        except CastoffError as error:
            assert len(str(error).splitlines()) == 1
        finally:
            await source.close()

    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        path = Path(directory) / "a.tar"
        path.write_bytes(data)
        asyncio.run(read(path))


@given(st.text(max_size=200) | st.text(alphabet='Bearer realm=",\\ \t=x', max_size=60))
def test_any_header_is_read(text: str) -> None:
    """A challenge is what a hostile server writes."""
    for challenge in parse_challenges([text]):
        assert challenge.scheme == challenge.scheme.lower()


@given(st.text(max_size=60) | st.text(alphabet="htps:/@.[]%?# a0\r\n", max_size=40))
def test_any_url_is_safe_or_refused(text: str) -> None:
    """What is accepted fits in a request's first line and a Host header."""
    for base in (None, Url.parse("https://host.example/a/b")):
        try:
            url = Url.parse(text, base=base)
        except CastoffError as error:
            assert len(str(error).splitlines()) == 1
            continue
        assert url.target.startswith("/")
        assert all("!" <= character <= "~" for character in url.target + url.origin.host)
