"""Publish: an image becomes an artifact in a registry, and the next host finds it; what is there does not travel again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import daemons
from castoff.artifact.artifact import Artifact, ArtifactLayer
from castoff.artifact.find import find_artifact
from castoff.artifact.publish import Published
from castoff.artifact.trust import load_trust, trust_key
from castoff.config import Config
from castoff.errors import Invalid, Unavailable, Unsupported
from castoff.host import Host
from castoff.image.digest import Digest
from castoff.image.image import Platform
from castoff.image.opening import open_source
from castoff.image.outgoing import OutgoingBlob
from castoff.image.push import Pushed, RegistryWriter
from castoff.image.reference import RegistryReference, parse_reference
from castoff.image.settings import ImageSettings
from castoff.layers.index import read_index
from castoff.layers.pack import check_locations, chunk_size, unpack_chunk, verify_chunk
from castoff.layers.published import read_published
from castoff.store.settings import StoreSettings
from castoff.timeline import Step, Timeline, recording
from machines import Castoff, castoff_state
from oci_builder import BuiltImage, LayerTar, build_image, build_index, write_layout
from referrers_registry import ReferrersRegistry

AMD64 = Platform("linux", "amd64")
QUICK = ImageSettings(retries=2, retry_delay=0.01, read_timeout=10.0)
CHUNK = 256 << 10


def layer(seed: int, size: int = 3 * CHUNK) -> LayerTar:
    """A layer of its own for each seed."""
    return LayerTar().file(f"data/{seed}", random.Random(seed).randbytes(size)).file(f"etc/{seed}", b"text\n" * 5000)


def image_of(*seeds: int) -> BuiltImage:
    return build_image([layer(seed) for seed in seeds], cmd=["/bin/sh"])


def config_in(directory: Path, image: ImageSettings = QUICK) -> Config:
    """A host with a state of its own, on whatever filesystem that is."""
    return Config(state=directory, image=image, store=StoreSettings(backing="native"))


def push(host: str, repository: str, built: BuiltImage, tmp_path: Path, tag: str = "v1") -> str:
    """Puts an image into a real registry; its reference."""
    layout = write_layout(tmp_path / os.urandom(4).hex(), {tag: built})
    target = f"{host}/{repository}:{tag}"
    command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--preserve-digests", f"oci:{layout}:{tag}"]
    subprocess.run([*command, f"docker://{target}"], check=True, capture_output=True, timeout=60)
    return target


async def publish(state: Path, reference: str, **options: object) -> Published:
    async with Host.open(config=config_in(state)) as host:
        return await host.publish(reference, **options)  # type: ignore[arg-type]


async def found_by(state: Path, reference: str, *repositories: str) -> Artifact | None:
    """What a host that trusts whom it trusts finds."""
    source = open_source(parse_reference(reference), QUICK, state / "images")
    image = await source.resolve(AMD64)
    await source.close()
    found, _ = await find_artifact(image, parse_reference(reference), QUICK, load_trust(state), repositories=repositories)
    return found


async def test_an_image_is_published_found_and_whole(registry: daemons.Registry, tmp_path: Path) -> None:
    """Over docker-registry, which has no referrers API: every chunk of every layer comes out of its pack as it was.

    Another host finds it once it trusts the first one's key, and not before.
    """
    reference = push(registry.host, "publish/whole", image_of(1, 2), tmp_path)
    timeline = Timeline()
    with recording(timeline):
        published = await publish(tmp_path / "state", reference)
    assert published.blobs == {Pushed.SENT: 5, Pushed.MOUNTED: 0, Pushed.PRESENT: 0}
    assert {"artifact.publish", "image.push", "layers.convert"} <= {step.name for step in timeline.steps}
    assert "layers.pack" not in {step.name for step in timeline.steps}, "packs are made in the pass that converts"

    other = tmp_path / "other"
    assert await found_by(other, reference) is None
    trust_key(other, load_trust(tmp_path / "state").keys[0].key, "builder")
    artifact = await found_by(other, reference)
    assert artifact is not None and artifact.digest == published.artifact.digest
    assert artifact.repository == f"{registry.host}/publish/whole"
    for row in artifact.layers:
        _check_layer(registry, row, tmp_path / "state" / "store" / "layers" / row.diff_id.hex)
    assert not list((tmp_path / "state" / "store" / "tmp").iterdir())


def _check_layer(registry: daemons.Registry, row: ArtifactLayer, stored: Path) -> None:
    def blob(digest: Digest) -> bytes:
        return (registry.directory / "docker/registry/v2/blobs/sha256" / digest.hex[:2] / digest.hex / "data").read_bytes()

    index, local = read_published(blob(row.index.digest)), read_index(stored / "index")
    assert index.diff_id == row.diff_id and (index.digests == local.digests).all()
    pack, segment = blob(row.pack.digest), (stored / "segment").read_bytes()
    check_locations(index, row.pack.digest, len(pack))
    for number, (zero, start, length) in enumerate(zip(index.zero, index.locations.offset, index.locations.length, strict=True)):
        if not zero:
            chunk = unpack_chunk(pack[int(start) : int(start) + int(length)], chunk_size(index, number))
            verify_chunk(index, number, chunk)
            assert chunk == segment[number * CHUNK : number * CHUNK + len(chunk)]


async def test_the_registrys_garbage_collection_takes_nothing_of_it(tmp_path: Path) -> None:
    """docker-registry's own command, after a publish: a blob that nobody names goes, all of the artifact stays."""
    with daemons.registry(tmp_path / "registry") as registry:
        reference = push(registry.host, "publish/collected", image_of(1, 2), tmp_path)
        published = await publish(tmp_path / "state", reference)
        stray = OutgoingBlob.of("a stray blob", b"nobody names it")
        repository = parse_reference(reference)
        assert isinstance(repository, RegistryReference)
        writer = RegistryWriter(repository, QUICK)
        await writer.push_blob(stray)
        await writer.close()
        collect = ["docker-registry", "garbage-collect", str(tmp_path / "registry" / "config.yml")]
        subprocess.run(collect, check=True, capture_output=True, timeout=60)
    with daemons.registry(tmp_path / "registry") as registry:
        assert not (registry.directory / "docker/registry/v2/blobs/sha256" / stray.digest.hex[:2] / stray.digest.hex).exists()
        reference = f"{registry.host}/publish/collected:v1"
        artifact = await found_by(tmp_path / "state", reference)
        assert artifact is not None and artifact.digest == published.artifact.digest
        for row in artifact.layers:
            _check_layer(registry, row, tmp_path / "state" / "store" / "layers" / row.diff_id.hex)


