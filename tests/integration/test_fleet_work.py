"""Orders of a fleet, done: real stores, doors and conversions, a nats-server that is killed and comes back, one registry."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from castoff.agent.fleet.attempt import Attempt
from castoff.agent.fleet.pace import local_time
from castoff.errors import NoSpace, Unavailable
from castoff.fleet.orders import Order, OrderState, Part, PartState, encode, new_order
from castoff.fleet.record import HostRecord
from fleet_hosts import PACE, TTL, FleetHost, fleet_host
from hostile_registry import HostileRegistry
from nats_servers import NatsServer, nats_cluster, nats_server
from oci_builder import Blob, BuiltImage, LayerTar, build_image

_SIZE = 64 << 20
Host = Callable[..., Awaitable[FleetHost]]


@pytest.fixture(name="nats")
def _nats(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture(name="registry")
async def _registry() -> AsyncIterator[HostileRegistry]:
    registry = HostileRegistry()
    async with registry.running():
        yield registry


@pytest.fixture(name="host")
async def _host(scratch_xfs: Path, nats: NatsServer) -> AsyncIterator[Host]:
    """Hosts that work at orders, until the end of the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def opened(number: int, **how: object) -> FleetHost:
            found = await stack.enter_async_context(fleet_host(scratch_xfs, nats.url, number, works=True, **how))  # type: ignore[arg-type]
            await connected(found)
            return found

        yield opened


def image(seed: int) -> BuiltImage:
    return build_image([LayerTar().file(f"data-{seed}", bytes([seed]) * 300_000)], cmd=["true"])


async def connected(host: FleetHost) -> None:
    async with asyncio.timeout(20):
        while not host.connection.is_connected:
            await asyncio.sleep(0.01)


async def eventually(what: Callable[[], Awaitable[object]], seconds: float = 60) -> object:
    """What is found at last; a server that is away is asked again."""
    found: object = None
    async with asyncio.timeout(seconds):
        while not found:
            with contextlib.suppress(Unavailable):
                found = await what()
            await asyncio.sleep(0.02)
    return found


async def give(host: FleetHost, *images: str, **how: object) -> Order:
    order = new_order(images, size=_SIZE, **how)  # type: ignore[arg-type]
    await host.book.give(order)
    return order


async def states(host: FleetHost, order: Order) -> dict[str, PartState]:
    return {part.name: part.state for part in await host.book.parts(order.id)}


async def all_done(host: FleetHost, order: Order, *names: str) -> None:
    async def done() -> bool:
        return await states(host, order) == dict.fromkeys(names, PartState.DONE)

    await eventually(done)


async def part_of(host: FleetHost, order: Order, whose: FleetHost, enough: Callable[[Part], object]) -> Part:
    async def look() -> Part | None:
        part = await host.book.part(order.id, whose.record.id)
        return part if part is not None and enough(part) else None

    found = await eventually(look)
    assert isinstance(found, Part)
    return found


async def ended(host: FleetHost, order: Order, state: OrderState = OrderState.FAILED) -> Order:
    async def look() -> Order | None:
        now = await host.book.order(order.id)
        return now if now.state is state else None

    found = await eventually(look)
    assert isinstance(found, Order)
    return found


def sent(registry: HostileRegistry, built: BuiltImage) -> int:
    """How often the registry gave a layer of the image."""
    names = {layer.digest for layer in built.layers}
    return sum(path.rpartition("/")[2] in names for path in registry.paths("GET"))


class Slowly:
    """A fault that keeps layers back until told otherwise."""

    def __init__(self, *built: BuiltImage) -> None:
        self.layers = {layer.digest for one in built for layer in one.layers}
        self.asked = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        if document is not None and document.digest in self.layers:
            self.asked.set()
            await self.go.wait()
        return None


async def test_every_chosen_host_does_its_part(host: Host, registry: HostileRegistry) -> None:
    """And nobody else; a host that comes later does it when it comes. The registry sends the layer once."""
    built = image(1)
    registry.add("app", built)
    one, two, other = await host(0), await host(1), await host(2, region="ams")
    order = await give(one, f"{registry.host}/app", hosts="region=fra")
    await all_done(one, order, "host-0", "host-1")
    late = await host(3)
    await all_done(one, order, "host-0", "host-1", "host-3")
    assert one.segments == two.segments == late.segments != {}
    assert not other.segments
    assert sent(registry, built) == 1
    assert (await one.book.order(order.id)).digests == (built.digest,)
    assert await one.host.rootfs()


