"""The list of a guest's processes, from a guest that is not to be believed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castoff.errors import Invalid
from castoff.vmm.guest import GuestCommand, GuestSettings, encode_settings
from castoff.vmm.guest_processes import GuestProcess, GuestSocket, parse_processes


def listed(pid: int, name: bytes, command: bytes, directory: bytes) -> bytes:
    """A process as guest/processes.c writes it."""
    return (
        struct.pack("<IIQQQQHHH", pid, 1, 250, 50, 1000, 4096, len(name), len(command), len(directory))
        + name
        + command
        + directory
    )


def test_a_list_is_read() -> None:
    """Words apart by spaces, seconds for ticks, nothing that could command a terminal."""
    data = listed(7, b"sh", b"sh\0-c\0echo \x1b[2J\0", b"/srv") + listed(9, b"x\xff", b"", b"")
    assert parse_processes(data) == [
        GuestProcess(7, 1, 2.5, 0.5, 10.0, 4096, "sh", "sh -c echo ?[2J", "/srv"),
        GuestProcess(9, 1, 2.5, 0.5, 10.0, 4096, "x\ufffd", "", ""),
    ]
    assert parse_processes(b"") == []


def listening(pid: int, protocol: bytes, address: bytes) -> bytes:
    """Where a process listens, as guest/processes.c writes it."""
    return struct.pack("<IIQQQQHHH", 0, pid, 0, 0, 0, 0, len(protocol), len(address), 0) + protocol + address


def test_where_processes_listen() -> None:
    """Each by its process; one that names none that is listed is left out."""
    data = listed(7, b"httpd", b"", b"/") + listening(7, b"tcp", b"0.0.0.0:80") + listening(7, b"tcp", b"[::]:\x1b80")
    found = parse_processes(data + listening(8, b"udp", b"0.0.0.0:53") + listed(9, b"sh", b"", b"/"))
    assert [process.pid for process in found] == [7, 9]
    assert found[0].sockets == (GuestSocket("tcp", "0.0.0.0:80"), GuestSocket("tcp", "[::]:?80"))
    assert found[1].sockets == ()
    with pytest.raises(Invalid, match="broken"):
        parse_processes(listening(7, b"", b"") * 65_537)


@given(st.binary(max_size=400))
def test_no_bytes_make_it_do_more_than_refuse(data: bytes) -> None:
    """Whatever a guest sends is a list of printable texts, or is refused."""
    try:
        found = parse_processes(data)
    except Invalid:
        return
    assert all((process.name + process.command + process.directory).isprintable() for process in found)


def test_a_list_is_bounded_and_whole() -> None:
    """Too many, and one that is cut off anywhere."""
    one = listed(7, b"sh", b"sh", b"/")
    with pytest.raises(Invalid, match="broken"):
        parse_processes(one * 4097)
    for cut in range(1, len(one)):
        with pytest.raises(Invalid, match="broken"):
            parse_processes(one[:cut])


@pytest.mark.parametrize(
    ("beside", "tty", "why"),
    [
        ((GuestCommand(("a",)),) * 17, False, "18 are given"),
        ((GuestCommand(("a",)),), True, "share a terminal"),
        ((GuestCommand(()),), False, "no command"),
        ((GuestCommand(("a\0b",)),), False, "NUL"),
    ],
)
def test_processes_that_cannot_be_started_are_refused(beside: tuple[GuestCommand, ...], tty: bool, why: str) -> None:
    """Before anything boots."""
    with pytest.raises(Invalid, match=why):
        encode_settings(GuestSettings(argv=("a",), beside=beside, tty=tty))
