"""Hosts give one another chunks: real doors over real stores, the registry in memory, peers that lie, stall and die."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing
from pathlib import Path

import pytest
from aiohttp import web

from castoff.agent.main import running
from castoff.agent.peers.uplink import Uplink
from castoff.config import Config
from castoff.conformance.chunk_source import check_chunk_source
from castoff.errors import CastoffError, Invalid, NotFound, Unavailable
from castoff.fakes.chunk_source import FakeChunkSource
from castoff.hydrate.__main__ import _reader as hydrator_reader
from castoff.hydrate.record import FrontKind, LazyLayer, LazyRecord
from castoff.lifecycle.settings import AgentSettings
from castoff.peers.frames import indexed
from castoff.peers.peer import Peer, peer_transport
from castoff.peers.settings import PeerSettings
from castoff.peers.swarm import SwarmSource, with_peers
from castoff.peers.tls import client_context
from castoff.peers.wire import chunks_target
from castoff.rootfs.preload import fetch_layers
from castoff.sources.chunks import ChunkReader
from castoff.sources.quarantine import Quarantine
from castoff.sources.settings import SourceSettings
from castoff.sources.source import ByteRange
from castoff.sources.urgency import URGENCY, Urgency
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from fleet_authority import Authority
from packed_layer import PackedLayer, begin, random_files
from peer_hosts import put, real_pack, sharing


@pytest.fixture(name="layer")
async def _layer(tmp_path: Path) -> PackedLayer:
    return await real_pack(tmp_path / "layer", random_files(7, chunks=20))


@pytest.fixture(name="memory")
def _memory() -> Iterator[Path]:
    """A directory in memory: what is measured is who asks whom, not how long a disk takes to flush."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


class Owned(Peer):
    """A peer with a transport of its own."""

    async def close(self) -> None:
        await self._transport.close()


def peer_at(url: str, layer: PackedLayer, settings: PeerSettings | None = None) -> Peer:
    book = indexed({layer.digest: layer.index})
    return Owned(url, book, peer_transport(lambda: client_context(settings or PeerSettings())))


def registry_of(*layers: PackedLayer, **how: object) -> FakeChunkSource:
    return FakeChunkSource({layer.digest: layer.pack for layer in layers}, name="registry", **how)  # type: ignore[arg-type]


def swarm(settings: PeerSettings, layer: PackedLayer, registry: FakeChunkSource) -> ChunkReader:
    quarantine = Quarantine()
    source = with_peers(settings, indexed({layer.digest: layer.index}), registry, quarantine)
    return ChunkReader(source, quarantine)