async def test_an_order_for_two_hosts_is_done_by_two(host: Host, registry: HostileRegistry) -> None:
    registry.add("app", image(2))
    hosts = [await host(n) for n in range(4)]
    order = await give(hosts[0], f"{registry.host}/app", hosts="2")

    async def two() -> bool:
        return sorted((await states(hosts[0], order)).values()) == [PartState.DONE, PartState.DONE]

    await eventually(two)
    await asyncio.sleep(2.0)  # longer than a lease
    assert await two()
    assert sum(bool(found.segments) for found in hosts) == 2


async def test_a_host_that_was_off_does_its_part_when_it_returns(
    host: Host, scratch_xfs: Path, nats: NatsServer, registry: HostileRegistry
) -> None:
    """Off when the order was given, and off again in the middle of it; an end in good order is no failed attempt."""
    built = image(4)
    slowly = Slowly(built)
    registry.add("app", built)
    registry.faults.append(slowly)
    giver = await host(0, region="ams")
    order = await give(giver, f"{registry.host}/app", hosts="region=fra")
    async with fleet_host(scratch_xfs, nats.url, 1, works=True) as first:
        await connected(first)
        await slowly.asked.wait()
        running = await part_of(giver, order, first, lambda part: part.state is PartState.RUNNING)
        assert running.attempts == 1
        slowly.go.set()
        registry.faults.append(Slowly(built))
    left = await giver.book.part(order.id, first.record.id)
    assert left is not None
    registry.faults.clear()
    again = await host(1)
    done = await part_of(giver, order, again, lambda part: part.state is PartState.DONE)
    assert done.attempts <= 2
    assert again.segments


async def test_what_is_cancelled_stops_everywhere(host: Host, registry: HostileRegistry) -> None:
    built = image(5)
    slowly = Slowly(built)
    registry.add("app", built)
    registry.faults.append(slowly)
    one = await host(0)
    order = await give(one, f"{registry.host}/app")
    await slowly.asked.wait()
    assert (await one.book.cancel(order.id)).state is OrderState.CANCELLED
    part = await part_of(one, order, one, lambda part: part.state is PartState.CANCELLED)
    assert part.attempts == 0
    registry.faults.clear()
    slowly.go.set()
    late = await host(1)
    await asyncio.sleep(1.0)
    assert not late.segments
    assert not one.segments


async def test_nats_may_go_and_come_back(host: Host, nats: NatsServer, registry: HostileRegistry) -> None:
    """The order is on its disk; what was under way goes on meanwhile, and is told when it is back."""
    first, second = image(6), image(7)
    slowly = Slowly(first)
    for name, built in (("one", first), ("two", second)):
        registry.add(name, built)
    registry.faults.append(slowly)
    one = await host(0)
    order = await give(one, f"{registry.host}/one", f"{registry.host}/two")
    await slowly.asked.wait()
    nats.kill()
    slowly.go.set()
    await asyncio.sleep(0.5)
    nats.start()
    await all_done(one, order, "host-0")
    later = await give(one, f"{registry.host}/two")
    await all_done(one, later, "host-0")
    assert len(one.segments) == 2


async def test_a_cluster_loses_a_server(scratch_xfs: Path, tmp_path: Path, registry: HostileRegistry) -> None:
    """Any of three, the one that leads the orders among them: what was given is done, and more can be given."""
    first, second = image(18), image(19)
    slowly = Slowly(first)
    registry.add("one", first)
    registry.add("two", second)
    registry.faults.append(slowly)
    with nats_cluster(tmp_path / "cluster") as servers:
        urls = " ".join(server.url for server in servers)
        async with fleet_host(scratch_xfs, urls, 0, works=True, replicas=3) as one:
            await connected(one)

            async def given() -> Order:
                return await give(one, f"{registry.host}/one")

            order = await eventually(given)
            assert isinstance(order, Order)
            async with asyncio.timeout(30):
                await slowly.asked.wait()
            info = await one.connection.jetstream().stream_info(f"KV_{one.connection.bucket_name('orders')}")
            assert info.cluster is not None
            next(server for server in servers if server.name == info.cluster.leader).kill()
            slowly.go.set()
            await all_done(one, order, "host-0")
            later = await eventually(lambda: give(one, f"{registry.host}/two"))
            assert isinstance(later, Order)
            await all_done(one, later, "host-0")
            assert len(one.segments) == 2


