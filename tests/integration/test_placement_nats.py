"""Hosts that ask one another for room, over a real NATS server that is slow, ended, or told nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from nats.aio.msg import Msg

from castoff.errors import CastoffError, Unavailable
from castoff.fleet.connection import Connection, Handler
from castoff.fleet.members import Members
from castoff.fleet.offers import Offer, Over, Question
from castoff.fleet.placement import PROMISED, Placement
from castoff.fleet.record import HostRecord
from castoff.fleet.reservations import Capacity, Reservations, Wanted
from castoff.fleet.settings import FleetSettings
from nats_servers import NatsServer, nats_server

ONE = Wanted(cpus=1, memory_mb=256)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path) as running:
        yield running


@dataclass
class Host:
    """A host whose machines are entries of a dictionary, and whose time the test may turn."""

    id: str
    total: Capacity
    share: float = 0.0
    machines: dict[str, Wanted] = field(default_factory=dict)
    skipped: float = 0.0
    asked: int = 0
    placement: Placement = field(init=False)
    members: Members = field(init=False)
    connection: Connection = field(init=False)

    def now(self) -> float:
        """Its clock."""
        return asyncio.get_running_loop().time() + self.skipped

    @property
    def free(self) -> int:
        """Processors that it could still promise."""
        return self.placement.reservations.free().cpus

    @property
    def promised(self) -> int:
        """Processors that are promised to nobody's machine yet."""
        return self.total.cpus - sum(wanted.cpus for wanted in self.machines.values()) - self.free

    def make(self, offer: Offer, machine: str, wanted: Wanted = ONE) -> bool:
        """Takes up an offer of this host."""
        if not self.placement.reservations.take(offer.promise, machine, PROMISED):
            return False
        self.machines[machine] = wanted
        used = [*self.machines.values()]
        assert sum(one.cpus for one in used) <= self.total.cpus, "over-committed"
        assert sum(one.memory_mb for one in used) <= self.total.memory_mb, "over-committed"
        return True


def _slow(lag: float) -> type[Connection]:
    """A connection of a host that takes ``lag`` seconds for everything it hears."""

    class Slow(Connection):
        async def _answer(self, message: Msg, handler: Handler) -> None:
            await asyncio.sleep(lag)
            await super()._answer(message, handler)

    return Slow if lag else Connection


@contextlib.asynccontextmanager
async def joined(
    url: str, number: int, *, cpus: int = 4, share: float = 0.0, region: str = "fra", lag: float = 0.0
) -> AsyncIterator[Host]:
    host = Host(f"{number:016x}", Capacity(cpus, 1 << 20), share)
    record = HostRecord(id=host.id, name=f"host-{number}", region=region)

    def shared(question: Question) -> tuple[float, int]:
        host.asked += 1
        return host.share, 0

    async with contextlib.AsyncExitStack() as stack:
        host.connection = await stack.enter_async_context(_slow(lag).open(FleetSettings(urls=(url,), host=record.name)))
        host.members = await stack.enter_async_context(Members.open(host.connection, lambda: record, beat=0.5))
        host.placement = await stack.enter_async_context(
            Placement.open(
                host.connection,
                host.members,
                region=region,
                total=host.total,
                reservations=Reservations(host.total, lambda: host.machines, clock=host.now),
                share=shared,
            )
        )
        yield host


@contextlib.asynccontextmanager
async def fleet(server: NatsServer, *hosts: dict[str, object]) -> AsyncIterator[list[Host]]:
    async with contextlib.AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(joined(server.url, number, **what))  # type: ignore[arg-type]
            for number, what in enumerate(hosts, start=1)
        ]
        await becomes(lambda: all(len(host.members.alive()) == len(hosts) for host in found))
        yield found


