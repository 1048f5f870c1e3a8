"""Connects: name look-up, TCP to the address that answers first, proxy, TLS. The result is a blocking socket.

Name look-up and TCP run in the event loop and end with the task that wants them; TLS and proxy talk happen in the
caller's thread, over a socket that has a time limit and that another thread may shut.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Iterable
from typing import Any, TypeAlias

from castoff.errors import Invalid, Unavailable
from castoff.image.proxy import Proxy
from castoff.image.unwaited import unwaited
from castoff.image.url import Origin

__all__ = ["Broken", "connect_tcp", "make_tls_context", "open_tunnel", "shut", "wrap_tls"]

_Address: TypeAlias = tuple[int, int, int, str, tuple[Any, ...]]

_STAGGER = 0.25  # seconds until the next address is tried besides (RFC 8305 says 250 ms)
_PROXY_HEAD = 16 << 10


class Broken(Unavailable):
    """A connection could not be made, broke or fell silent: trying again may help."""


async def connect_tcp(host: str, port: int, timeout: float) -> socket.socket:
    """Connects to the first address of ``host`` that answers (RFC 8305, "happy eyeballs").

    Args:
        host: A name or an address.
        port: The TCP port.
        timeout: Seconds for look-up and connection together.

    Raises:
        Unavailable: The name does not exist.
        Broken: Nobody answers.
    """
    shown = f"{host}:{port}"
    try:
        async with asyncio.timeout(timeout):
            return await _race(_interleave(await unwaited(lambda: _look_up(host, port))))
    except TimeoutError as error:
        raise Broken(
            f"{shown} does not answer within {timeout:g} s", hint="check the name, the network and any firewall"
        ) from error
    except socket.gaierror as error:
        kind = Broken if error.errno == socket.EAI_AGAIN else Unavailable
        raise kind(f"the name {host} cannot be looked up: {error.strerror}", hint="check the name and this host's DNS") from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)  # asyncio's own text repeats the address alone
        raise Broken(f"{shown} cannot be connected to: {reason}", hint="check that it runs") from error


def _look_up(host: str, port: int) -> list[_Address]:
    try:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except UnicodeError as error:  # Python's, of a label of over 63 characters
        raise socket.gaierror(socket.EAI_NONAME, "it is no host's name") from error


def _interleave(addresses: Iterable[_Address]) -> list[_Address]:
    """Families in turns, so that a broken one costs one stagger and not one for each of its addresses."""
    rows = list(addresses)
    first = [row for row in rows if row[0] == rows[0][0]]
    other = [row for row in rows if row[0] != rows[0][0]]
    mixed: list[_Address] = []
    while first or other:
        mixed += first[:1] + other[:1]
        first, other = first[1:], other[1:]
    return mixed


async def _race(addresses: list[_Address]) -> socket.socket:
    running: set[asyncio.Task[socket.socket]] = set()
    failure: OSError = OSError("it has no address")
    left = list(addresses)
    try:
        while left or running:
            if left:
                running.add(asyncio.create_task(_connect_one(left.pop(0))))
            done, running = await asyncio.wait(running, timeout=_STAGGER if left else None, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is None:
                    done.discard(task)
                    _close_all(done)
                    return task.result()
                if not isinstance(error, OSError):
                    raise error
                failure = error
        raise failure
    finally:
        for task in running:
            task.cancel()
        if running:
            finished, _ = await asyncio.wait(running)
            _close_all(finished)


def _close_all(tasks: Iterable[asyncio.Task[socket.socket]]) -> None:
    for task in tasks:
        if not task.cancelled() and task.exception() is None:
            task.result().close()


async def _connect_one(address: _Address) -> socket.socket:
    family, kind, protocol, _, target = address
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, target)
    except BaseException:
        sock.close()
        raise
    return sock


def make_tls_context(ca_file: str | None) -> ssl.SSLContext:
    """A context that trusts the system's authorities and those of ``ca_file``. Takes tens of milliseconds: call in a thread.

    Raises:
        Invalid: The file cannot be read or holds no certificate.
    """
    context = ssl.create_default_context()
    # Python 3.13 began to ask for extensions that many private authorities' certificates lack and that Docker, containerd
    # and Python 3.11 do without (https://docs.python.org/3/whatsnew/3.13.html#ssl): the same host trusts the same here.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or error
            raise Invalid(f"image.ca_file {ca_file} cannot be used: {reason}", hint="it must hold PEM certificates") from error
    return context


def wrap_tls(sock: socket.socket, origin: Origin, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Shakes hands (blocking).

    Raises:
        Unavailable: The certificate is not one that this host trusts for that name.
        Broken: The other end speaks no TLS, or broke off.
    """
    try:
        wrapped = context.wrap_socket(sock, server_hostname=origin.host, do_handshake_on_connect=False)
        try:
            wrapped.do_handshake()
        except BaseException:
            wrapped.close()
            raise
    except ssl.SSLCertVerificationError as error:
        raise Unavailable(
            f"the certificate of {origin.authority} is not trusted: {error.verify_message}",
            hint="name its authority in `image.ca_file`",
        ) from error
    except OSError as error:
        raise Broken(
            f"TLS with {origin.authority} failed: {getattr(error, 'reason', None) or error}",
            hint="if it speaks plain HTTP only and you trust the network, list it in `image.insecure_registries`",
        ) from error
    return wrapped


def open_tunnel(sock: socket.socket, origin: Origin, proxy: Proxy) -> None:
    """Asks ``proxy``, at the other end of ``sock``, for a tunnel to ``origin`` (CONNECT, RFC 9110 9.3.6); blocking.

    Raises:
        Unavailable: The proxy refuses.
        Broken: It broke off.
    """
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    target = f"{host}:{origin.port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    what = f"the proxy {proxy.host}:{proxy.port}"
    try:
        sock.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
        head = b""
        # Nothing follows the answer's head until we have begun TLS, so reading in pieces takes nothing that is not ours.
        while b"\r\n\r\n" not in head:
            piece = sock.recv(4096)
            if not piece or len(head) > _PROXY_HEAD:
                raise Broken(f"{what} broke off before it opened a tunnel to {target}")
            head += piece
    except OSError as error:
        raise Broken(f"{what} does not answer: {error}") from error
    status = head.split(b"\r\n", 1)[0].split(b" ")
    if len(status) < 2 or not status[1].startswith(b"2"):
        answer = b" ".join(status[1:])[:100].decode("ascii", "replace")
        raise Unavailable(f"{what} opens no tunnel to {target}: {answer!r}", hint="check https_proxy and no_proxy")


def shut(sock: socket.socket) -> None:
    """Ends whatever another thread does with the socket, at once; closing it stays that thread's task."""
    with contextlib.suppress(OSError):  # it may be closed or unconnected already, which is as good
        # socket.socket's own method: SSLSocket.shutdown() would take its TLS state away under the other thread.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
