"""The name server that machines ask: ``MACHINE.vm.APP.internal`` and ``APP.internal`` it knows, the rest this host's servers do.

A machine is told of its own app's machines only, by the address that it asks from, which the bridge holds it to. Guests are
hostile: what they send is bounded in size, number and time, and what they ask of others is passed on byte by byte.

Source: RFC 1035 (section 4.2.2 for TCP), RFC 6762 section 22.1 for why ``.internal`` is never asked of others.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset

from castoff.api.limits import Rates
from castoff.errors import Conflict
from castoff.lifecycle.model import Machine
from castoff.lifecycle.states import State

__all__ = ["Names", "serving_names"]

_ZONE: Final = dns.name.from_text("internal.")
_TTL: Final = 5
"""Seconds: machines come and go."""
_UDP_BYTES: Final = 1232
_TCP_BYTES: Final = 65535
_AT_ONCE: Final = 256
"""Questions that others are asked at once, of all machines; more are dropped, and asked again by whoever asked."""
_SECONDS: Final = 3.0
"""For an answer of another server; and for a question over TCP to be there."""
_CONNECTIONS: Final = 64
"""Over TCP at once."""
_A_SECOND: Final = 50.0
_BURST: Final = 200
"""Questions of one machine; more are dropped before they are read."""


class Names:
    """Answers questions.

    Args:
        machines: All machines that there are.
        revision: Another number after each change of them.
        resolvers: Addresses of the servers that know other names; tried in order.
        port: Theirs.
    """

    def __init__(
        self, machines: Callable[[], Iterable[Machine]], revision: Callable[[], int], resolvers: Sequence[str], *, port: int = 53
    ) -> None:
        self._machines = machines
        self._revision = revision
        self._resolvers = tuple(resolvers)
        self._port = port
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._rates = Rates(_A_SECOND, _BURST)
        self._asking: dict[str, Machine] = {}
        self._of_app: dict[str, list[Machine]] = {}
        self._looked: int | None = None

    def lets(self, client: str) -> bool:
        """Whether a machine may ask now: one that floods the server takes nobody's time but its own."""
        return not self._rates.take(client)

    async def answer(self, question: bytes, client: str, *, tcp: bool = False) -> bytes | None:
        """The answer to a message; None: it gets none.

        Args:
            question: What came.
            client: The address that it came from.
            tcp: Whether the answer may be long.
        """
        try:
            query = dns.message.from_wire(question, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError, IndexError):
            return None
        if query.flags & dns.flags.QR:
            return None
        if query.opcode() != dns.opcode.QUERY or len(query.question) != 1:
            return _refusal(query, dns.rcode.NOTIMP)
        name = query.question[0].name
        if name.is_subdomain(_ZONE):
            return self._own(query, client).to_wire(max_size=_TCP_BYTES if tcp else _UDP_BYTES)
        if not self._resolvers:
            return _refusal(query, dns.rcode.REFUSED)
        if self._free.locked():
            return None
        async with self._free:
            return await self._others(question, query, tcp)

    def _own(self, query: dns.message.Message, client: str) -> dns.message.Message:
        response = dns.message.make_response(query, recursion_available=True)
        response.flags |= dns.flags.AA
        name, kind = query.question[0].name, query.question[0].rdtype
        found = self._named(name, client)
        if found is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
            return response
        values = []
        if kind in (dns.rdatatype.A, dns.rdatatype.ANY):
            values.append(("A", [machine.address for machine in found]))
        if kind in (dns.rdatatype.AAAA, dns.rdatatype.ANY):
            values.append(("AAAA", [machine.address6 for machine in found]))
        response.answer = [dns.rrset.from_text_list(name, _TTL, "IN", kind, texts) for kind, texts in values if texts]
        return response

    def _named(self, name: dns.name.Name, client: str) -> list[Machine] | None:
        """The machines that a name means; None: it means nothing."""
        labels = [label.decode("ascii", "replace").lower() for label in name.relativize(_ZONE).labels]
        self._look()
        asking = self._asking.get(client)
        if asking is None or not labels or labels[-1] != asking.app:
            return None
        same = self._of_app[asking.app]
        match labels:
            case [_]:
                return [machine for machine in same if not machine.cordoned]
            case [id, "vm", _]:
                return [machine for machine in same if machine.id == id] or None
            case _:
                return None

    def _look(self) -> None:
        """Looks at all machines, if any of them has changed since the last question."""
        revision = self._revision()
        if revision == self._looked:
            return
        self._looked = revision
        self._asking, self._of_app = {}, {}
        for machine in self._machines():
            if machine.address and machine.state == State.STARTED:
                self._asking[machine.address] = machine
                if machine.address6:
                    self._asking[machine.address6] = machine
                self._of_app.setdefault(machine.app, []).append(machine)

    async def _others(self, question: bytes, query: dns.message.Message, tcp: bool) -> bytes:
        for resolver in self._resolvers:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(_SECONDS):
                    ask = _ask_tcp if tcp else _ask_udp
                    answer = await ask(resolver, self._port, question)
                    return question[:2] + answer[2:]
        return _refusal(query, dns.rcode.SERVFAIL)