async def test_only_what_is_new_travels(tmp_path: Path) -> None:
    """A second image that shares a layer: one layer's two blobs are sent; again: nothing; from a host without memory: nothing."""
    registry = ReferrersRegistry()
    registry.add("team/one", image_of(1, 2))
    registry.add("team/one", image_of(1, 3), tag="second")
    async with registry.running() as host:
        first = await publish(tmp_path / "state", f"{host}/team/one:latest")
        assert first.blobs[Pushed.SENT] == 5 and registry.received == first.sent
        registry.requests.clear()
        second = await publish(tmp_path / "state", f"{host}/team/one:second")
        assert second.blobs == {Pushed.SENT: 2, Pushed.MOUNTED: 0, Pushed.PRESENT: 3}
        assert registry.received == second.sent < first.sent * 0.6
        assert registry.count("PUT", "/uploads/") == 2

        for state in ("state", "fresh"):
            registry.requests.clear()
            timeline = Timeline()
            with recording(timeline):
                again = await publish(tmp_path / state, f"{host}/team/one:second")
            assert again.blobs[Pushed.PRESENT] == 5 and registry.received == again.sent == 0
            assert again.artifact.digest == second.artifact.digest, "another host makes the same artifact"
            packed = {step.name for step in timeline.steps} & {"layers.pack", "layers.convert"}
            assert packed == (set() if state == "state" else {"layers.convert"}), "what is known to be there is not made"
    manifests = [name for name in registry.manifests["team/one"] if name.startswith("sha256:")]
    assert len(manifests) == 2 + 2 + 3, "two images, two artifacts, and a signature by each host that has published one"


