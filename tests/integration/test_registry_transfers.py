"""A registry that breaks, stalls, lies and sends too much: each byte arrives once, or one clear error does."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from castoff.conformance.image_source import check_image_source
from castoff.errors import CastoffError, DigestMismatch, Invalid, LimitExceeded, NotFound, Unavailable, Unsupported
from castoff.image.image import Image, Platform
from castoff.image.opening import open_source
from castoff.image.reference import parse_reference
from castoff.image.settings import ImageSettings
from castoff.image.source import ImageSource
from castoff.image.verify import Verifier
from hostile_registry import HostileRegistry, answer, break_after, once, only
from oci_builder import Blob, BuiltImage, LayerTar, build_image, build_index, with_manifest

AMD64 = Platform("linux", "amd64")
QUICK = {"retry_delay": 0.01, "retry_delay_limit": 0.05, "connect_timeout": 2.0, "read_timeout": 0.3}


@pytest.fixture(scope="module")
def image() -> BuiltImage:
    """One layer of 3 MiB that do not compress, and a small one."""
    return build_image([LayerTar().file("big", os.urandom(3 << 20)), LayerTar().file("small", b"x")], cmd=["/bin/sh"])


@pytest.fixture
async def registry(image: BuiltImage) -> AsyncIterator[HostileRegistry]:
    """Has the image as team/app:v1."""
    found = HostileRegistry()
    found.add("team/app", image, tag="v1")
    async with found.running():
        yield found


def opened(registry: HostileRegistry, cache: Path, name: str = "team/app:v1", **settings: object) -> ImageSource:
    return open_source(parse_reference(f"{registry.host}/{name}"), ImageSettings(**(QUICK | settings)), cache)  # type: ignore[arg-type]


async def resolved(registry: HostileRegistry, cache: Path, name: str = "team/app:v1") -> Image:
    """Resolves with a source of its own."""
    source = opened(registry, cache, name)
    try:
        return await source.resolve(AMD64)
    finally:
        await source.close()


async def fetched(registry: HostileRegistry, cache: Path, name: str = "team/app:v1", **settings: object) -> list[int]:
    """Resolves and reads every layer, verified; the bytes of each."""
    source = opened(registry, cache, name, **settings)
    try:
        image = await source.resolve(AMD64)
        return [await read(source, image, number) for number in range(len(image.layers))]
    finally:
        await source.close()


async def read(source: ImageSource, image: Image, number: int = 0) -> int:
    layer = image.layers[number]
    verifier = Verifier("layer", layer.digest, layer.size)
    async with source.open_blob(layer) as pieces:
        async for piece in pieces:
            verifier.update(piece)
    verifier.finish()
    return verifier.seen


async def refused(registry: HostileRegistry, cache: Path, name: str = "team/app:v1", **settings: object) -> CastoffError:
    """The error that fetching ends in: one line that names the registry."""
    with pytest.raises(CastoffError) as caught:
        await fetched(registry, cache, name, **settings)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


async def test_the_ports_promises_are_kept(registry: HostileRegistry, image: BuiltImage, tmp_path: Path) -> None:
    """The conformance suite."""
    await check_image_source(lambda: opened(registry, tmp_path), AMD64, [blob.data for blob in image.layers])


async def test_what_a_resolve_costs(registry: HostileRegistry, image: BuiltImage, tmp_path: Path) -> None:
    """The first time a request a document; a known tag one HEAD; a known digest nothing."""
    await resolved(registry, tmp_path)
    assert [(seen.method, seen.path.split("/")[-2]) for seen in registry.requests] == [("GET", "manifests"), ("GET", "blobs")]
    registry.requests.clear()
    await resolved(registry, tmp_path)
    assert [(seen.method, seen.path) for seen in registry.requests] == [("HEAD", "/v2/team/app/manifests/v1")]
    registry.requests.clear()
    await resolved(registry, tmp_path, f"team/app@{image.digest}")
    assert registry.requests == []


async def test_a_known_tag_of_an_index_costs_one_head(registry: HostileRegistry, image: BuiltImage, tmp_path: Path) -> None:
    """The index is kept too."""
    registry.add("team/app", build_index([image]), tag="multi")
    first = await resolved(registry, tmp_path, "team/app:multi")
    registry.requests.clear()
    assert await resolved(registry, tmp_path, "team/app:multi") == first
    assert [seen.method for seen in registry.requests] == ["HEAD"]


async def test_a_tag_that_moved_is_fetched_anew(registry: HostileRegistry, tmp_path: Path) -> None:
    """The HEAD tells."""
    await resolved(registry, tmp_path)
    moved = build_image([LayerTar().file("new")])
    registry.add("team/app", moved, tag="v1")
    assert str((await resolved(registry, tmp_path)).digest) == moved.digest


async def test_a_registry_that_tells_no_digest(registry: HostileRegistry, image: BuiltImage, tmp_path: Path) -> None:
    """Docker-Content-Digest is optional: without it the manifest is fetched and hashed."""

    async def untold(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        return web.Response(body=document.data) if document is not None else None

    registry.faults.append(untold)
    for _ in range(2):
        assert str((await resolved(registry, tmp_path)).digest) == image.digest
    assert [seen.method for seen in registry.requests if seen.path.endswith("/v1")] == ["GET", "HEAD", "GET"]


async def test_a_registry_that_is_gone_names_the_digest_it_had(
    registry: HostileRegistry, image: BuiltImage, tmp_path: Path
) -> None:
    """A tag may have moved, so it needs the registry; the hint says how to go on without."""
    await resolved(registry, tmp_path)
    registry.faults.append(only("/v2/", answer(503)))
    error = await refused(registry, tmp_path, retries=0)
    assert isinstance(error, Unavailable)
    assert f"{registry.host}/team/app@{image.digest}" in error.hint


async def test_a_corrupt_cache_costs_a_fetch(registry: HostileRegistry, image: BuiltImage, tmp_path: Path) -> None:
    """And nothing else."""
    await resolved(registry, tmp_path)
    path = tmp_path / "sha256" / image.config.digest.removeprefix("sha256:")
    path.write_bytes(b"{}")
    registry.requests.clear()
    assert (await resolved(registry, tmp_path, f"team/app@{image.digest}")).config.cmd == ("/bin/sh",)
    assert len(registry.requests) == 1
    assert path.read_bytes() == image.config.data


async def test_a_broken_transfer_goes_on_where_it_stopped(registry: HostileRegistry, tmp_path: Path) -> None:
    """By Range, as often as it takes, for progress counts."""
    registry.faults.append(only("blobs", break_after(700_000)))
    await fetched(registry, tmp_path, retries=2)
    starts = [int(seen.range.split("=")[1].rstrip("-")) for seen in registry.requests if seen.range]
    assert len(starts) >= 4
    assert starts == sorted(starts)
    assert starts[0] > 0


async def test_a_server_that_ignores_range_is_read_past_what_we_have(
    registry: HostileRegistry, image: BuiltImage, tmp_path: Path
) -> None:
    """Each byte is still delivered once."""
    digest = image.layers[0].digest
    registry.faults.append(only(digest, once(break_after(1_500_000, ignore_range=True))))
    registry.faults.append(only(digest, break_after(10_000_000, ignore_range=True)))
    await fetched(registry, tmp_path)
    assert any(seen.range for seen in registry.requests)


async def test_silence_counts_as_a_break(registry: HostileRegistry, image: BuiltImage, tmp_path: Path) -> None:
    """After the read timeout the transfer goes on over a new connection."""
    registry.faults.append(only(image.layers[0].digest, once(break_after(1 << 20, stall=5))))
    start = time.monotonic()
    await fetched(registry, tmp_path)
    assert time.monotonic() - start < 3


async def test_a_transfer_without_progress_ends(registry: HostileRegistry, tmp_path: Path) -> None:
    """A byte at a time is no progress: the tries are counted."""
    registry.faults.append(only("blobs", break_after(1)))
    error = await refused(registry, tmp_path, retries=3)
    assert isinstance(error, Unavailable)
    assert len([seen for seen in registry.requests if "blobs" in seen.path]) <= 6


async def test_a_layer_that_drips_for_ever(registry: HostileRegistry, image: BuiltImage, tmp_path: Path) -> None:
    """Never silent, and never done: under a kilobyte a second counts as broken."""

    async def drip(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        assert document is not None
        response = web.StreamResponse()
        response.content_length = len(document.data)
        await response.prepare(request)
        for number in range(100):
            await response.write(document.data[number : number + 1])
            await asyncio.sleep(0.05)
        return response

    registry.faults.append(only(image.layers[0].digest, drip))
    start = time.monotonic()
    error = await refused(registry, tmp_path, retries=0)
    assert "bytes a second" in str(error)
    assert time.monotonic() - start < 4


async def test_a_server_that_never_answers(registry: HostileRegistry, tmp_path: Path) -> None:
    """Not before the headers, nor within them."""

    async def hang(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        await asyncio.sleep(3)
        return None

    registry.faults.append(hang)
    start = time.monotonic()
    assert isinstance(await refused(registry, tmp_path, retries=1), Unavailable)
    assert time.monotonic() - start < 2.5


async def test_an_answer_that_breaks_within_its_headers(registry: HostileRegistry, tmp_path: Path) -> None:
    """Is tried again like any other break."""

    async def cut(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Ty")  # type: ignore[attr-defined]
        request.transport.close()
        return web.Response()

    registry.faults += [once(only("v1", cut)), once(only("blobs", cut), times=2)]
    await fetched(registry, tmp_path)


async def test_headers_that_drip_for_ever(tmp_path: Path) -> None:
    """Each byte comes in time and the whole never does."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        try:
            for _ in range(100):
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.1)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        source = open_source(parse_reference(f"{host}/x"), ImageSettings(**QUICK, retries=0), tmp_path)  # type: ignore[arg-type]
        start = time.monotonic()
        with pytest.raises(Unavailable):
            await source.resolve(AMD64)
        assert time.monotonic() - start < 4
        await source.close()


