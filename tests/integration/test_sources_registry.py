"""Packs from a real docker-registry, behind a proxy that does everything wrong once."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from castoff.conformance.chunk_source import check_chunk_source
from castoff.errors import CastoffError, NotFound, Unauthorized, Unavailable
from castoff.image.digest import Digest
from castoff.image.settings import ImageSettings
from castoff.sources.chunks import ChunkReader
from castoff.sources.quarantine import Quarantine
from castoff.sources.registry import RegistrySource
from castoff.sources.settings import SourceSettings
from castoff.sources.source import ByteRange
from daemons import Registry, registry
from faulty_proxy import (
    Answer,
    Delay,
    Fault,
    FaultyProxy,
    IgnoreRange,
    OtherRange,
    Reset,
    Stall,
    Truncate,
    WrongBytes,
    dice,
    faulty_proxy,
    in_turn,
    of_blobs,
    once,
)
from packed_layer import PackedLayer, packed_layer, random_files

QUICK = SourceSettings(timeout=0.5, retries=3)
HURRIED = ImageSettings(retry_delay=0.02, retry_delay_limit=0.2)


@pytest.fixture(scope="module")
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def layer(docker_registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> PackedLayer:
    """A layer whose pack is in the repository team/app."""
    packed = asyncio.run(packed_layer(tmp_path_factory.mktemp("layer") / "layer", random_files(7, chunks=40), gap=100))
    push(docker_registry.host, "team/app", packed.pack)
    return packed


def push(host: str, repository: str, data: bytes) -> None:
    """A blob, in one piece."""
    start = urllib.request.Request(f"http://{host}/v2/{repository}/blobs/uploads/", method="POST")
    with urllib.request.urlopen(start, timeout=10) as answer:
        location = answer.headers["Location"]
    url = f"{location}{'&' if '?' in location else '?'}digest={Digest.of(data)}"
    put = urllib.request.Request(url, data, {"Content-Type": "application/octet-stream"}, method="PUT")
    with urllib.request.urlopen(put, timeout=60) as answer:
        assert answer.status == 201


@pytest.fixture
def proxy(docker_registry: Registry) -> Iterator[FaultyProxy]:
    with faulty_proxy(docker_registry.host) as running:
        yield running


@pytest.fixture
async def source(proxy: FaultyProxy) -> AsyncIterator[RegistrySource]:
    source = RegistrySource(f"{proxy.host}/team/app", QUICK, HURRIED)
    yield source
    await source.close()


@pytest.fixture
async def reader(source: RegistrySource) -> AsyncIterator[ChunkReader]:
    reader = ChunkReader(source)
    yield reader
    await reader.close()


async def fetch(reader: ChunkReader, layer: PackedLayer, numbers: list[int] | None = None) -> None:
    wanted = layer.packed if numbers is None else numbers
    found = []
    async with aclosing(reader.fetch(layer.index, wanted)) as chunks:
        async for number, chunk in chunks:
            assert chunk == layer.chunk(number)
            found.append(number)
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize("redirects", [False, True])
async def test_the_registry_is_a_source(proxy: FaultyProxy, layer: PackedLayer, redirects: bool) -> None:
    """Straight, and with redirects to storage."""
    proxy.redirects = redirects
    await check_chunk_source(lambda: RegistrySource(f"{proxy.host}/team/app", QUICK, HURRIED), {layer.digest: layer.pack})


async def test_neighbours_are_one_request(source: RegistrySource, proxy: FaultyProxy, layer: PackedLayer) -> None:
    """And gaps are read over; so 40 chunks of 10 MB are two requests of at most 8 MiB."""
    where = layer.index.locations
    ranges = [ByteRange(int(where.offset[n]), int(where.offset[n] + where.length[n])) for n in layer.packed]
    found = [piece async for piece in source.read(layer.digest, ranges)]
    assert len(found) == len(ranges)
    assert len(proxy.blobs()) == 2
    assert all(request.sent <= 8 << 20 for request in proxy.blobs())


@pytest.mark.parametrize(
    "fault",
    [
        Reset(0),
        Reset(100_000),
        Truncate(0),
        Truncate(100_000),
        Stall(0),
        Stall(100_000),
        Answer(200),  # and nothing in it
        Answer(401),
        Answer(429, (("Retry-After", "0"),)),
        Answer(500),
        Answer(503),
        Delay(0.1),
        IgnoreRange(),
    ],
)
async def test_what_passes_is_not_seen(reader: ChunkReader, proxy: FaultyProxy, layer: PackedLayer, fault: Fault) -> None:
    """Each fault, in the first request and again later: all chunks come, right, and nobody is blamed."""
    proxy.choose = once(fault, times=2)
    await fetch(reader, layer)
    await fetch(reader, layer, layer.packed[-3:])
    assert [request.fault for request in proxy.blobs()].count(fault) == 2
    assert not reader.wrong


async def test_only_what_is_missing_is_asked_again(reader: ChunkReader, proxy: FaultyProxy, layer: PackedLayer) -> None:
    """A transfer that broke after 4 MB goes on near there."""
    proxy.choose = once(Reset(4_000_000))
    await fetch(reader, layer)
    assert sum(request.sent for request in proxy.blobs()) < len(layer.pack) + 400_000


@pytest.mark.parametrize("fault", [WrongBytes(10), OtherRange(1), Answer(404), Answer(403)])
async def test_what_is_wrong_fails_and_is_asked_again_later(
    reader: ChunkReader, proxy: FaultyProxy, layer: PackedLayer, fault: Fault
) -> None:
    """Wrong bytes, another range, a refusal: an error that names the registry; never a chunk."""
    proxy.choose = once(fault)
    number = layer.packed[5]
    with pytest.raises(CastoffError, match=f"{proxy.host}") as raised:
        await fetch(reader, layer, [number])
    assert isinstance(raised.value, NotFound if fault == Answer(404) else Unavailable)
    if isinstance(fault, WrongBytes):
        assert reader.wrong[0].number == number
        await asyncio.sleep(0.3)  # not asked at all for that long
    await fetch(reader, layer, [number])


async def test_a_server_that_ignores_range_is_read_once(reader: ChunkReader, proxy: FaultyProxy, layer: PackedLayer) -> None:
    """Not for each chunk: the pack comes whole, and all that is asked for is served from it."""
    proxy.choose = lambda request: IgnoreRange() if of_blobs(request) else None
    await fetch(reader, layer, layer.packed[:1])
    assert len(proxy.blobs()) == 1
    await asyncio.gather(*(fetch(reader, layer, [number]) for number in reversed(layer.packed[-8:])))
    asked = len(proxy.blobs())
    await fetch(reader, layer)
    assert len(proxy.blobs()) == asked
    wholes = [request for request in proxy.blobs() if request.range is None]
    assert [request.sent for request in wholes] == [len(layer.pack)]
    assert not reader.wrong


async def test_a_whole_pack_that_breaks_goes_on(proxy: FaultyProxy, layer: PackedLayer, tmp_path: Path) -> None:
    """After a reset midway; a pack that is gone fails for who waits, and comes when it is back; no file is left."""
    reader = ChunkReader(RegistrySource(f"{proxy.host}/team/app", QUICK, HURRIED, spool=tmp_path))
    proxy.choose = in_turn(IgnoreRange(), IgnoreRange(), Reset(3_000_000), Answer(404))
    await fetch(reader, layer, layer.packed[:1])
    with pytest.raises(NotFound):
        await fetch(reader, layer, layer.packed[-1:])
    await fetch(reader, layer)
    assert [request.sent for request in proxy.blobs()][2:] == [3_000_000, 0, len(layer.pack)]
    await reader.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_token_that_expires_is_renewed(reader: ChunkReader, proxy: FaultyProxy, layer: PackedLayer) -> None:
    """Between requests, and while several are under way."""
    proxy.tokens = True
    await fetch(reader, layer, layer.packed[:4])
    proxy.expire_tokens()
    await asyncio.gather(*(fetch(reader, layer, [number]) for number in layer.packed))
    assert 1 <= len([request for request in proxy.seen if request.path == "/token"]) <= 4


async def test_a_redirect_that_expires_is_renewed(reader: ChunkReader, proxy: FaultyProxy, layer: PackedLayer) -> None:
    """And as long as it holds, the registry is not asked: one round trip a request."""
    proxy.redirects = True
    for number in layer.packed[:5]:
        await fetch(reader, layer, [number])
    assert len(proxy.blobs()) == 6
    proxy.expire_urls()
    await fetch(reader, layer)
    assert [request.status for request in proxy.blobs()].count(403) >= 1
    proxy.choose = once(Reset(100_000))
    await fetch(reader, layer)


async def test_storage_that_is_gone_is_not_asked_for_ever(
    reader: ChunkReader, proxy: FaultyProxy, layer: PackedLayer, docker_registry: Registry
) -> None:
    """Where the registry stops redirecting, it is asked itself."""
    proxy.redirects = True
    await fetch(reader, layer, layer.packed[:1])
    proxy.redirects = False
    proxy._run(proxy._servers.pop("storage").cleanup())
    await fetch(reader, layer)


async def test_a_registry_that_is_down_is_unavailable_and_comes_back(
    reader: ChunkReader, proxy: FaultyProxy, layer: PackedLayer
) -> None:
    """In the midst of a fetch, too."""
    proxy.choose = once(Stall(100_000), times=2)
    fetching = asyncio.create_task(fetch(reader, layer))
    await asyncio.sleep(0.2)
    await asyncio.to_thread(proxy.go_down)
    with pytest.raises(Unavailable, match=f"registry {proxy.host}/team/app"):
        await fetching
    await asyncio.to_thread(proxy.come_up)
    await fetch(reader, layer)


async def test_a_fetch_takes_no_longer_than_its_tries(proxy: FaultyProxy, layer: PackedLayer) -> None:
    """A registry that always stalls: an error within the time that the settings give."""
    proxy.choose = lambda request: Stall(50_000) if of_blobs(request) else None
    reader = ChunkReader(RegistrySource(f"{proxy.host}/team/app", SourceSettings(timeout=0.3, retries=1), HURRIED))
    began = time.monotonic()
    with pytest.raises(Unavailable, match="fell silent"):
        await fetch(reader, layer, layer.packed[:1])
    assert time.monotonic() - began < 3
    await reader.close()


async def test_an_unknown_pack_is_nowhere(source: RegistrySource, proxy: FaultyProxy, layer: PackedLayer) -> None:
    """No error, by locate; of one that is there the size is known."""
    located = await source.locate(layer.digest)
    assert located is not None
    assert located.size == len(layer.pack)
    assert await source.locate(Digest.of(b"nothing")) is None
    proxy.tokens, proxy.choose = True, lambda request: Answer(401)
    with pytest.raises(Unauthorized):
        await source.locate(Digest.of(b"nothing"))


async def test_it_all_goes_wrong_at_random(proxy: FaultyProxy, layer: PackedLayer) -> None:
    """Half of all requests fail in some way; whoever goes on asking has every chunk, and none wrong."""
    settings = SourceSettings(timeout=0.2, retries=1, quarantine=0.5)
    reader = ChunkReader(RegistrySource(f"{proxy.host}/team/app", settings, HURRIED), Quarantine(settings.quarantine))
    proxy.choose = dice(seed=5, rate=0.5)
    left, failures = set(layer.packed), 0
    end = time.monotonic() + 60
    while left:
        assert time.monotonic() < end
        try:
            async with aclosing(reader.fetch(layer.index, sorted(left)[:2])) as chunks:
                async for number, chunk in chunks:
                    assert chunk == layer.chunk(number)
                    left.remove(number)
        except CastoffError:
            failures += 1
            await asyncio.sleep(0.02)
    assert failures
    await reader.close()
