"""From documents to an image: platform choice, what is refused, and with which words. Read through OCI layouts on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from castoff.errors import CastoffError, DigestMismatch, Invalid, NotFound, Unsupported
from castoff.image.image import Image, Platform
from castoff.image.opening import open_source
from castoff.image.platforms import fitness, normalise, parse_platform
from castoff.image.reference import parse_reference
from castoff.image.settings import ImageSettings
from oci_builder import (
    DOCKER_CONFIG,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    BuiltImage,
    BuiltIndex,
    LayerTar,
    build_image,
    build_index,
    with_manifest,
    write_layout,
)

LAYER = LayerTar().file("etc/motd", b"hello\n")
AMD64 = Platform("linux", "amd64")


async def resolve(directory: Path, image: BuiltImage | BuiltIndex, platform: Platform = AMD64) -> Image:
    """Writes the image as a layout and resolves it."""
    write_layout(directory, {"latest": image})
    source = open_source(parse_reference(f"oci:{directory}:latest"), ImageSettings(), directory / "cache")
    try:
        return await source.resolve(platform)
    finally:
        await source.close()


async def refusal(directory: Path, image: BuiltImage | BuiltIndex, platform: Platform = AMD64) -> CastoffError:
    """The error that resolving ends in: one line."""
    with pytest.raises(CastoffError) as caught:
        await resolve(directory, image, platform)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


async def test_every_field_of_the_config_arrives(tmp_path: Path) -> None:
    """Process, user, directory, signal, ports and labels; layers in order with their diffIDs."""
    image = build_image(
        [LAYER, LayerTar().file("b")],
        entrypoint=["/init", "--"],
        cmd=["sh", "-c", "echo"],
        env=["A=1", "B=ü"],
        user="1000:users",
        working_dir="/srv",
        stop_signal="SIGINT",
        exposed_ports=["80/tcp", "443/tcp"],
        labels={"b": "2", "a": "1"},
    )
    found = await resolve(tmp_path, image)
    assert str(found.digest) == image.digest
    assert found.config.entrypoint == ("/init", "--")
    assert found.config.cmd == ("sh", "-c", "echo")
    assert found.config.env == ("A=1", "B=ü")
    assert (found.config.user, found.config.working_dir, found.config.stop_signal) == ("1000:users", "/srv", "SIGINT")
    assert found.config.exposed_ports == ("443/tcp", "80/tcp")
    assert dict(found.config.labels) == {"a": "1", "b": "2"}
    assert [str(layer.diff_id) for layer in found.layers] == list(image.diff_ids)
    assert [str(layer.digest) for layer in found.layers] == [blob.digest for blob in image.layers]


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
async def test_oci_and_docker_schema_2_with_every_compression(tmp_path: Path, docker: bool, compression: Any) -> None:
    """Media types of both families; without a mediaType field as well, which OCI's may leave out."""
    image = build_image([LAYER], compression=compression, docker=docker)
    assert (await resolve(tmp_path / "a", image)).layers[0].media_type == image.layers[0].media_type
    assert (await resolve(tmp_path / "b", with_manifest(image, {"mediaType": None}))).layers[0].size == len(image.layers[0].data)


async def test_docker_says_null_where_oci_says_nothing(tmp_path: Path) -> None:
    """`"Cmd": null` and friends, a lone string as a command, a label without a value."""
    process = {"Cmd": "sh", "Entrypoint": None, "Env": None, "ExposedPorts": None, "Labels": {"a": None}, "User": None}
    found = await resolve(tmp_path, build_image([LAYER], config={"config": process}))
    assert found.config.cmd == ("sh",)
    assert found.config.entrypoint == ()
    assert dict(found.config.labels) == {"a": ""}


def test_platforms_go_by_their_aliases() -> None:
    """uname's names, Go's names, and variants that go without saying."""
    assert normalise(Platform("Linux", "x86_64")) == AMD64
    assert normalise(Platform("linux", "aarch64", "8")) == Platform("linux", "arm64")
    assert parse_platform("arm64") == Platform("linux", "arm64")
    assert parse_platform("linux/arm/v6") == Platform("linux", "arm", "v6")
    assert parse_platform("armhf") == Platform("linux", "arm")