async def fetch(reader: ChunkReader, layer: PackedLayer, numbers: list[int] | None = None) -> None:
    """Reads chunks and compares every one."""
    numbers = layer.packed if numbers is None else numbers
    found = {}
    async with aclosing(reader.fetch(layer.index, numbers)) as chunks:
        async for number, data in chunks:
            assert number not in found
            assert data == layer.chunk(number)
            found[number] = data
    assert sorted(found) == sorted(numbers)


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def impostor(answer: Answer) -> AsyncIterator[str]:
    """Something at a peer's place that answers as it likes."""
    app = web.Application()
    app.router.add_get("/{rest:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def claims_all(layer: PackedLayer, chunks: Answer) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/have"):
            return web.Response(body=b"\xff" * -(-len(layer.index.zero) // 8))
        return await chunks(request)

    return answer


async def test_a_peer_is_a_source_like_any_other(scratch_xfs: Path, layer: PackedLayer) -> None:
    """A host that has the segment and no pack answers any range of the pack, byte for byte."""
    async with sharing(scratch_xfs / "a", [layer]) as host:
        await check_chunk_source(lambda: peer_at(host.url, layer), {layer.digest: layer.pack})


async def test_peers_and_registry_are_a_source_like_any_other(scratch_xfs: Path, layer: PackedLayer) -> None:
    async with sharing(scratch_xfs / "a", [layer]) as host:
        settings = PeerSettings(urls=(host.url,))
        book = indexed({layer.digest: layer.index})
        packs = {layer.digest: layer.pack}
        await check_chunk_source(lambda: SwarmSource(settings, book, registry_of(layer), Quarantine()), packs)


async def test_without_peers_nothing_changes(layer: PackedLayer) -> None:
    """The registry itself is what is read, also where the only peer is this host."""
    registry = registry_of(layer)
    for settings in (PeerSettings(), PeerSettings(urls=("http://127.0.0.1:1",), url="http://127.0.0.1:1")):
        assert with_peers(settings, indexed({}), registry, Quarantine()) is registry


async def test_a_warm_peer_spares_the_registry(scratch_xfs: Path, layer: PackedLayer) -> None:
    """Where a host has the layer, another that comes later takes nothing from the registry."""
    registry = registry_of(layer)
    async with sharing(scratch_xfs / "a", [layer]) as host:
        reader = swarm(PeerSettings(urls=(host.url,)), layer, registry)
        await fetch(reader, layer)
        await fetch(reader, layer)
        await reader.close()
    assert registry.reads == []


async def test_a_host_gives_what_it_has_before_it_has_all(scratch_xfs: Path, layer: PackedLayer) -> None:
    """Chunks are served one by one as they come in; those that are missing are 404, and come when they are there."""
    some, rest = layer.packed[::2], layer.packed[1::2]
    async with sharing(scratch_xfs / "a") as host:
        await put(host.store, layer, some)
        peer = peer_at(host.url, layer)
        reader = ChunkReader(peer)
        await fetch(reader, layer, some)
        with pytest.raises(CastoffError):
            await fetch(reader, layer, rest)
        frames = indexed({layer.digest: layer.index})(layer.digest)
        assert frames is not None
        have = await peer.have(frames)
        assert have is not None
        assert set(layer.packed) - {number for number in layer.packed if have[number]} == set(rest)
        waiting = asyncio.create_task(peer.have(frames, known=int(have.sum()), wait=2.0))
        await asyncio.sleep(0.1)
        await put(host.store, layer, rest)
        begun = time.monotonic()
        now = await waiting
        assert now is not None
        assert now.all()
        assert time.monotonic() - begun < 1.0  # it was told, rather than asked again
        await reader.close()


async def test_strangers_stay_outside(scratch_xfs: Path, tmp_path: Path, layer: PackedLayer) -> None:
    """Another authority's certificate, or none, is refused by the server; a server of another authority by the client."""
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    async with sharing(scratch_xfs / "a", [layer], ours.settings("a", "127.0.0.1:0")) as host:
        friend = peer_at(host.url, layer, ours.settings("b"))
        assert await friend.locate(layer.digest) is not None
        await friend.close()
        for stranger in (theirs.settings("c"), PeerSettings()):
            peer = peer_at(host.url, layer, stranger)
            with pytest.raises(CastoffError):
                await peer.locate(layer.digest)
            await peer.close()


async def test_without_certificates_only_loopback_is_served(scratch_xfs: Path) -> None:
    with pytest.raises(Invalid, match="beyond loopback"):
        async with sharing(scratch_xfs / "a", settings=PeerSettings(listen="0.0.0.0:0")):
            pass


async def test_wrong_bytes_are_named_and_never_seen(layer: PackedLayer) -> None:
    """A peer that claims all and sends rubbish of the right length is named; every chunk is right, from the registry."""

    async def rubbish(request: web.Request) -> web.StreamResponse:
        size = sum(int(part.split(":")[1]) for part in request.query["of"].split(","))
        return web.Response(body=bytes(size))

    registry = registry_of(layer)
    async with impostor(claims_all(layer, rubbish)) as url:
        reader = swarm(PeerSettings(urls=(url,), patience=0.2), layer, registry)
        await asyncio.wait_for(fetch(reader, layer), 20)
        await reader.close()
    assert {wrong.source for wrong in reader.wrong} == {f"peer {url}"}
    assert registry.given >= len(layer.packed)


@pytest.mark.parametrize("manner", ["silent", "short", "endless", "missing", "busy", "huge head", "torn"])
async def test_a_peer_that_claims_all_and_gives_nothing_costs_little(layer: PackedLayer, manner: str) -> None:
    """Whatever it does instead of answering, the registry brings the chunks, in seconds."""

    async def answer(request: web.Request) -> web.StreamResponse:
        match manner:
            case "silent":
                await asyncio.sleep(3600)
            case "short":
                return web.Response(body=b"x")
            case "endless":
                stream = web.StreamResponse()
                await stream.prepare(request)
                with contextlib.suppress(ConnectionError):
                    while True:
                        await stream.write(bytes(1 << 20))
                return stream
            case "missing":
                return web.Response(status=404)
            case "busy":
                return web.Response(status=503)
            case "huge head":
                return web.Response(headers={"X": "y" * 200_000}, body=b"")
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    registry = registry_of(layer)
    async with impostor(claims_all(layer, answer)) as url:
        reader = swarm(PeerSettings(urls=(url,), patience=0.2), layer, registry)
        begun = time.monotonic()
        await asyncio.wait_for(fetch(reader, layer), 20)
        assert time.monotonic() - begun < 10
        await reader.close()


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
async def test_a_nonsense_map_is_refused(layer: PackedLayer, size: int) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=bytes(size))

    async with impostor(answer) as url:
        peer = peer_at(url, layer)
        with pytest.raises(Invalid, match="bitmap"):
            await peer.locate(layer.digest)
        await peer.close()


async def test_what_a_guest_waits_for_is_raced_when_the_peer_is_slow(layer: PackedLayer) -> None:
    """The peer has its deadline, then the registry is asked besides; the next one does not wait for the peer again."""

    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(3600)
        return web.Response()

    registry = registry_of(layer)
    async with impostor(claims_all(layer, never)) as url:
        reader = swarm(PeerSettings(urls=(url,), deadline=0.1), layer, registry)
        URGENCY.set(Urgency.WAITED_FOR)
        await fetch(reader, layer, layer.packed[:1])  # nobody knows yet what the peer has: the registry, at once
        await asyncio.sleep(0.3)
        for number, least, most in ((1, 0.1, 2.0), (2, 0.0, 0.09)):
            begun = time.monotonic()
            await fetch(reader, layer, layer.packed[number : number + 1])
            assert least <= time.monotonic() - begun < most
        await reader.close()


async def test_what_a_guest_waits_for_comes_from_a_peer_that_has_it(scratch_xfs: Path, layer: PackedLayer) -> None:
    registry = registry_of(layer)
    async with sharing(scratch_xfs / "a", [layer]) as host:
        reader = swarm(PeerSettings(urls=(host.url,), deadline=2.0), layer, registry)
        URGENCY.set(Urgency.WAITED_FOR)
        await fetch(reader, layer, layer.packed[:1])
        await asyncio.sleep(0.3)
        for number in layer.packed[1:]:
            await fetch(reader, layer, [number])
        await reader.close()
    assert registry.given == 1


async def test_the_registry_may_go_after_the_first_copy(scratch_xfs: Path, layer: PackedLayer) -> None:
    """With a registry that fails every read, the layer comes from the peer; without the peer, the failure is told."""
    gone = registry_of(layer, fails=Unavailable("the registry is gone"))
    async with sharing(scratch_xfs / "a", [layer]) as host:
        reader = swarm(PeerSettings(urls=(host.url,)), layer, gone)
        await asyncio.wait_for(fetch(reader, layer), 20)
        await reader.close()
    reader = swarm(PeerSettings(urls=(host.url,)), layer, gone)
    with pytest.raises(Unavailable, match="the registry is gone"):
        await asyncio.wait_for(fetch(reader, layer), 20)
    await reader.close()


async def test_a_hydrator_reads_from_the_peers_of_its_record(scratch_xfs: Path, layer: PackedLayer) -> None:
    """With a registry that nobody answers at, what a guest waits for and all else come from the other host."""
    mine = Store.open(scratch_xfs / "mine", StoreSettings(backing="native"))
    async with sharing(scratch_xfs / "a", [layer]) as host:
        with ExitStack() as pins:
            await begin(mine, [layer], pins)
            record = LazyRecord(
                image=str(layer.digest),
                repository="127.0.0.1:1/app",
                artifact=str(layer.digest),
                layers=(LazyLayer(diff_id=str(layer.index.diff_id), pack=str(layer.digest)),),
                size=1 << 20,
                front=FrontKind.FUSE,
                sources=SourceSettings(retries=0),
                peers=PeerSettings(urls=(host.url,)),
            )
            reader = hydrator_reader(record, mine)
            await asyncio.wait_for(fetch(reader, layer), 20)  # type: ignore[arg-type]
            URGENCY.set(Urgency.WAITED_FOR)
            await asyncio.wait_for(fetch(reader, layer, layer.packed[:1]), 20)  # type: ignore[arg-type]
            await reader.close()


async def test_an_agent_serves_its_peers_where_it_is_told_to(scratch_xfs: Path, layer: PackedLayer) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = Config(state=scratch_xfs / "state", agent=AgentSettings(listen=""), peers=PeerSettings(listen=address))
    async with running(config):
        peer = peer_at(f"http://{address}", layer)
        assert await peer.locate(layer.digest) is None
        await put(Store.open(config.state), layer)
        assert await peer.locate(layer.digest) is not None
        await peer.close()


async def test_four_cold_hosts_cost_the_registry_little_more_than_one_copy(tmp_path: Path, memory: Path) -> None:
    """They begin together, each takes its shares, and gives them to the others while it still fetches."""
    layer = await real_pack(tmp_path / "large", random_files(8, chunks=80))
    registry = registry_of(layer, delay=0.1)
    async with contextlib.AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(sharing(memory / str(number))) for number in range(4)]
        urls = tuple(host.url for host in hosts)

        async def preload(number: int) -> None:
            reader = swarm(PeerSettings(urls=urls, url=urls[number], patience=5.0), layer, registry)
            with ExitStack() as pins:
                await fetch_layers(await begin(hosts[number].store, [layer], pins), reader, hosts[number].store)
            await reader.close()

        await asyncio.wait_for(asyncio.gather(*map(preload, range(4))), 60)
        for host in hosts:
            stored = host.store.layer(layer.index.diff_id)
            assert stored is not None
            assert stored.complete
            assert stored.segment.read_bytes() == layer.segment
    assert len(layer.packed) <= registry.given <= 1.5 * len(layer.packed)


