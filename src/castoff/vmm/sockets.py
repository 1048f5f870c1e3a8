"""Unix sockets of machines: made and reached by names of any length, and through Firecracker's vsock handshake.

A socket's address holds 107 bytes, a state directory's path may be longer. So sockets are bound and reached through
/proc/self/fd/N, where N is their directory (unix(7), proc(5)).
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from castoff.errors import Unavailable

if TYPE_CHECKING:
    from castoff.vmm.vmm import VmmHandle

__all__ = ["connect_guest", "connect_unix", "listen_unix"]

_RETRY_SECONDS: Final = 0.005
_LIMIT: Final = 512 * 1024


def listen_unix(path: Path) -> socket.socket:
    """A listening socket at ``path``, for its owner only; one that an ended machine left there is replaced.

    Raises:
        OSError: It cannot be made.
    """
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        server.bind(f"/proc/self/fd/{directory}/{path.name}")
        path.chmod(0o600)
        server.listen(16)
    except BaseException:
        server.close()
        raise
    finally:
        os.close(directory)
    return server


async def connect_unix(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects to the socket at ``path``.

    Raises:
        OSError: Nobody listens there.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{path.name}", limit=_LIMIT)
    finally:
        os.close(directory)


async def connect_guest(target: VmmHandle | Path, *, control: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects to a machine's channel.

    Args:
        target: The machine's handle, or the socket itself.
        control: The handle's control channel instead of its main one.

    Raises:
        Unavailable: Nobody listens. Over vsock it is tried until the guest's init does; the caller sets the time limit.
    """
    if isinstance(target, Path):
        path, port = target, None
    elif control:
        path, port = target.control, target.control_port
    else:
        path, port = target.channel, target.channel_port
    while True:
        try:
            reader, writer = await connect_unix(path)
        except OSError as error:
            raise Unavailable(f"{path} does not answer: {error.strerror}", hint="has the machine ended?") from error
        try:
            if port is None or await _is_accepted(reader, writer, port):
                return reader, writer
        except BaseException:
            writer.close()
            raise
        writer.close()
        await asyncio.sleep(_RETRY_SECONDS)


async def _is_accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> bool:
    """Firecracker's handshake for a connection to the guest (its docs/vsock.md): it hangs up while nobody listens there."""
    try:
        writer.write(f"CONNECT {port}\n".encode())
        await writer.drain()
        answer = await reader.readuntil(b"\n")
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return False
    return answer.startswith(b"OK ")
