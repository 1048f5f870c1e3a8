"""One builder a layer in the whole fleet: real stores, real doors between hosts, a real nats-server, a registry that counts."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web

from castoff.errors import CastoffError, Invalid
from castoff.fleet.lease import LeaseState, read_lease
from fleet_hosts import TTL, FleetHost, fleet_host
from hostile_registry import HostileRegistry
from nats_servers import NatsServer, nats_server
from oci_builder import Blob, BuiltImage, LayerTar, build_image


@pytest.fixture(name="nats")
def _nats(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture(name="registry")
async def _registry() -> AsyncIterator[HostileRegistry]:
    registry = HostileRegistry()
    async with registry.running():
        yield registry


def image(seed: int, layers: int = 2) -> BuiltImage:
    """An image whose layers nobody has yet; the second file is large enough for chunks of its own."""
    tars = [
        LayerTar().file(f"etc/{seed}-{n}", b"small").file(f"data/{n}", bytes([seed, n]) * 400_000).directory("empty")
        for n in range(layers)
    ]
    return build_image(tars, cmd=["true"])


def sent(registry: HostileRegistry, built: BuiltImage) -> Counter[str]:
    """How often the registry gave each layer's blob."""
    names = {layer.digest for layer in built.layers}
    return Counter(path.rpartition("/")[2] for path in registry.paths("GET") if path.rpartition("/")[2] in names)


class Slowly:
    """A fault that keeps layers back until told otherwise."""

    def __init__(self, built: BuiltImage) -> None:
        self.layers = {layer.digest for layer in built.layers}
        self.asked = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        if document is not None and document.digest in self.layers:
            self.asked.set()
            await self.go.wait()
        return None


async def make(host: FleetHost, reference: str) -> None:
    await host.host.build_rootfs(reference, size=64 << 20)


async def connected(*hosts: FleetHost) -> None:
    async with asyncio.timeout(20):
        while not all(host.connection.is_connected for host in hosts):
            await asyncio.sleep(0.01)


async def test_of_three_hosts_that_begin_together_one_converts_each_layer(
    scratch_xfs: Path, nats: NatsServer, registry: HostileRegistry
) -> None:
    """The registry sends every layer once; all hosts have the same bytes."""
    built = image(1, layers=3)
    registry.add("app", built)
    async with contextlib.AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(fleet_host(scratch_xfs, nats.url, n)) for n in range(3)]
        await connected(*hosts)
        published: list[str] = []
        for host in hosts:
            name = host.record.name
            tell = partial(lambda name, image: published.append(name), name)
            host.host.providers = replace(host.host.providers, converted=tell)
        await asyncio.gather(*(make(host, f"{registry.host}/app") for host in hosts))
        builders = {cell.value for cell in (await hosts[0].bucket.all()).values()}
        assert sorted(published) == sorted({json.loads(value)["name"] for value in builders})
        assert list(sent(registry, built).values()) == [1, 1, 1]
        assert hosts[0].segments == hosts[1].segments == hosts[2].segments
        assert len(hosts[0].segments) == 3
        late = await stack.enter_async_context(fleet_host(scratch_xfs, nats.url, 3))
        await connected(late)
        await make(late, f"{registry.host}/app")
        assert late.segments == hosts[0].segments
        assert sum(sent(registry, built).values()) == 3


async def test_when_the_builder_dies_another_goes_on(scratch_xfs: Path, nats: NatsServer, registry: HostileRegistry) -> None:
    """Its connection is gone in mid-conversion and its lease is not given back: it runs out, and one of the others converts."""
    built = image(2, layers=1)
    slowly = Slowly(built)
    registry.add("app", built)
    registry.faults.append(slowly)
    async with contextlib.AsyncExitStack() as stack:
        dying, *others = [await stack.enter_async_context(fleet_host(scratch_xfs, nats.url, n)) for n in range(3)]
        await connected(dying, *others)
        first = asyncio.create_task(make(dying, f"{registry.host}/app"))
        await slowly.asked.wait()
        rest = [asyncio.create_task(make(host, f"{registry.host}/app")) for host in others]
        await asyncio.sleep(0.2)
        assert sum(sent(registry, built).values()) == 1
        dying.bucket.is_cut = True
        registry.faults.clear()
        async with asyncio.timeout(10 * TTL + 20):
            await asyncio.gather(*rest)
        assert sum(sent(registry, built).values()) == 2
        assert others[0].segments == others[1].segments != {}
        slowly.go.set()
        await first  # had it only been cut off: it ends what it began, and nobody minds