async def test_shared_layers_are_mounted_from_another_repository(registry: daemons.Registry, tmp_path: Path) -> None:
    """Of the same registry: neither packed nor sent, by a host that knows where they are."""
    one = push(registry.host, "publish/one", image_of(4, 5), tmp_path)
    two = push(registry.host, "publish/two", image_of(4, 6), tmp_path)
    await publish(tmp_path / "state", one)
    timeline = Timeline()
    with recording(timeline):
        published = await publish(tmp_path / "state", two)
    assert published.blobs == {Pushed.SENT: 3, Pushed.MOUNTED: 2, Pushed.PRESENT: 0}
    converted = [step for step in timeline.steps if step.name == "layers.convert"]
    assert len(converted) == 1
    assert await found_by(tmp_path / "state", two) is not None


async def test_a_layer_that_is_here_is_packed_from_its_segment(tmp_path: Path) -> None:
    """To the same artifact as one that is converted for it."""
    registry = ReferrersRegistry()
    registry.add("app", image_of(1))
    async with registry.running() as host:
        converted = await publish(tmp_path / "one", f"{host}/app:latest", to=f"{host}/central/one")
        async with Host.open(config=config_in(tmp_path / "two")) as two:
            await two.build_rootfs(f"{host}/app:latest", size=1 << 30)
            timeline = Timeline()
            with recording(timeline):
                packed = await two.publish(f"{host}/app:latest", to=f"{host}/central/two")
    assert "layers.pack" in {step.name for step in timeline.steps}
    assert packed.artifact.digest == converted.artifact.digest
    assert registry.blobs["central/one"] == registry.blobs["central/two"]


async def test_to_a_central_repository_from_an_image_on_disk(registry: daemons.Registry, tmp_path: Path) -> None:
    """--to: the image itself is not there, and its artifact is found by whoever looks there."""
    built = image_of(7)
    layout = write_layout(tmp_path / "layout", {"v1": built})
    with pytest.raises(Invalid, match="--to"):
        await publish(tmp_path / "state", f"oci:{layout}:v1")
    published = await publish(tmp_path / "state", f"oci:{layout}:v1", to=f"{registry.host}/publish/central")
    assert published.repository == f"{registry.host}/publish/central"
    reference = push(registry.host, "publish/elsewhere", built, tmp_path)
    assert await found_by(tmp_path / "state", reference) is None
    found = await found_by(tmp_path / "state", reference, f"{registry.host}/publish/central")
    assert found is not None and found.digest == published.artifact.digest


async def test_a_broken_publish_goes_on(tmp_path: Path) -> None:
    """The registry breaks off one layer's pack for good; repeated, only that layer travels."""
    registry = ReferrersRegistry()
    big = build_image([layer(1), layer(2, 40 << 20)])
    registry.add("app", big)
    async with registry.running() as host:
        registry.break_patches = [1] * 3
        with pytest.raises(Unavailable):
            await publish(tmp_path / "state", f"{host}/app:latest")
        assert await found_by(tmp_path / "state", f"{host}/app:latest") is None, "half an artifact is none"
        assert not list((tmp_path / "state" / "store" / "tmp").iterdir())
        registry.break_patches = []
        registry.requests.clear()
        published = await publish(tmp_path / "state", f"{host}/app:latest")
        assert published.blobs[Pushed.PRESENT] >= 1
        assert registry.received == published.sent
        assert await found_by(tmp_path / "state", f"{host}/app:latest") is not None


async def test_a_cancelled_publish_leaves_nothing_behind(tmp_path: Path) -> None:
    """While it packs, and while it pushes: nothing in the store's tmp, no lock; the next one succeeds."""
    registry = ReferrersRegistry()
    registry.add("app", build_image([layer(3, 48 << 20)]))
    async with registry.running() as host, Host.open(config=config_in(tmp_path / "state")) as publisher:
        await publisher.build_rootfs(f"{host}/app:latest", size=1 << 30)
        for step_name in ("layers.pack", "image.push"):
            begun = asyncio.Event()
            timeline = Timeline(observers=(_Waker(step_name, begun, asyncio.get_running_loop()),))
            with recording(timeline):
                work = asyncio.create_task(publisher.publish(f"{host}/app:latest"))
            await begun.wait()
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            for directory in ("tmp", "locks"):
                assert not list((tmp_path / "state" / "store" / directory).iterdir())
        published = await publisher.publish(f"{host}/app:latest")
        assert published.blobs[Pushed.SENT] >= 1