@pytest.mark.parametrize(
    ("offered", "asked", "fit"),
    [
        ("linux/arm64/v8", "linux/arm64", 0),
        ("linux/arm64", "linux/arm64/v8", 0),
        ("linux/arm/v6", "linux/arm/v7", -1),
        ("linux/arm/v7", "linux/arm/v6", None),
        ("linux/amd64", "linux/amd64/v3", -2),
        ("linux/amd64/v3", "linux/amd64", None),
        ("linux/arm", "linux/arm64", None),
        ("windows/amd64", "linux/amd64", None),
        ("linux/arm64/weird", "linux/arm64", None),
    ],
)
def test_what_runs_on_what(offered: str, asked: str, fit: int | None) -> None:
    """The same or an older variant of the same architecture."""
    assert fitness(parse_platform(offered), parse_platform(asked)) == fit


async def test_the_best_platform_of_an_index_is_chosen(tmp_path: Path) -> None:
    """The nearest variant, past attestations, artifacts and other architectures."""
    images = {
        name: build_image(
            [LayerTar().file(name.replace("/", "-"))],
            platform=dict(zip(("os", "architecture", "variant"), name.split("/"), strict=False)),
        )
        for name in ("linux/arm64", "linux/arm/v5", "linux/arm/v7", "linux/arm/v6", "linux/amd64")
    }
    attestation = {
        "mediaType": OCI_MANIFEST,
        "digest": "sha256:" + "0" * 64,
        "size": 1,
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    artifact = {**attestation, "platform": None, "annotations": None, "artifactType": "application/vnd.castoff.rootfs.v1"}
    index = build_index(list(images.values()), extra=[attestation, artifact])
    for asked, expected in {
        "linux/amd64": "linux/amd64",
        "linux/arm64": "linux/arm64",
        "linux/arm/v7": "linux/arm/v7",
        "linux/arm/v6": "linux/arm/v6",
    }.items():
        found = await resolve(tmp_path, index, parse_platform(asked))
        assert str(found.digest) == images[expected].digest, asked


async def test_a_wrong_platform_is_told_what_there_is(tmp_path: Path) -> None:
    """From an index and from a lone image."""
    arm = build_image([LAYER], platform={"os": "linux", "architecture": "arm64"})
    s390x = build_image([LAYER], platform={"os": "linux", "architecture": "s390x"})
    error = await refusal(tmp_path / "a", build_index([arm, s390x]))
    assert isinstance(error, NotFound)
    assert "linux/amd64" in str(error)
    assert "linux/arm64, linux/s390x" in str(error)
    assert "it has linux/arm64" in str(await refusal(tmp_path / "b", arm))


async def test_an_index_of_indexes_and_of_images_without_platforms(tmp_path: Path) -> None:
    """Entries that do not tell their platform are read to learn it."""
    arm = build_image([LAYER], platform={"os": "linux", "architecture": "arm64"})
    amd = build_image([LAYER])
    found = await resolve(tmp_path, build_index([build_index([arm]), build_index([arm, amd])]))
    assert str(found.digest) == amd.digest


async def test_indexes_that_go_too_deep_are_refused(tmp_path: Path) -> None:
    """A cycle is impossible (digests), a long chain is not."""
    index: BuiltImage | BuiltIndex = build_image([LAYER])
    for _ in range(6):
        index = build_index([index])
    assert "deep" in str(await refusal(tmp_path, index))


@pytest.mark.parametrize(
    ("fields", "kind", "word"),
    [
        ({"manifests": []}, Invalid, "as an index and as an image"),
        ({"config": None, "layers": None}, Invalid, "neither"),
        ({"mediaType": OCI_INDEX}, Invalid, "says of itself"),
        ({"mediaType": "text/plain"}, Invalid, "says of itself"),
        ({"schemaVersion": 1}, Unsupported, "schema 1"),
        ({"fsLayers": [{"blobSum": "x"}]}, Unsupported, "schema 1"),
        ({"layers": []}, Invalid, "0 layers and its config 1 diffIDs"),
        ({"layers": [{"mediaType": OCI_LAYER, "digest": "sha256:" + "0" * 64, "size": 1}] * 1001}, Invalid, "1001 layers"),
        ({"layers": [{"mediaType": OCI_LAYER, "digest": "sha256:" + "0" * 64, "size": -1}]}, Invalid, "cannot be read"),
        ({"layers": [{"mediaType": OCI_LAYER, "digest": "sha256:" + "0" * 64, "size": 1 << 70}]}, Invalid, "cannot be read"),
        ({"layers": [{"mediaType": OCI_LAYER, "digest": "sha512:" + "0" * 128, "size": 1}]}, Invalid, "sha256"),
        ({"layers": [{"mediaType": OCI_LAYER, "digest": "../../etc/passwd", "size": 1}]}, Invalid, "not a sha256 digest"),
        (
            {"layers": [{"mediaType": "application/x-lzma", "digest": "sha256:" + "0" * 64, "size": 1}]},
            Unsupported,
            "unknown media type",
        ),
        ({"layers": [{"digest": "sha256:" + "0" * 64, "size": 1}]}, Unsupported, "unknown media type"),
        ({"layers": "x"}, Invalid, "cannot be read"),
        ({"config": {"mediaType": OCI_CONFIG, "digest": "sha256:" + "0" * 64, "size": 2}}, NotFound, "missing"),
        (
            {"config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": "sha256:" + "0" * 64, "size": 2}},
            Unsupported,
            "artifact",
        ),
        (
            {"config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": "sha256:" + "0" * 64, "size": 2}},
            Unsupported,
            "artifact",
        ),
    ],
)
async def test_broken_and_hostile_manifests_are_refused_clearly(
    tmp_path: Path, fields: dict[str, Any], kind: type[CastoffError], word: str
) -> None:
    """What, where, and what to do."""
    error = await refusal(tmp_path, with_manifest(build_image([LAYER]), fields))
    assert type(error) is kind
    assert word in str(error)
    assert str(tmp_path) in str(error)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a":' * 5000, b'{"layers":[],"config":{"digest":"\\ud800","size":1}}']
)
async def test_bytes_that_are_no_manifest(tmp_path: Path, data: bytes) -> None:
    """Empty, cut off, deeply nested, not UTF-8: all end the same way."""
    assert isinstance(await refusal(tmp_path, with_manifest(build_image([LAYER]), data)), Invalid)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"config": {"Cmd": ["a\0b"]}}, "NUL in Cmd"),
        ({"config": {"Env": ["A=\0"]}}, "NUL in Env"),
        ({"config": {"User": "\0"}}, "NUL in User"),
        ({"config": {"Cmd": 5}}, "cannot be read"),
        ({"rootfs": {"type": "zfs", "diff_ids": []}}, "type 'zfs'"),
        ({"rootfs": {"type": "layers", "diff_ids": ["md5:0"]}}, "not a sha256 digest"),
        ({"rootfs": None}, "1 layers and its config 0 diffIDs"),
    ],
)
async def test_broken_and_hostile_configs_are_refused_clearly(tmp_path: Path, config: dict[str, Any], word: str) -> None:
    """What no kernel can run, and what contradicts the manifest."""
    error = await refusal(tmp_path, build_image([LAYER], config=config))
    assert isinstance(error, Invalid)
    assert word in str(error)