@contextlib.asynccontextmanager
async def serving_names(names: Names, address: str, *, port: int = 53) -> AsyncIterator[None]:
    """Answers at an address, over UDP and TCP, for the block.

    Raises:
        Conflict: Another server is there.
    """
    loop = asyncio.get_running_loop()
    connections = asyncio.Semaphore(_CONNECTIONS)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not connections.locked():
                async with connections, asyncio.timeout(2 * _SECONDS):
                    await _converse(names, reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # it hung up, or was too slow: there is nobody to tell
        finally:
            writer.close()

    try:
        transport, protocol = await loop.create_datagram_endpoint(lambda: _Datagrams(names), local_addr=(address, port))
        try:
            server = await asyncio.start_server(connected, address, port)
        except OSError:
            transport.close()
            raise
    except OSError as error:
        raise Conflict(
            f"the machines' name server cannot listen at {address}:{port}: {error.strerror}",
            hint="another name server listens at all addresses: bind it to its own",
        ) from error
    try:
        yield
    finally:
        server.close()
        transport.close()
        await protocol.close()


class _Datagrams(asyncio.DatagramProtocol):
    """Questions over UDP."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: Any) -> None:
        """Where answers go."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """A question; one too many is dropped."""
        if len(data) <= _UDP_BYTES and len(self._tasks) < 2 * _AT_ONCE and self._names.lets(addr[0]):
            task = asyncio.create_task(self._answer(data, addr))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Answers no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answer(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = await self._names.answer(data, addr[0])
        if answer is not None and self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(answer, addr)


async def _converse(names: Names, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    client = str(writer.get_extra_info("peername")[0])
    if not names.lets(client):
        return
    question = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
    answer = await names.answer(question, client, tcp=True)
    if answer is not None:
        writer.write(len(answer).to_bytes(2) + answer)
        await writer.drain()


async def _ask_udp(resolver: str, port: int, question: bytes) -> bytes:
    """Asks under a number and from a port of our own, which somebody who wants to answer in its place does not know."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()
    number = secrets.token_bytes(2)

    class Answers(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            if data[:2] == number and len(data) > len(number) and not answer.done():
                answer.set_result(data)

        def error_received(self, error: Exception) -> None:
            if not answer.done():
                answer.set_exception(error)

    transport, _ = await loop.create_datagram_endpoint(Answers, remote_addr=(resolver, port))
    try:
        transport.sendto(number + question[2:])
        return await answer
    finally:
        transport.close()


async def _ask_tcp(resolver: str, port: int, question: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(resolver, port)
    try:
        writer.write(len(question).to_bytes(2) + question)
        await writer.drain()
        return await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
    finally:
        writer.close()


def _refusal(query: dns.message.Message, code: dns.rcode.Rcode) -> bytes:
    response = dns.message.make_response(query, recursion_available=True)
    response.set_rcode(code)
    return response.to_wire()
