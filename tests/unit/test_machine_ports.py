"""Ports are looked at before anything is done for a machine that wants them."""

import socket

import pytest

from castoff.errors import CastoffError, Conflict, Invalid
from castoff.machine.ports import check_ports
from castoff.vmm.vmm import PortForward


def _free(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)])
def test_a_port_in_use_is_named(protocol: str, kind: socket.SocketKind) -> None:
    """And is free for its owner's next machine once it is let go."""
    wanted = PortForward(_free(kind), 80, protocol=protocol)
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
        taken.bind(("127.0.0.1", wanted.host_port))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        with pytest.raises(Conflict, match=f"127.0.0.1:{wanted.host_port}/{protocol} .* in use"):
            check_ports([wanted])
    check_ports([wanted])
    check_ports([wanted])


def test_tcp_and_udp_of_one_number_are_two_ports() -> None:
    """DNS wants both."""
    number = _free(socket.SOCK_STREAM)
    check_ports([PortForward(number, 53), PortForward(number, 53, protocol="udp")])


@pytest.mark.parametrize(
    ("ports", "kind", "word"),
    [
        ([PortForward(18080, 80), PortForward(18080, 81)], Conflict, "twice"),
        ([PortForward(18080, 80, "192.0.2.1")], Invalid, "does not have that address"),
        ([PortForward(18080, 80, "999.1.1.1")], Invalid, "no IPv4 address"),
        ([PortForward(18080, 80, "localhost")], Invalid, "no IPv4 address"),
    ],
)
def test_ports_that_cannot_be(ports: list[PortForward], kind: type[CastoffError], word: str) -> None:
    """No name is looked up, nothing is left to the VMM's own words."""
    with pytest.raises(kind, match=word):
        check_ports(ports)