async def test_wrong_digests_and_sizes_of_documents_are_noticed(tmp_path: Path) -> None:
    """A config whose bytes are others, or more, than the manifest says."""
    image = build_image([LAYER])
    write_layout(tmp_path, {"latest": image})
    path = tmp_path / "blobs" / "sha256" / image.config.digest.removeprefix("sha256:")
    source = open_source(parse_reference(f"oci:{tmp_path}"), ImageSettings(), tmp_path / "cache")
    path.write_bytes(image.config.data[:-1] + b" ")
    with pytest.raises(DigestMismatch):
        await source.resolve(AMD64)
    path.write_bytes(image.config.data + b" ")
    with pytest.raises(Invalid, match="longer than"):
        await source.resolve(AMD64)
    path.write_bytes(image.config.data[:-1])
    with pytest.raises(Invalid, match="ended after"):
        await source.resolve(AMD64)


async def test_a_document_over_the_limit_is_not_read(tmp_path: Path) -> None:
    """The limit is the settings'."""
    image = build_image([LAYER], labels={"a": "x" * 5000})
    write_layout(tmp_path, {"latest": image})
    source = open_source(parse_reference(f"oci:{tmp_path}"), ImageSettings(max_manifest_size=4096), tmp_path / "cache")
    with pytest.raises(Invalid, match="at most 4096"):
        await source.resolve(AMD64)


async def test_non_distributable_layers_are_layers_where_they_are_there(tmp_path: Path) -> None:
    """Their media types are known; only a missing blob makes one a foreign layer."""
    image = build_image([LAYER], docker=True)
    rows = json.loads(image.manifest.data)["layers"]
    rows[0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    found = await resolve(tmp_path, with_manifest(image, {"layers": rows}))
    assert found.layers[0].media_type.endswith("foreign.diff.tar.gzip")
    assert image.config.media_type == DOCKER_CONFIG