async def test_a_standing_order_follows_its_tag(host: Host, registry: HostileRegistry) -> None:
    """One look an interval for all hosts; a new digest is everywhere before anybody asks; cancelled, it is followed no more."""
    old, new, newest = image(8), image(9), image(10)
    registry.add("app", old, tag="prod")
    one, two = await host(0), await host(1)
    order = await give(one, f"{registry.host}/app:prod", keep=True)
    await all_done(one, order, "host-0", "host-1")
    before = len(registry.requests)
    await asyncio.sleep(1.1)
    looks = [seen.method for seen in registry.requests[before:]]
    assert set(looks) == {"HEAD"}
    assert 2 <= len(looks) <= 8  # two hosts that looked every 0.2 s would be 11
    registry.add("app", new, tag="prod")

    async def both_have_two() -> bool:
        return len(one.segments) == len(two.segments) == 2

    await eventually(both_have_two)
    await eventually(lambda: _is_generation(one, order, 1))
    assert (await one.book.order(order.id)).digests == (new.digest,)
    await one.book.cancel(order.id)
    registry.add("app", newest, tag="prod")
    await asyncio.sleep(0.8)
    assert len(one.segments) == 2


async def _is_generation(host: FleetHost, order: Order, generation: int) -> bool:
    parts = await host.book.parts(order.id)
    return all((part.generation, part.state) == (generation, PartState.DONE) for part in parts)


async def test_a_standing_order_for_two_hosts_stays_on_them(host: Host, registry: HostileRegistry) -> None:
    """Whose part it is does not change with what the tag means."""
    old, new = image(15), image(16)
    registry.add("app", old, tag="prod")
    hosts = [await host(n) for n in range(4)]
    order = await give(hosts[0], f"{registry.host}/app:prod", hosts="2", keep=True)

    async def two_have(layers: int) -> bool:
        return sorted(len(one.segments) for one in hosts) == [0, 0, layers, layers]

    await eventually(lambda: two_have(1))
    registry.add("app", new, tag="prod")
    await eventually(lambda: two_have(2))
    await asyncio.sleep(TTL + 0.5)
    assert await two_have(2)
    assert len(await states(hosts[0], order)) == 2


async def test_its_hours_are_those_of_the_host_s_clock(host: Host, registry: HostileRegistry) -> None:
    """Outside of them it waits, and says until when and by which clock; when they end in mid-work it stops: no failure."""
    built = image(11)
    slowly = Slowly(built)
    registry.add("app", built)
    registry.faults.append(slowly)
    clock = datetime(2030, 3, 1, 0, 59, 59, 500_000, tzinfo=timezone(timedelta(hours=2), "EET"))
    began = asyncio.get_running_loop().time()
    skipped = timedelta()

    def now() -> datetime:
        return clock + skipped + timedelta(seconds=asyncio.get_running_loop().time() - began)

    clock -= timedelta(seconds=1.5)
    one = await host(0, now=now)
    order = await give(one, f"{registry.host}/app", window="01:00-01:01")
    waits = await part_of(one, order, one, lambda part: part.state is PartState.WAITING)
    assert waits.reason == "until 01:00 EET, by its own clock"
    assert not slowly.asked.is_set()
    skipped = timedelta(seconds=57)
    await slowly.asked.wait()
    assert now().minute == 0
    closed = await part_of(one, order, one, lambda part: part.state is PartState.WAITING and part.reason.startswith("until"))
    assert closed.attempts == 0
    assert not one.segments


async def test_an_image_that_is_not_there_costs_one_host_one_look(host: Host, registry: HostileRegistry) -> None:
    one, two = await host(0), await host(1)
    order = await give(one, f"{registry.host}/nothing")
    failed = await ended(one, order)
    assert "nothing" in failed.reason
    assert await two.book.parts(order.id) == []
    assert len([path for path in registry.paths() if "/nothing/manifests/" in path]) <= 2


async def test_a_broken_layer_ends_the_order_at_one_host_s_cost(host: Host, registry: HostileRegistry) -> None:
    built = build_image([b"this is no tar" * 1000])
    registry.add("app", built)
    one = await host(0)
    await host(1)
    order = await give(one, f"{registry.host}/app")
    failed = await ended(one, order)
    assert "wrong checksum" in failed.reason
    assert "host-" in failed.reason
    assert sent(registry, built) == 1


