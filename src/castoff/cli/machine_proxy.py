"""``castoff machine proxy``: ports of this host that lead to those of an agent's machine, for as long as it runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final

import click

from castoff.cli.app import Command
from castoff.cli.exits import printable
from castoff.cli.globals import Globals
from castoff.cli.names import machine_names
from castoff.cli.parameters import parse_port
from castoff.cli.remote import AppOption, find_machine, on_agent
from castoff.errors import CastoffError, Conflict
from castoff.vmm.vmm import PortForward

if TYPE_CHECKING:
    from castoff.api.client import ApiClient
    from castoff.api.tunnel import Tunnel

__all__ = ["proxy"]

_CONNECTIONS: Final = 32
"""At once, as many as a machine has; more wait."""
_PIECE: Final = 64 << 10


@click.command("proxy", cls=Command)
@AppOption
# Names complete there too: whichever word is last is the name.
@click.argument(
    "ports", nargs=-1, required=True, type=parse_port, metavar="[ADDRESS:]LOCAL:REMOTE...", shell_complete=machine_names
)
@click.argument("name", shell_complete=machine_names)
@click.pass_obj
def proxy(shared: Globals, app: str, ports: tuple[PortForward, ...], name: str) -> None:
    """Listen on this host for a machine's TCP ports, until a signal ends it.

    On 127.0.0.1 unless an address is given. Connections go through the agent and the machine's init: the port need not be
    published, nor need the machine have a network.
    """
    if any(port.protocol != "tcp" for port in ports):
        raise click.UsageError("only TCP can be forwarded")

    async def work(client: ApiClient) -> None:
        machine = await find_machine(client, app, name)
        path = f"/v1/apps/{machine['app']}/machines/{machine['id']}/ports"
        async with _listening(client, path, ports):
            for port in ports:
                print(f"castoff: {_local(port)} is port {port.guest_port} of {printable(name)}", file=sys.stderr, flush=True)
            await asyncio.get_running_loop().create_future()  # a signal cancels it

    on_agent(shared, work)


@contextlib.asynccontextmanager
async def _listening(client: ApiClient, path: str, ports: Sequence[PortForward]) -> AsyncIterator[None]:
    """Takes connections for the block, and ends them with it."""
    free = asyncio.Semaphore(_CONNECTIONS)
    connections: set[asyncio.Task[None]] = set()

    async def taking(port: PortForward) -> asyncio.Server:
        def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(_serve(client, f"{path}/{port.guest_port}", free, reader, writer))
            connections.add(task)
            task.add_done_callback(connections.discard)

        return await asyncio.start_server(taken, port.host_address, port.host_port, limit=_PIECE)

    async with contextlib.AsyncExitStack() as servers:
        for port in ports:
            try:
                await servers.enter_async_context(await taking(port))
            except OSError as error:
                raise Conflict(f"{_local(port)} cannot be listened at: {os.strerror(error.errno or 0)}") from error
        try:
            yield
        finally:
            for task in (ending := list(connections)):
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)


async def _serve(
    client: ApiClient, path: str, free: asyncio.Semaphore, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """One connection; what goes wrong with it is said, and ends it alone."""
    try:
        async with free, client.tunnel(path) as tunnel:
            if not await _relay(tunnel, reader, writer):
                writer.transport.abort()
    except CastoffError as error:
        print(f"castoff: {printable(str(error))}", file=sys.stderr, flush=True)
        writer.transport.abort()  # its client must not take what came for all
    finally:
        writer.close()


async def _relay(tunnel: Tunnel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Until the machine has said its last, or one of the two has gone; whether all came through.

    Raises:
        CastoffError: The connection to the machine broke off.
    """
    receiving, sending = asyncio.create_task(_receive(tunnel, writer)), asyncio.create_task(_send(reader, tunnel))
    try:
        await asyncio.wait((receiving, sending), return_when=asyncio.FIRST_COMPLETED)
        if not receiving.done():
            sending.result()
        await receiving
    except ConnectionError:
        return False
    finally:
        for direction in (receiving, sending):
            direction.cancel()
        await asyncio.gather(receiving, sending, return_exceptions=True)
    return True


async def _receive(tunnel: Tunnel, writer: asyncio.StreamWriter) -> None:
    while data := await tunnel.read():
        writer.write(data)
        await writer.drain()


async def _send(reader: asyncio.StreamReader, tunnel: Tunnel) -> None:
    while data := await reader.read(_PIECE):
        await tunnel.write(data)
    await tunnel.end()


def _local(port: PortForward) -> str:
    address = f"[{port.host_address}]" if ":" in port.host_address else port.host_address
    return f"{address}:{port.host_port}"
