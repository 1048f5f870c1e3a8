"""The real docker-registry, with images that skopeo pushed: plain, with TLS and passwords, as a mirror."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import daemons
from castoff.conformance.image_source import check_image_source
from castoff.errors import NotFound, Unauthorized, Unavailable
from castoff.image.digest import Digest
from castoff.image.image import Platform
from castoff.image.opening import open_source
from castoff.image.outgoing import OutgoingBlob
from castoff.image.push import Pushed, RegistryWriter
from castoff.image.reference import RegistryReference, parse_reference
from castoff.image.settings import ImageSettings
from castoff.timeline import Timeline, recording
from oci_builder import BuiltImage, LayerTar, build_image, build_index, write_layout

AMD64 = Platform("linux", "amd64")

HTPASSWD = "user:$2b$04$G84RhVALyESzeJTqwlyINORUpvMWoVECauZ/gSZHBREzLovUsahvu\n"  # the password is `secret`


def push(layout: Path, tag: str, target: str, *options: str) -> None:
    """Copies an image of a layout to a registry, its blobs as they are."""
    command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", *options, f"oci:{layout}:{tag}", f"docker://{target}"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def images() -> dict[str, BuiltImage]:
    """Each way of compression, a MiB and more that does not compress in each."""
    data = os.urandom(3 << 20)
    return {
        compression: build_image(
            [LayerTar().file("big", data), LayerTar().file("small", compression.encode())],
            compression=compression,  # type: ignore[arg-type]
            members=3,
            cmd=["/bin/sh"],
        )
        for compression in ("none", "gzip", "zstd")
    }


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
async def test_images_as_skopeo_pushes_them(registry: daemons.Registry, tmp_path: Path, compression: str) -> None:
    """Every compression keeps the port's promises over a real registry."""
    image = images()[compression]
    push(write_layout(tmp_path / "layout", {"v1": image}), "v1", f"{registry.host}/real/{compression}:v1", "--preserve-digests")
    reference = parse_reference(f"{registry.host}/real/{compression}:v1")
    await check_image_source(
        lambda: open_source(reference, ImageSettings(), tmp_path / "cache"), AMD64, [blob.data for blob in image.layers]
    )


async def test_docker_schema_2_and_an_index(registry: daemons.Registry, tmp_path: Path) -> None:
    """An image converted to Docker's own media types, and one of several platforms."""
    amd = images()["gzip"]
    arm = build_image([LayerTar().file("arm")], platform={"os": "linux", "architecture": "arm64"})
    layout = write_layout(tmp_path / "layout", {"v1": amd, "multi": build_index([arm, amd])})
    push(layout, "v1", f"{registry.host}/real/docker:v1", "--format", "v2s2")
    push(layout, "multi", f"{registry.host}/real/multi:v1", "--all", "--preserve-digests")
    for name, kind in (("docker", "vnd.docker"), ("multi", "vnd.oci")):
        source = open_source(parse_reference(f"{registry.host}/real/{name}:v1"), ImageSettings(), tmp_path / "cache")
        found = await source.resolve(AMD64)
        await source.close()
        assert [str(layer.diff_id) for layer in found.layers] == list(amd.diff_ids)
        assert all(kind in layer.media_type for layer in found.layers)


async def test_resolving_is_a_step_of_the_timeline(registry: daemons.Registry, tmp_path: Path) -> None:
    """Under the name of its module."""
    push(write_layout(tmp_path / "layout", {"v1": images()["gzip"]}), "v1", f"{registry.host}/real/step:v1")
    timeline = Timeline()
    with recording(timeline):
        source = open_source(parse_reference(f"{registry.host}/real/step:v1"), ImageSettings(), tmp_path / "cache")
        await source.resolve(AMD64)
        await source.close()
    assert [(step.name, step.state) for step in timeline.steps] == [("image.registry", "complete")]


async def test_what_a_real_registry_does_not_have(registry: daemons.Registry, tmp_path: Path) -> None:
    """Its own words are in the error."""
    source = open_source(parse_reference(f"{registry.host}/real/nothing:v1"), ImageSettings(), tmp_path)
    with pytest.raises(NotFound, match=r"MANIFEST_UNKNOWN|NAME_UNKNOWN"):
        await source.resolve(AMD64)
    await source.close()