async def test_a_host_that_the_registry_refuses_has_failed_at_once(host: Host, registry: HostileRegistry) -> None:
    """Another attempt would be refused as well; the order is open to hosts with other credentials."""
    built = image(12)
    registry.add("app", built)
    layer = built.layers[0].digest

    async def refuses(request: web.Request, document: Blob | None) -> web.StreamResponse | None:
        return web.Response(status=403) if request.path.endswith(layer) else None

    registry.faults.append(refuses)
    one = await host(0)
    order = await give(one, f"{registry.host}/app")
    part = await part_of(one, order, one, lambda part: part.state is PartState.FAILED)
    assert part.reason
    assert part.attempts == 1
    assert (await one.book.order(order.id)).state is OrderState.OPEN


async def test_a_part_that_killed_its_host_five_times_is_left(host: Host, registry: HostileRegistry) -> None:
    registry.add("app", image(13))
    one = await host(0, labels={"no": "yes"})
    order = await give(one, f"{registry.host}/app", hosts="label=is=poisoned")
    part = Part(order=order.id, host=f"{1:016x}", name="host-1", state=PartState.RUNNING, attempts=5)
    await one.book.tell(part)
    victim = await host(1, labels={"is": "poisoned"})
    left = await part_of(one, order, victim, lambda part: part.state is PartState.FAILED)
    assert "each of 5 attempts" in left.reason
    assert not victim.segments


async def test_orders_go_when_they_are_over_for_long(host: Host, registry: HostileRegistry) -> None:
    """Seven days after they were given, or ended; one that stands, and one that was cancelled just now, stay."""
    registry.add("app", image(17), tag="prod")
    one = await host(0)
    long_ago = int(time.time()) - 8 * 86400
    kept = {"images": (f"{registry.host}/app:prod",), "created": long_ago, "hosts": "host=nobody"}
    await one.book.give(Order(id="00000000000a", **kept))
    await one.book.give(Order(id="00000000000b", state=OrderState.FAILED, ended=long_ago, **kept))
    await one.book.give(Order(id="00000000000c", keep=True, **kept))
    await one.book.give(Order(id="00000000000d", keep=True, **kept))
    await one.book.tell(Part(order="00000000000b", host=f"{7:016x}"))
    await one.book.cancel("00000000000d")

    async def two_are_left() -> bool:
        return set(await one.book.cells()) == {"00000000000c", "00000000000d"}

    await eventually(two_are_left)
    await asyncio.sleep(0.3)
    assert await two_are_left()
    assert await one.book.parts("00000000000b") == []


async def test_a_mistake_of_our_own_ends_like_any_failure(host: Host, registry: HostileRegistry) -> None:
    """What no code foresaw is tried as often as the rest, and told; so is what the disk has no room for."""
    one = await host(0, labels={"no": "work"})
    order = await give(one, f"{registry.host}/app", hosts="host=nobody")
    opened = msgspec.structs.replace(order, state=OrderState.OPEN, digests=(f"sha256:{'a' * 64}",))

    for number, error in enumerate((ValueError("no code foresaw this"), NoSpace("the disk", needed=2, available=1)), start=1):
        attempts = 0

        async def make(image: str, order: Order, error: Exception = error) -> None:
            nonlocal attempts
            attempts += 1
            raise error

        me = HostRecord(id=f"{number:016x}", name="broken", region="fra")
        pace = replace(PACE, back_off=0.001)
        attempt = Attempt(one.book, opened, me, make, pace, local_time, asyncio.Semaphore(1))
        part = await attempt.run()
        assert (part.state, part.attempts, attempts) == (PartState.FAILED, 5, 5)
        assert str(error).split(";")[0] in part.reason


_FOREIGN = {"id": "0123456789ab", "images": ["app"], "shell": "rm -rf /"}


_LONG = b'{"id":"0123456789ab","images":[' + b'"a",' * 5000 + b'"a"]}'


@pytest.mark.parametrize(
    "rubbish", [b"\xff\x00", b"[]", json.dumps(_FOREIGN).encode(), _LONG], ids=["bytes", "list", "foreign", "long"]
)
async def test_rubbish_in_an_order_s_place_becomes_a_failed_order(host: Host, registry: HostileRegistry, rubbish: bytes) -> None:
    """With the reason, readable by all; and the next order is done."""
    registry.add("app", image(14))
    one = await host(0)
    await one.book._orders.set("0123456789ab", rubbish)
    await one.book._orders.set("no-order", rubbish)
    order = await give(one, f"{registry.host}/app")
    await all_done(one, order, "host-0")

    async def refused() -> bool:
        found = {key: cell.value for key, cell in (await one.book.cells()).items()}
        return set(found) == {"0123456789ab", order.id} and b'"failed"' in found["0123456789ab"]

    await eventually(refused)
    assert (await one.book.order("0123456789ab")).reason
    assert encode(await one.book.order(order.id))