async def becomes(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_who_has_the_image_gets_the_machine(server: NatsServer) -> None:
    """The others are let go at once, also where they answer after whoever asked had heard enough."""
    async with fleet(server, {"cpus": 9}, {"cpus": 9, "share": 1.0}, {"cpus": 9, "share": 0.5}) as hosts:
        for number in range(8):
            asker = hosts[number % 3]
            offers = await asker.placement.ask("image", (), ONE, "")
            assert offers[0].host == hosts[1].id
            assert hosts[1].make(offers[0], f"m{number}")
            await asker.placement.release(offers[1:])
        await becomes(lambda: all(host.promised == 0 for host in hosts), 5)


async def test_regions_are_kept_apart(server: NatsServer) -> None:
    """A machine for one region is offered room by its hosts only; a region without hosts has none."""
    async with fleet(server, {}, {"region": "nrt"}, {"region": "a.b *>"}) as hosts:
        for host, region in zip(hosts, ("fra", "nrt", "a.b *>"), strict=True):
            offers = await hosts[0].placement.ask("image", (), ONE, region)
            assert [offer.host for offer in offers] == [host.id]
            await hosts[0].placement.release(offers)
        with pytest.raises(CastoffError):
            await hosts[0].placement.ask("image", (), ONE, "mars")


async def test_two_hundred_at_once_fill_what_there_is(server: NatsServer) -> None:
    """More askers than room, at all hosts together: each slot gets one machine, and no host two for one."""
    async with fleet(server, {"cpus": 20}, {"cpus": 10, "share": 1.0}, {"cpus": 30}) as hosts:
        by_id = {host.id: host for host in hosts}

        turns = asyncio.Semaphore(16)  # all in one process: offers shall not come too late for want of processors

        async def create(number: int) -> bool:
            async with turns:
                return await place(number)

        async def place(number: int) -> bool:
            asker, made = hosts[number % 3].placement, None
            while made is None and any(host.total.cpus > len(host.machines) for host in hosts):
                offers = await asker.ask("image", (), ONE, "fra")
                made = next((offer for offer in offers if by_id[offer.host].make(offer, f"m{number}")), None)
                await asker.release([offer for offer in offers if offer is not made])
            return made is not None

        made = await asyncio.gather(*map(create, range(200)))
        machines = [machine for host in hosts for machine in host.machines]
        assert len(machines) == len(set(machines)) == sum(made)
        assert [len(host.machines) for host in hosts] == [20, 10, 30]
        await becomes(lambda: all(host.promised == 0 for host in hosts), 5)


async def test_a_late_offer_is_nobodys(server: NatsServer) -> None:
    """A host that answers after whoever asked had heard enough is told so: its room is not kept for the time of a promise."""
    async with fleet(server, {"share": 1.0}, {"lag": 0.2}, {"lag": 0.2}) as hosts:
        offers = await hosts[0].placement.ask("image", (), ONE, "")
        assert [offer.host for offer in offers] == [hosts[0].id]
        assert hosts[0].make(offers[0], "m")
        await becomes(lambda: hosts[1].asked == hosts[2].asked == 1)
        await becomes(lambda: all(host.promised == 0 for host in hosts), 5)


async def test_whoever_asks_goes_away(server: NatsServer) -> None:
    """A client that hangs up while offers come in leaves none of them behind."""
    async with fleet(server, {}, {"region": "fra"}, {}) as hosts:
        for _ in range(20):
            asking = asyncio.create_task(hosts[0].placement.ask("image", (), ONE, ""))
            await asyncio.sleep(0.001)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await hosts[0].placement.release(await asking)
        await becomes(lambda: all(host.promised == 0 for host in hosts), 5)


async def test_what_is_heard_twice_is_promised_once(server: NatsServer) -> None:
    """A question that NATS brings again keeps no room of its own."""
    async with fleet(server, {}) as hosts:
        question = msgspec.json.encode(Question(id="a" * 16, image="image", wanted=ONE))
        place = hosts[0].connection.subject("place", b"fra".hex())
        for _ in range(3):
            await hosts[0].connection.tell(place, question)
        await becomes(lambda: hosts[0].promised == 1)
        await asyncio.sleep(0.1)
        assert hosts[0].promised == 1
        await hosts[0].connection.tell(place, msgspec.json.encode(Over(question="a" * 16)))
        await becomes(lambda: hosts[0].promised == 0)


async def test_whoever_asks_dies(server: NatsServer) -> None:
    """What it was promised is nobody's after its time."""
    async with fleet(server, {}, {}) as hosts:
        offers = await hosts[0].placement.ask("image", (), ONE, "")
        assert len(offers) == 2 and all(host.free == 3 for host in hosts)
        for host in hosts:
            host.skipped = PROMISED + 1
        assert all(host.free == 4 for host in hosts)
        assert not hosts[0].make(next(offer for offer in offers if offer.host == hosts[0].id), "late")


async def test_nats_dies_between_offer_and_release(server: NatsServer) -> None:
    """The machine is made all the same, once; what was not released ends by its time, and all go on when NATS is back."""
    async with fleet(server, {}, {}) as hosts:
        offers = await hosts[0].placement.ask("image", (), ONE, "")
        server.kill()
        await becomes(lambda: not any(host.connection.is_connected for host in hosts))
        chosen = next(host for host in hosts if host.id == offers[0].host)
        assert chosen.make(offers[0], "m")
        await hosts[0].placement.release(offers[1:])
        with pytest.raises(Unavailable):
            await hosts[0].placement.ask("image", (), ONE, "")
        for host in hosts:
            host.skipped = PROMISED + 1
        assert sorted(host.free for host in hosts) == [3, 4]
        server.start()
        await becomes(lambda: all(host.connection.is_connected and len(host.members.alive()) == 2 for host in hosts))
        assert len(await hosts[1].placement.ask("image", (), ONE, "")) == 2


async def test_nats_stands_still(server: NatsServer) -> None:
    """Nobody waits for it for long; what it delivers when it goes on keeps no room."""
    async with fleet(server, {}, {}) as hosts:
        with server.paused():
            async with asyncio.timeout(10):
                with contextlib.suppress(Unavailable):
                    assert await hosts[0].placement.ask("image", (), ONE, "") == []
        async with asyncio.timeout(20):
            while len(offers := await hosts[0].placement.ask("image", (), ONE, "")) < 2:
                await hosts[0].placement.release(offers)
        await hosts[0].placement.release(offers)
        await becomes(lambda: all(host.free == 4 for host in hosts), 5)


async def test_nonsense_is_passed_over(server: NatsServer) -> None:
    """Questions, offers and releases of whoever may write to NATS: what is none costs nobody a promise."""
    async with fleet(server, {}, {}) as hosts, Connection.open(FleetSettings(urls=(server.url,))) as stranger:
        await becomes(lambda: stranger.is_connected)
        kept = await hosts[0].placement.ask("image", (), ONE, "")
        place = stranger.subject("place", b"fra".hex())
        dice = random.Random(7)
        junk = [b"", b"[", b"null", b"[" * 50_000, b"\xff" * 100, b'{"id": 1}', b'["x"]', b"{}", bytes(dice.randbytes(900_000))]
        for data in junk:
            await stranger.tell(place, data)
            await stranger.tell(stranger.subject("release"), data)
        greedy = Question(id="f" * 16, image="i", wanted=Wanted(cpus=1024))
        await stranger.tell(place, msgspec.json.encode(greedy))

        async def lie(data: bytes) -> bytes:
            return dice.choice([*junk[:7], msgspec.json.encode(Offer(host="e" * 16, promise="e" * 16, share=1.0))])

        await stranger.serve(place, lie)
        await asyncio.sleep(0.1)
        offers = await hosts[1].placement.ask("image", (), ONE, "")
        assert {offer.host for offer in offers} == {host.id for host in hosts}
        assert [host.free for host in hosts] == [2, 2]
        await hosts[0].placement.release(kept)
        await hosts[1].placement.release(offers)
        await becomes(lambda: all(host.free == 4 for host in hosts), 5)
