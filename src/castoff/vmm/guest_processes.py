"""The processes of a guest, as its init lists them (docs/formats.md, "List of processes"). The guest is hostile."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final

from castoff.errors import Invalid, Unsupported
from castoff.vmm.guest import GuestSettings
from castoff.vmm.guest_session import Exit, GuestSession, Output

__all__ = ["LISTING", "GuestProcess", "GuestSocket", "parse_processes", "read_processes"]

LISTING: Final = GuestSettings(argv=("castoff-processes",), listing=True)
"""What a channel executes to get the list. An init that knows nothing of it finds no such program."""

_HEADER: Final = struct.Struct("<IIQQQQHHH")
_MAX_PROCESSES: Final = 4096
_MAX_SOCKETS: Final = 65536
_MAX_BYTES: Final = _MAX_PROCESSES * (_HEADER.size + 64 + 256 + 1024) + _MAX_SOCKETS * (_HEADER.size + 128)
_TICKS: Final = 100
"""A second has that many clock ticks in what Linux tells (USER_HZ), on every architecture that castoff boots."""


@dataclass(frozen=True, slots=True)
class GuestSocket:
    """Where a process listens: ``tcp`` or ``udp``, and ``ADDRESS:PORT``, an IPv6 address in brackets."""

    protocol: str
    address: str


@dataclass(frozen=True, slots=True)
class GuestProcess:
    """A process of a guest, by what its kernel says. Texts are printable.

    Attributes:
        pid, parent: Its number and its parent's.
        user_seconds, system_seconds: CPU time that it has used.
        started_seconds: When it started, since the guest's boot.
        rss: Bytes of memory that it has.
        name: Its name, at most 63 bytes.
        command: Its command line, words apart by spaces, at most 256 bytes; empty: it hides it, or has ended.
        directory: Its working directory; empty: unknown.
        sockets: Where it listens; none where an older castoff booted the machine.
    """

    pid: int
    parent: int
    user_seconds: float
    system_seconds: float
    started_seconds: float
    rss: int
    name: str
    command: str
    directory: str
    sockets: tuple[GuestSocket, ...] = ()


async def read_processes(session: GuestSession) -> list[GuestProcess]:
    """What a session that executes ``LISTING`` says. The caller sets a time limit: a process can make its listing hang.

    Raises:
        Unsupported: The guest's init is of an older castoff.
        Invalid: What it says is no list, or has no end.
        Unavailable: The machine ended.
    """
    said = bytearray()
    code = -1
    async for event in session.events():
        if isinstance(event, Output) and event.stream == 1:
            said += event.data
            if len(said) > _MAX_BYTES:
                await session.signal(9)
                raise Invalid("the guest's list of processes has no end", hint="its init was replaced; stop the machine")
        elif isinstance(event, Exit):
            code = event.code
    if code == 127:
        raise Unsupported(
            "this machine's guest init cannot list processes", hint="restart the machine: an older castoff booted it"
        )
    if code:
        raise Invalid(f"the guest's processes cannot be listed (exit code {code})", hint="has its /proc been unmounted?")
    return parse_processes(bytes(said))


def parse_processes(data: bytes) -> list[GuestProcess]:
    """The list in ``data``.

    Raises:
        Invalid: It is cut short, or longer than any guest's.
    """
    found: list[GuestProcess] = []
    sockets: dict[int, list[GuestSocket]] = {}
    at = count = 0
    while at < len(data):
        if len(data) - at < _HEADER.size or len(found) == _MAX_PROCESSES or count == _MAX_SOCKETS:
            raise _broken()
        pid, parent, user, system, started, rss, *lengths = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        texts = []
        for length in lengths:
            texts.append(_printable(data[at : at + length]))
            at += length
        if at > len(data):
            raise _broken()
        if pid:
            name, command, directory = texts
            times = (user / _TICKS, system / _TICKS, started / _TICKS)
            found.append(GuestProcess(pid, parent, *times, rss, name, command, directory))
        else:
            count += 1
            sockets.setdefault(parent, []).append(GuestSocket(*texts[:2]))
    return [replace(process, sockets=tuple(sockets[process.pid])) if process.pid in sockets else process for process in found]


def _broken() -> Invalid:
    return Invalid("the guest's list of processes is broken", hint="its init was replaced or crashed; stop the machine")


def _printable(text: bytes) -> str:
    words = text.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in words)