async def test_nobody_listens(tmp_path: Path, registry: HostileRegistry) -> None:
    """Says where, and that it should run."""
    source = open_source(parse_reference("127.0.0.1:1/x"), ImageSettings(**QUICK, retries=1), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 cannot be connected to: Connection refused"):
        await source.resolve(AMD64)
    await source.close()


@pytest.mark.parametrize("status", [429, 503, 500, 502, 504, 408])
async def test_later_means_later(registry: HostileRegistry, tmp_path: Path, status: int) -> None:
    """Transient answers are tried again, after the time that Retry-After names."""
    registry.faults.append(once(only("v1", answer(status, headers={"Retry-After": "0"})), times=2))
    await fetched(registry, tmp_path)
    assert registry.paths().count("/v2/team/app/manifests/v1") == 3


async def test_retry_after_is_kept_to_and_bounded(registry: HostileRegistry, tmp_path: Path) -> None:
    """An hour is not waited; what the settings allow is."""
    registry.faults.append(once(only("v1", answer(429, headers={"Retry-After": "3600"}))))
    start = time.monotonic()
    await fetched(registry, tmp_path, retry_delay_limit=0.4)
    assert 0.4 <= time.monotonic() - start < 2


async def test_giving_up_repeats_what_the_registry_said(registry: HostileRegistry, tmp_path: Path) -> None:
    """Its own words, made printable, and cut."""
    registry.faults.append(
        only("v1", answer(429, errors=[{"code": "TOOMANYREQUESTS", "message": "slow\n\x1b[31mdown" + "x" * 999}]))
    )
    error = await refused(registry, tmp_path, retries=1)
    assert "429 Too Many Requests (TOOMANYREQUESTS slow" in str(error)
    assert "\x1b" not in str(error)
    assert len(str(error)) < 600


async def test_what_is_not_there(registry: HostileRegistry, tmp_path: Path) -> None:
    """Not tried again."""
    error = await refused(registry, tmp_path, "team/app:v9")
    assert isinstance(error, NotFound)
    assert f"{registry.host}/team/app:v9" in str(error)
    assert len(registry.requests) == 1


async def test_a_manifest_without_end(registry: HostileRegistry, tmp_path: Path) -> None:
    """Is read to the limit; so is one that says its length."""

    async def endless(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b" " * 65536)
        except ConnectionError:
            return response

    registry.faults.append(only("v1", endless))
    for _ in range(5):
        assert isinstance(await refused(registry, tmp_path, read_timeout=5.0), LimitExceeded)
    registry.faults[:] = [only("v1", web.Response(body=b" " * 5_000_000))]
    error = await refused(registry, tmp_path)
    assert "image.max_manifest_size" in error.hint


async def test_a_manifest_whose_digest_is_another(registry: HostileRegistry, image: BuiltImage, tmp_path: Path) -> None:
    """By tag against the header, by digest against the name; nothing is kept."""
    registry.faults.append(only("manifests", web.Response(body=b"{}", headers={"Docker-Content-Digest": image.digest})))
    assert isinstance(await refused(registry, tmp_path), DigestMismatch)
    assert isinstance(await refused(registry, tmp_path, f"team/app@{image.digest}"), DigestMismatch)
    assert not (tmp_path / "sha256").exists()


async def test_a_layer_whose_bytes_are_others(registry: HostileRegistry, image: BuiltImage, tmp_path: Path) -> None:
    """The same size, another digest: whoever verifies notices."""
    blob = image.layers[0]
    registry.faults.append(only(blob.digest, web.Response(body=bytes(len(blob.data)))))
    assert isinstance(await refused(registry, tmp_path), DigestMismatch)


@pytest.mark.parametrize("difference", [-1, 1])
async def test_a_layer_of_another_size(registry: HostileRegistry, image: BuiltImage, tmp_path: Path, difference: int) -> None:
    """Content-Length contradicts the manifest: refused before a byte is read."""
    blob = image.layers[0]
    registry.faults.append(only(blob.digest, web.Response(body=bytes(len(blob.data) + difference))))
    error = await refused(registry, tmp_path)
    assert isinstance(error, Invalid)
    assert f"its manifest says {len(blob.data)}" in str(error)


async def test_a_layer_that_goes_on_after_its_end(registry: HostileRegistry, image: BuiltImage, tmp_path: Path) -> None:
    """Without a Content-Length the excess itself is the error."""

    async def excess(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        assert document is not None
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(document.data)
        await asyncio.sleep(0.1)
        await response.write(b"more")
        return response

    registry.faults.append(only(image.layers[0].digest, excess))
    error = await refused(registry, tmp_path)
    assert isinstance(error, Invalid)
    assert "sends more" in str(error)


async def test_chunked_layers_are_fine_and_an_end_that_never_comes_is_not_waited_for(
    registry: HostileRegistry, image: BuiltImage, tmp_path: Path
) -> None:
    """All bytes are here: the connection's own end is nobody's concern."""

    async def no_end(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        assert document is not None
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(document.data)
        await asyncio.sleep(3)
        return response

    registry.faults.append(only(image.layers[0].digest, no_end))
    start = time.monotonic()
    await fetched(registry, tmp_path)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("text", ["bytes 5-9/10", "bytes 0-9/10", "nonsense", "bytes 700000-3146240/99"])
async def test_an_answer_with_another_range(registry: HostileRegistry, image: BuiltImage, tmp_path: Path, text: str) -> None:
    """A 206 must say where it begins and of how much."""
    digest = image.layers[0].digest
    registry.faults.append(only(digest, once(break_after(700_000))))
    registry.faults.append(only(digest, web.Response(status=206, body=b"x" * 10, headers={"Content-Range": text})))
    error = await refused(registry, tmp_path)
    assert isinstance(error, Invalid)
    assert "was asked for bytes" in str(error)


async def test_redirects_carry_no_credentials_to_another_host(
    registry: HostileRegistry, image: BuiltImage, tmp_path: Path
) -> None:
    """Nor to another port; the Range goes along."""
    storage = HostileRegistry("127.0.0.2")
    storage.add("cdn", image)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": {registry.host: {"username": "u", "password": "p"}}}))
    async with storage.running():

        async def challenge(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
            known = "Authorization" in request.headers
            return None if known else answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'})

        async def elsewhere(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
            return answer(307, headers={"Location": f"http://{storage.host}{request.path.replace('team/app', 'cdn')}?signed=1"})

        registry.faults += [challenge, only("blobs", elsewhere)]
        storage.faults.append(only(image.layers[0].digest, once(break_after(1 << 20))))
        await fetched(registry, tmp_path / "cache", docker_config=str(config))
    assert storage.requests
    assert all(seen.authorization is None for seen in storage.requests)
    assert any(seen.range for seen in storage.requests)
    assert any(seen.authorization for seen in registry.requests)


async def test_a_signed_url_that_expired_is_made_anew(registry: HostileRegistry, image: BuiltImage, tmp_path: Path) -> None:
    """403 from storage behind a redirect is no refusal by the registry."""
    storage = HostileRegistry("127.0.0.2")
    storage.add("cdn", image)
    async with storage.running():

        async def elsewhere(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
            return answer(307, headers={"Location": f"http://{storage.host}{request.path.replace('team/app', 'cdn')}"})

        registry.faults.append(only("blobs", elsewhere))
        storage.faults.append(once(only(image.layers[0].digest, answer(403))))
        await fetched(registry, tmp_path)


@pytest.mark.parametrize(
    ("location", "word"),
    [
        ("/v2/team/app/manifests/v1", "more than 5 times"),
        ("ftp://127.0.0.1/", "not an http"),
        ("http://user:secret@127.0.0.1/", "user name"),
        ("file:///etc/passwd", "not an http"),
    ],
)
async def test_redirects_that_lead_nowhere(registry: HostileRegistry, tmp_path: Path, location: str, word: str) -> None:
    """In circles, to other schemes, with credentials in them."""
    registry.faults.append(only("v1", answer(302, headers={"Location": location})))
    error = await refused(registry, tmp_path, retries=0)
    assert word in str(error)
    assert "secret" not in str(error)


async def test_mirrors_come_first_and_the_registry_last(registry: HostileRegistry, image: BuiltImage, tmp_path: Path) -> None:
    """One that is down, one that lacks the image, one that breaks off: none of them is the end."""
    empty, breaking = HostileRegistry("127.0.0.2"), HostileRegistry("127.0.0.3")
    breaking.add("mirror/team/app", image, tag="v1")
    breaking.faults.append(only(image.layers[0].digest, break_after(100_000)))
    async with empty.running(), breaking.running():
        mirrors = {registry.host: ("127.0.0.1:1", empty.host, f"http://{breaking.host}/mirror")}
        await fetched(registry, tmp_path, mirrors=mirrors)
    assert empty.requests
    assert any("blobs" in seen.path for seen in breaking.requests)
    assert [seen.range for seen in registry.requests if seen.range], "the registry gave the rest"
    assert registry.paths("GET").count("/v2/team/app/manifests/v1") == 0


async def test_a_mirror_that_lies_is_passed_over(registry: HostileRegistry, image: BuiltImage, tmp_path: Path) -> None:
    """A wrong digest or size at a mirror means the next endpoint."""
    liar = HostileRegistry("127.0.0.2")
    liar.faults.append(only("/v2/", web.Response(body=b"{}")))
    async with liar.running():
        await fetched(registry, tmp_path, f"team/app@{image.digest}", mirrors={registry.host: (liar.host,)})
    assert liar.requests


async def test_a_foreign_layer_that_the_registry_lacks(registry: HostileRegistry, tmp_path: Path) -> None:
    """Its URLs are never followed; the error says what to do."""
    image = build_image([LayerTar().file("x")], docker=True)
    row = image.layers[0].descriptor()
    row |= {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "urls": [f"http://{registry.host}/elsewhere"],
    }
    registry.add("team/foreign", with_manifest(image, {"layers": [row]}))
    registry.faults.append(only(image.layers[0].digest, answer(404)))
    error = await refused(registry, tmp_path, "team/foreign")
    assert isinstance(error, Unsupported)
    assert "foreign" in str(error)
    assert "/elsewhere" not in registry.paths()


async def test_cancellation_is_quick_and_leaves_nothing(registry: HostileRegistry, tmp_path: Path) -> None:
    """In the middle of a transfer that stalls, and before the headers."""

    async def hang(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        await asyncio.sleep(3)
        return None

    for fault in (only("blobs", break_after(1000, stall=3)), hang):
        registry.faults[:] = [fault]
        task = asyncio.create_task(fetched(registry, tmp_path, read_timeout=30.0))
        await asyncio.sleep(0.3)
        start = time.monotonic()
        task.cancel()
        await asyncio.wait([task])
        assert time.monotonic() - start < 0.5
        assert task.cancelled()


async def test_a_layer_left_early_frees_its_connection(registry: HostileRegistry, tmp_path: Path) -> None:
    """And the source goes on working."""
    source = opened(registry, tmp_path)
    image = await source.resolve(AMD64)
    for _ in range(20):
        async with source.open_blob(image.layers[0]) as pieces:
            async for _piece in pieces:
                break
    assert await read(source, image) == image.layers[0].size
    await source.close()


async def test_connections_are_used_again(registry: HostileRegistry, tmp_path: Path) -> None:
    """One connection serves a whole resolve and the layers after it."""
    ports = set()

    async def note(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername")[1])
        return None

    registry.faults.append(note)
    await fetched(registry, tmp_path)
    assert len(registry.requests) == 4
    assert len(ports) == 1