async def test_a_builder_that_is_cancelled_gives_its_turn_back(
    scratch_xfs: Path, nats: NatsServer, registry: HostileRegistry
) -> None:
    built = image(3, layers=1)
    slowly = Slowly(built)
    registry.add("app", built)
    registry.faults.append(slowly)
    async with fleet_host(scratch_xfs, nats.url, 0) as one, fleet_host(scratch_xfs, nats.url, 1) as other:
        await connected(one, other)
        first = asyncio.create_task(make(one, f"{registry.host}/app"))
        await slowly.asked.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        cell = await one.bucket.get(f"layer.{built.diff_ids[0].removeprefix('sha256:')}")
        assert cell is not None
        assert read_lease(cell).state is LeaseState.FREE
        registry.faults.clear()
        await make(other, f"{registry.host}/app")


@pytest.mark.parametrize("reason", ["cut off", "serves nobody", "too slow", "not trusted"])
async def test_it_is_never_worse_than_alone(scratch_xfs: Path, nats: NatsServer, registry: HostileRegistry, reason: str) -> None:
    """Whatever is the matter with the fleet or with the other host, this one converts for itself."""
    built = image(4, layers=1)
    slowly = Slowly(built)
    registry.add("app", built)
    builder = fleet_host(scratch_xfs, nats.url, 0, serves=reason != "serves nobody")
    key = None if reason == "not trusted" else bytes(range(32))
    async with builder as one, fleet_host(scratch_xfs, nats.url, 1, key=key, wait=0.5) as other:
        await connected(one, other)
        if reason == "cut off":
            nats.kill()
        elif reason == "not trusted":
            await make(one, f"{registry.host}/app")
        else:
            registry.faults.append(slowly)
            first = asyncio.create_task(make(one, f"{registry.host}/app"))
            await slowly.asked.wait()
            registry.faults.clear()
        before = sum(sent(registry, built).values())
        await make(other, f"{registry.host}/app")
        assert sum(sent(registry, built).values()) == before + 1
        assert other.segments
        slowly.go.set()
        if reason in ("serves nobody", "too slow"):
            await first
        if reason == "not trusted":
            assert any("does not trust" in line for line in other.said)


async def test_a_host_that_lost_its_layer_is_passed_over(scratch_xfs: Path, nats: NatsServer, registry: HostileRegistry) -> None:
    """It is said to have it, and has it no more: the next who needs it converts, and is the one to ask from then on."""
    built = image(5, layers=1)
    registry.add("app", built)
    async with contextlib.AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(fleet_host(scratch_xfs, nats.url, n)) for n in range(3)]
        await connected(*hosts)
        await make(hosts[0], f"{registry.host}/app")
        await hosts[0].host.prune()
        assert not hosts[0].segments
        await make(hosts[1], f"{registry.host}/app")
        await make(hosts[2], f"{registry.host}/app")
        assert sum(sent(registry, built).values()) == 2


async def test_a_broken_layer_costs_an_order_one_conversion_and_a_create_its_own(
    scratch_xfs: Path, nats: NatsServer, registry: HostileRegistry
) -> None:
    """Who does its part of an order takes the first host's failure for an answer, with its reason."""
    built = build_image([b"this is no tar" * 1000])
    registry.add("app", built)
    async with fleet_host(scratch_xfs, nats.url, 0) as one, fleet_host(scratch_xfs, nats.url, 1) as other:
        await connected(one, other)
        with pytest.raises(Invalid) as alone:
            await make(one, f"{registry.host}/app")
        other.host.providers = replace(other.host.providers, builds=other.builds.for_orders())
        with pytest.raises(Invalid, match="as host host-0 found") as told:
            await make(other, f"{registry.host}/app")
        assert all("wrong checksum" in error.value.what for error in (alone, told))
        assert sum(sent(registry, built).values()) == 1
    async with fleet_host(scratch_xfs, nats.url, 2) as third:
        await connected(third)
        with pytest.raises(CastoffError):
            await make(third, f"{registry.host}/app")
        assert sum(sent(registry, built).values()) == 2