class _Waker:
    """Tells when a step begins."""

    def __init__(self, name: str, event: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
        self._name, self._event, self._loop = name, event, loop

    def on_step(self, step: Step) -> None:
        if step.name == self._name:
            self._loop.call_soon_threadsafe(self._event.set)


async def test_an_image_without_layers_is_refused(tmp_path: Path) -> None:
    """There is nothing to publish, and the error says so."""
    registry = ReferrersRegistry()
    registry.add("empty", build_image([]))
    async with registry.running() as host:
        with pytest.raises(Unsupported, match="no layers"):
            await publish(tmp_path / "state", f"{host}/empty:latest")


async def test_the_pinned_index_survives_a_copy(registry: daemons.Registry, tmp_path: Path) -> None:
    """--index: what skopeo copy --all takes to a registry that never saw a referrer has its artifact; twice is as once."""
    reference = push(registry.host, "publish/pinned", image_of(8), tmp_path)
    published = await publish(tmp_path / "state", reference, index=True)
    assert published.index is not None
    name, _, digest = published.index.partition("@")
    assert name == f"{registry.host}/publish/pinned:v1-castoff"
    assert (await publish(tmp_path / "state", reference, index=True)).index == published.index
    with daemons.registry(tmp_path / "second") as second:
        target = f"{second.host}/copied/app:v1"
        options = ["--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false"]
        done = subprocess.run(
            ["skopeo", "copy", *options, f"docker://{name}", f"docker://{target}"], capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        found = await found_by(tmp_path / "state", target)
        assert found is not None and found.digest == published.artifact.digest
        pulled = await found_by(tmp_path / "state", f"{second.host}/copied/app@{digest}")
        assert pulled is not None


async def test_an_index_of_several_platforms_keeps_them_all(tmp_path: Path) -> None:
    """Each platform's publish adds its own; the index lists what the original does, and no stale artifact of it."""
    arm = build_image([layer(9)], platform={"os": "linux", "architecture": "arm64"})
    registry = ReferrersRegistry()
    registry.add("app", build_index([image_of(1), arm]), tag="v1")
    async with registry.running() as host:
        for architecture in ("amd64", "arm64", "arm64"):
            published = await publish(tmp_path / "s", f"{host}/app:v1", index=True, platform=Platform("linux", architecture))
        with pytest.raises(Invalid, match="--index"):
            await publish(tmp_path / "s", f"{host}/app:v1", index=True, to=f"{host}/other")
    assert published.index is not None
    rows = json.loads(registry.manifests["app"]["v1-castoff"][1])["manifests"]
    assert [row["platform"]["architecture"] for row in rows] == ["amd64", "arm64", *["unknown"] * 4]
    assert [(row.get("annotations") or {}).get("vnd.castoff.image") for row in rows[2:]] == [
        rows[0]["digest"],
        rows[0]["digest"],
        rows[1]["digest"],
        rows[1]["digest"],
    ]


@pytest.fixture(name="castoff", scope="module")
def _castoff(kernels: Path) -> Iterator[Castoff]:
    """The command over a state of its own."""
    with castoff_state(kernels) as castoff:
        yield castoff


def test_the_command(castoff: Castoff, registry: daemons.Registry, tmp_path: Path) -> None:
    """Prints the artifact's digest; says what is wrong in one line with an exit code of its own."""
    target = f"{registry.host}/publish/command"
    answer = castoff.json("publish", castoff.image, "--to", target)
    assert answer["repository"] == target and answer["blobs"]["sent"] == 5
    text = castoff("publish", castoff.image, "--to", target)
    assert text.returncode == 0 and f"{target}@{answer['artifact']}" in text.stdout.decode()
    assert "5 present" in text.stdout.decode()
    for words, code, said in (
        ((castoff.image,), 4, "--to"),
        ((castoff.image, "--to", f"{registry.host}/x:tag"), 4, "not a repository"),
        ((f"{registry.host}/no/such:image",), 3, "does not have"),
        ((castoff.image, "--to", "127.0.0.1:1/x"), 5, "cannot be connected"),
    ):
        done = castoff("publish", *words)
        assert (done.returncode, done.stdout) == (code, b""), done.stderr
        assert said in done.stderr.decode() and done.stderr.count(b"\n") == 1, done.stderr
