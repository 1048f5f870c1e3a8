"""The machines' name server, with real sockets, against a server that knows other names, and against what guests may send."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import dns.asyncquery
import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_lifecycle_addresses import machine

from castoff.agent.network.names import Names, serving_names
from castoff.lifecycle.model import Machine
from castoff.lifecycle.states import State
from daemons import free_port

MINE = "127.0.0.1"


def machines() -> list[Machine]:
    import msgspec

    own = machine("aaaaaaaaaaaaaa", MINE, "fd00::1")
    beside = machine("bbbbbbbbbbbbbb", "10.0.0.3", "fd00::3")
    cordoned = msgspec.structs.replace(machine("cccccccccccccc", "10.0.0.4", "fd00::4"), cordoned=True)
    stopped = machine("dddddddddddddd", "10.0.0.5", "fd00::5", state=State.STOPPED)
    foreign = msgspec.structs.replace(machine("eeeeeeeeeeeeee", "10.0.0.6", "fd00::6"), app="b")
    return [own, beside, cordoned, stopped, foreign]


class Elsewhere(asyncio.DatagramProtocol):
    """A server that answers everything with 192.0.2.9, after a forged answer that must not be believed."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        for number, address in ((query.id ^ 1, "192.0.2.66"), (query.id, "192.0.2.9")):
            response = dns.message.make_response(query)
            response.id = number
            response.answer = [dns.rrset.from_text(query.question[0].name, 60, "IN", "A", address)]
            self.transport.sendto(response.to_wire(), addr)


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[int]:
    """The port of a name server, which asks one elsewhere."""
    elsewhere, port = free_port(), free_port()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Elsewhere, local_addr=(MINE, elsewhere))
    try:
        async with serving_names(Names(machines, lambda: 1, [MINE], port=elsewhere), MINE, port=port):
            yield port
    finally:
        transport.close()


async def ask(port: int, name: str, kind: str = "A", *, tcp: bool = False) -> tuple[int, set[str]]:
    query = dns.message.make_query(name, kind)
    how = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    response = await how(query, MINE, port=port, timeout=5)
    return response.rcode(), {str(item) for one in response.answer for item in one}


@pytest.mark.parametrize("tcp", [False, True])
async def test_what_a_machine_is_told(tcp: bool) -> None:
    async with served() as port:
        assert await ask(port, "a.internal", tcp=tcp) == (0, {MINE, "10.0.0.3"})
        assert await ask(port, "A.Internal", "AAAA", tcp=tcp) == (0, {"fd00::1", "fd00::3"})
        assert await ask(port, "cccccccccccccc.vm.a.internal", tcp=tcp) == (0, {"10.0.0.4"})
        assert await ask(port, "a.internal", "MX", tcp=tcp) == (0, set())
        for name in ("dddddddddddddd.vm.a", "eeeeeeeeeeeeee.vm.b", "b", "x.y.z.a", "eeeeeeeeeeeeee.vm.a"):
            assert await ask(port, f"{name}.internal", tcp=tcp) == (dns.rcode.NXDOMAIN, set()), name


async def test_other_names_are_asked_elsewhere() -> None:
    async with served() as port:
        assert await ask(port, "example.com") == (0, {"192.0.2.9"})


async def test_who_is_no_machine_is_told_nothing() -> None:
    names = Names(machines, lambda: 1, [])
    query = dns.message.make_query("a.internal", "A")
    answer = await names.answer(query.to_wire(), "10.0.0.99")
    assert answer is not None and dns.message.from_wire(answer).rcode() == dns.rcode.NXDOMAIN
    other = await names.answer(dns.message.make_query("example.com", "A").to_wire(), MINE)
    assert other is not None and dns.message.from_wire(other).rcode() == dns.rcode.REFUSED


async def test_no_answer_from_elsewhere_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("castoff.agent.network.names._SECONDS", 0.1)
    answer = await Names(machines, lambda: 1, [MINE], port=free_port()).answer(
        dns.message.make_query("example.com", "A").to_wire(), MINE
    )
    assert answer is not None and dns.message.from_wire(answer).rcode() == dns.rcode.SERVFAIL


@given(st.binary(max_size=600))
def test_whatever_a_guest_sends_is_answered_or_not(data: bytes) -> None:
    """Bytes, and a real question with bytes in its place: no error, and no answer to an answer."""
    question = dns.message.make_query("a.internal", "A").to_wire()
    for sent in (data, question[: len(data) % len(question)] + data, data[:2] + question[2:]):
        answer = asyncio.run(Names(machines, lambda: 1, []).answer(sent, MINE))
        if answer is not None:
            assert dns.message.from_wire(answer).flags & dns.flags.QR
            assert answer[:2] == sent[:2]
            assert not dns.message.from_wire(sent, ignore_trailing=True).flags & dns.flags.QR


async def test_slow_and_broken_connections_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("castoff.agent.network.names._SECONDS", 0.1)
    async with served() as port:
        for sent in (b"", b"\x00", b"\xff\xff" + b"x" * 100, b"\x00\x04abcd"):
            reader, writer = await asyncio.open_connection(MINE, port)
            writer.write(sent)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        assert await ask(port, "a.internal") == (0, {MINE, "10.0.0.3"})


async def test_a_machine_that_floods_harms_itself() -> None:
    """Of a thousand questions in a moment few are looked at, and others are answered meanwhile."""
    looks = 0
    revision = 1

    def counted() -> list[Machine]:
        nonlocal looks
        looks += 1
        return machines()

    names = Names(counted, lambda: revision, [])
    let = sum(names.lets("10.0.0.3") for _ in range(1000))
    assert 200 <= let < 400
    assert names.lets(MINE)
    query = dns.message.make_query("a.internal", "A").to_wire()
    for _ in range(50):
        assert await names.answer(query, MINE) is not None
    assert looks == 1
    revision = 2
    assert await names.answer(query, MINE) is not None
    assert looks == 2