async def test_requests_are_bounded(scratch_xfs: Path, layer: PackedLayer) -> None:
    """Too many chunks, too long ones, and what is no number are refused before anything is read."""
    async with sharing(scratch_xfs / "a", [layer]) as host:
        peer = peer_at(host.url, layer)
        diff_id = layer.index.diff_id
        for target in (
            chunks_target(diff_id, [(0, 10)] * 65),
            chunks_target(diff_id, [(0, 1 << 21)]),
            chunks_target(diff_id, [(number, 300_000) for number in range(20)]),
            f"/v1/layers/{diff_id.hex}/chunks?of=",
            f"/v1/layers/{diff_id.hex}/chunks?of=-1:10",
            f"/v1/layers/{diff_id.hex}/have?wait=nan",
            f"/v1/layers/{diff_id.hex}/have?wait=1e9",
        ):
            with pytest.raises(Unavailable, match="status 400"):
                await peer._get(target, 1000)
        assert await peer._get(chunks_target(diff_id, [(10**8, 10)]), 1000) is None
        with pytest.raises(Unavailable, match="status 409"):
            await peer._get(chunks_target(diff_id, [(layer.packed[0], 10)]), 1000)
        await peer.close()


async def test_an_unknown_pack_is_not_here(scratch_xfs: Path, layer: PackedLayer) -> None:
    async with sharing(scratch_xfs / "a") as host:
        peer = peer_at(host.url, layer)
        assert await peer.locate(layer.digest) is None
        with pytest.raises(NotFound):
            async with aclosing(peer.read(layer.digest, [ByteRange(30, 40)])) as pieces:
                await anext(pieces)
        await peer.close()


async def test_bulk_gives_way_and_keeps_to_its_limit() -> None:
    """While something urgent is sent, or this host boots, bulk waits, and not for ever; the limit is of all of it."""
    uplink = Uplink(1_000_000)
    async with uplink.urgent():
        turn = asyncio.create_task(uplink.turn(1))
        await asyncio.sleep(0.1)
        assert turn.done()  # it is not held for ever
        turn = asyncio.create_task(uplink.turn(1))
        await asyncio.sleep(0.01)
        assert not turn.done()
    await asyncio.wait_for(turn, 0.5)
    begun = time.monotonic()
    await asyncio.gather(*(uplink.turn(100_000) for _ in range(6)))
    assert 0.3 < time.monotonic() - begun < 1.5
    for busy in (lambda: True, lambda: False):
        begun, uplink = time.monotonic(), Uplink(busy=busy)
        for _ in range(10):
            await uplink.turn(1)
        assert (time.monotonic() - begun > 0.09) is busy()


def test_the_store_is_opened_as_it_is(scratch_xfs: Path) -> None:
    """The fixture's store reflinks: what these tests say of segments holds on the filesystem that hosts use."""
    assert Store.open(scratch_xfs / "s", StoreSettings(backing="native")).reflink
