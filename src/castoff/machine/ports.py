"""Whether the ports that a machine is to publish are free: told before an image is fetched for it, in words of its own."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable

from castoff.errors import CastoffError, Conflict, Invalid, Unauthorized
from castoff.vmm.vmm import PortForward

__all__ = ["check_ports"]


def check_ports(ports: Iterable[PortForward]) -> None:
    """Takes every port for a moment. Another process may take one after that: then the VMM's own words have to do.

    Raises:
        Conflict: A port is in use, or published twice.
        Invalid: Its address is none, or none of this host.
        Unauthorized: This user may not listen on it.
    """
    seen = set()
    for port in ports:
        place = (port.protocol, port.host_address, port.host_port)
        if place in seen:
            raise Conflict(f"port {_name(port)} is published twice", hint="leave one --publish away")
        seen.add(place)
        try:
            socket.inet_pton(socket.AF_INET, port.host_address)
        except OSError as error:
            raise Invalid(
                f"{port.host_address!r} is no IPv4 address to publish a port on", hint="write HOST:GUEST or ADDRESS:HOST:GUEST"
            ) from error
        try:
            _take(port)
        except OSError as error:
            raise _refusal(port, error) from error


def _take(port: PortForward) -> None:
    kind = socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as QEMU: a port in TIME_WAIT is free
        probe.bind((port.host_address, port.host_port))
        if kind == socket.SOCK_STREAM:
            probe.listen(1)  # with SO_REUSEADDR two may bind, one listens


def _refusal(port: PortForward, error: OSError) -> CastoffError:
    what = f"port {_name(port)} cannot be published"
    if error.errno == errno.EADDRINUSE:
        return Conflict(f"{what}: it is in use", hint="take another, or end what listens there")
    if error.errno == errno.EADDRNOTAVAIL:
        return Invalid(f"{what}: this host does not have that address", hint="`ip address` lists those that it has")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Unauthorized(f"{what}: ports under 1024 are root's", hint="take a higher one")
    return Invalid(f"{what}: {os.strerror(error.errno or 0)}")


def _name(port: PortForward) -> str:
    return f"{port.host_address}:{port.host_port}/{port.protocol}"