async def test_a_broken_first_mirror_and_a_real_second(registry: daemons.Registry, tmp_path: Path) -> None:
    """An image of a registry that does not exist comes from its mirror."""
    image = images()["gzip"]
    push(write_layout(tmp_path / "layout", {"v1": image}), "v1", f"{registry.host}/cache/library/app:v1", "--preserve-digests")
    settings = ImageSettings(mirrors={"docker.io": ("127.0.0.1:1", f"{registry.host}/cache")}, retry_delay=0.01)
    await check_image_source(
        lambda: open_source(parse_reference("app:v1"), settings, tmp_path / "cache"), AMD64, [blob.data for blob in image.layers]
    )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate (cert.pem, key.pem) for 127.0.0.1 and localhost."""
    directory = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", "key.pem", "-out", "cert.pem"], cwd=directory, check=True, capture_output=True)
    return directory


@pytest.fixture(scope="module")
def closed_registry(daemon_directory: Path, authority: Path) -> Iterator[str]:
    """A docker-registry with TLS and a password: ``127.0.0.1:PORT``."""
    directory = daemon_directory / "closed-registry"
    directory.mkdir()
    port = daemons.free_port()
    (directory / "htpasswd").write_text(HTPASSWD)
    (directory / "config.yml").write_text(
        "version: 0.1\nlog: {level: warn}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory / 'data'}}}}}\n"
        f"auth: {{htpasswd: {{realm: castoff, path: {directory / 'htpasswd'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}', tls: {{certificate: {authority / 'cert.pem'}, key: {authority / 'key.pem'}}}}}\n"
    )
    context = ssl.create_default_context(cafile=str(authority / "cert.pem"))

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"https://127.0.0.1:{port}/v2/", context=context, timeout=5):
                return False
        except urllib.error.HTTPError as error:
            with error:
                return error.code == 401
        except OSError:
            return False

    log = directory / "log"
    with daemons.daemon(["docker-registry", "serve", str(directory / "config.yml")], log) as process:
        daemons.wait_for("docker-registry", answers, process, log)
        yield f"127.0.0.1:{port}"


async def test_tls_and_a_password(closed_registry: str, authority: Path, tmp_path: Path) -> None:
    """Docker's own server, our own authority, a password from Docker's own file; many layers at once."""
    image = images()["gzip"]
    layout = write_layout(tmp_path / "layout", {"v1": image})
    push(layout, "v1", f"{closed_registry}/team/app:v1", "--preserve-digests", "--dest-creds", "user:secret")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": {closed_registry: {"auth": base64.b64encode(b"user:secret").decode()}}}))
    reference = parse_reference(f"{closed_registry}/team/app:v1")

    async def resolve(**settings: str) -> None:
        source = open_source(reference, ImageSettings(**settings, retries=0), tmp_path / "other")  # type: ignore[arg-type]
        try:
            await source.resolve(AMD64)
        finally:
            await source.close()

    settings = ImageSettings(ca_file=str(authority / "cert.pem"), docker_config=str(config))
    await check_image_source(
        lambda: open_source(reference, settings, tmp_path / "cache"), AMD64, [blob.data for blob in image.layers]
    )
    with pytest.raises(Unauthorized, match=f"docker login {closed_registry}"):
        await resolve(ca_file=str(authority / "cert.pem"), docker_config=str(tmp_path / "none"))
    config.write_text(json.dumps({"auths": {closed_registry: {"username": "user", "password": "wrong"}}}))
    with pytest.raises(Unauthorized, match="refuses"):
        await resolve(ca_file=str(authority / "cert.pem"), docker_config=str(config))
    with pytest.raises(Unavailable, match="not trusted"):
        await resolve(docker_config=str(config))


async def test_a_push_over_tls_with_a_password(closed_registry: str, authority: Path, tmp_path: Path) -> None:
    """A blob of two parts, and one for which the password is wrong: nothing of that arrives."""
    data = os.urandom(40 << 20)
    (tmp_path / "blob").write_bytes(data)
    blob = OutgoingBlob("a blob", Digest.of(data), len(data), tmp_path / "blob")
    reference = parse_reference(f"{closed_registry}/team/pushed")
    assert isinstance(reference, RegistryReference)
    for password, right in (("wrong", False), ("secret", True)):
        auth = base64.b64encode(f"user:{password}".encode()).decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {closed_registry: {"auth": auth}}}))
        settings = ImageSettings(ca_file=str(authority / "cert.pem"), docker_config=str(tmp_path / "config.json"))
        writer = RegistryWriter(reference, settings)
        if right:
            assert [await writer.push_blob(blob), await writer.push_blob(blob)] == [Pushed.SENT, Pushed.PRESENT]
        else:
            with pytest.raises(Unauthorized, match="refuses"):
                await writer.push_blob(blob)
        await writer.close()


async def test_a_registry_that_is_killed_and_comes_back(daemon_directory: Path, tmp_path: Path) -> None:
    """In the middle of a transfer: it goes on as soon as the registry does."""
    image = build_image([LayerTar().file("big", os.urandom(40 << 20))], compression="none")
    layout = write_layout(tmp_path / "layout", {"v1": image})
    directory = daemon_directory / "mortal-registry"
    settings = ImageSettings(retry_delay=0.1, retries=50, retry_delay_limit=0.2)
    with daemons.registry(directory) as first:
        push(layout, "v1", f"{first.host}/app:v1", "--preserve-digests")
        source = open_source(parse_reference(f"{first.host}/app:v1"), settings, tmp_path / "cache")
        found = await source.resolve(AMD64)
        leaving = AsyncExitStack()
        pieces = await leaving.enter_async_context(source.open_blob(found.layers[0]))
        received = [await anext(pieces)]
    async with leaving:
        rest = asyncio.create_task(_collect(pieces))
        await asyncio.sleep(0.3)
        assert not rest.done()
        with daemons.daemon(["docker-registry", "serve", str(directory / "config.yml")], directory / "log2"):
            received += await rest
    await source.close()
    assert b"".join(received) == image.layers[0].data


async def _collect(pieces: AsyncIterator[bytes]) -> list[bytes]:
    return [piece async for piece in pieces]
