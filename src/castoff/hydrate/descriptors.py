"""Open files handed from process to process: packets over unix sockets, with descriptors in them (unix(7), SCM_RIGHTS).

A packet arrives whole or not at all, its descriptors with it, so there is no framing and no half of a message. This module
and the keeper import nothing of castoff and little of Python: the keeper shall be small, and have no reason to fail.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "FILL_FLAGS",
    "MAX_DESCRIPTORS",
    "MAX_PACKET",
    "close_all",
    "connect",
    "is_ours",
    "listen",
    "open_fill",
    "receive",
    "send",
]

MAX_DESCRIPTORS = 8
"""Descriptors in one packet; the kernel would carry 253."""
MAX_PACKET = 64 * 1024
"""Bytes of one packet."""

FILL_FLAGS = os.O_RDWR | os.O_NOATIME | os.O_CLOEXEC
"""How a clone is opened for filling: before its mark, so that writing raises no event. A monitor opens its disk without
O_NOATIME, so the two can be told apart among the descriptors of a process (castoff.hydrate.takeback)."""


def open_fill(clone: Path) -> int:
    """The descriptor through which a clone is filled; must be opened before the clone is marked.

    Raises:
        OSError: It cannot be opened; EPERM where it belongs to another user.
    """
    return os.open(clone, FILL_FLAGS | os.O_NOFOLLOW)


def listen(path: Path, *, backlog: int = 64) -> socket.socket:
    """A listening packet socket at ``path``, for its owner only; what was there is replaced in one step.

    Raises:
        OSError: It cannot be made.
    """
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # An address holds 107 bytes, a state directory's path may be longer: bound through its directory's descriptor (proc(5)).
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        server.bind(f"/proc/self/fd/{directory}/{temporary.name}")
        temporary.chmod(0o600)
        server.listen(backlog)
        temporary.rename(path)  # a name that can be connected to, from its first instant
    except BaseException:
        server.close()
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(directory)
    return server


def connect(path: Path) -> socket.socket:
    """Connects to the packet socket at ``path``.

    Raises:
        OSError: Nobody listens there.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            client.connect(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
    except BaseException:
        client.close()
        raise
    return client


def is_ours(connection: socket.socket) -> bool:
    """Whether the other end was connected by root or by our own user (unix(7), SO_PEERCRED)."""
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (0, os.geteuid())


def send(connection: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """Sends one packet; the receiver gets descriptors of its own, ours stay open.

    Raises:
        OSError: The other end is gone, or the packet is larger than the socket's buffer.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(connection: socket.socket) -> tuple[bytes, tuple[int, ...]]:
    """One packet and the descriptors in it, which are the caller's to close; they are close-on-exec.

    Raises:
        EOFError: The other end has closed.
        OSError: It was cut: more bytes or descriptors than a packet may have, or than this process may open.
    """
    size = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
    data, ancillary, flags, _ = connection.recvmsg(MAX_PACKET, size, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % 4])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(descriptors)
        raise OSError("a packet was cut")
    if not data:
        close_all(descriptors)
        raise EOFError("the other end has closed")
    return data, tuple(descriptors)


def close_all(descriptors: Sequence[int]) -> None:
    """Closes each. What close(2) reports (an earlier write that failed) is of no use here, and the number is free anyway."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
