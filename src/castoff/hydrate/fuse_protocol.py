"""FUSE's wire format, as far as one read-only file needs it (linux/fuse.h, protocol 7.31, which is Linux 5.4, and later).

Every message has a header; integers are the host's own, structures padded to 8 bytes. A kernel that speaks a later minor
version sends what 7.31 has, and perhaps more after it; an INIT answer says which version and flags hold from then on.
"""

from __future__ import annotations

import enum
import stat
import struct
from typing import Final, NamedTuple

from castoff.errors import Unsupported

__all__ = [
    "HEADER",
    "MAX_READ",
    "OPEN_REPLY",
    "READ_BUFFER",
    "Attributes",
    "Opcode",
    "Read",
    "Request",
    "attributes_reply",
    "header",
    "init_reply",
    "interrupted",
    "read_arguments",
    "request",
    "statfs_reply",
]

HEADER: Final = struct.Struct("=IiQ")
"""fuse_out_header: length with it, negative errno, the request's unique."""
READ_BUFFER: Final = 8192
"""FUSE_MIN_READ_BUFFER: the kernel refuses (EINVAL) to hand out a request to a smaller buffer, however short the request."""
MAX_READ: Final = 256 * 1024
"""Bytes that one READ asks for at most."""

_REQUEST = struct.Struct("=IIQQIIIHH")
_INIT_IN = struct.Struct("=IIII")
_INIT_OUT = struct.Struct("=4I2H2I2H32x")
_READ_IN = struct.Struct("=QQIIQII")
_INTERRUPT_IN = struct.Struct("=Q")
_ATTRIBUTES_OUT = struct.Struct("=QII6Q10I")
_STATFS_OUT = struct.Struct("=5Q4I24x")
_OPEN_OUT = struct.Struct("=QII")

_MAJOR = 7
_MINOR = 31
_ASYNC_READ = 1 << 0
_ABORT_ERROR = 1 << 21
_MAX_PAGES = 1 << 22
_WANTED = _ASYNC_READ | _ABORT_ERROR | _MAX_PAGES
"""Not FUSE_ASYNC_DIO: with it, one who waits in a direct read cannot be killed (fs/fuse/file.c, fuse_direct_IO)."""
_READ_AHEAD = 128 * 1024
"""Bytes, the kernel's own default: it makes requests of that size of a sequential read."""
_BACKGROUND = 1024
"""Requests that may be under way at a time without anyone waiting in a system call. The default of 12 would let twelve
read-aheads into chunks that are not here hold up every later one into chunks that are."""
_KEEP_CACHE = 1 << 1
_NO_FLUSH = 1 << 5
_FOR_EVER = 1 << 30
"""Seconds; attributes of a file that never changes."""
_BLOCK = 4096

OPEN_REPLY: Final = _OPEN_OUT.pack(0, _KEEP_CACHE | _NO_FLUSH, 0)
"""What was cached for one who opened the file holds for the next: the file never changes. And closing it asks for nothing, so
that a process can start another one, which closes what it inherited, while there is no server (kernels before 5.16 learn it
from the first answer to a FLUSH)."""


class Opcode(enum.IntEnum):
    """Requests that are more than refused."""

    FORGET = 2
    GETATTR = 3
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    INIT = 26
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42


class Request(NamedTuple):
    """What every request begins with (fuse_in_header)."""

    length: int
    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    pid: int
    extensions: int
    padding: int


class Read(NamedTuple):
    """A READ's arguments (fuse_read_in). Bytes."""

    handle: int
    offset: int
    size: int
    read_flags: int
    lock_owner: int
    flags: int
    padding: int


class Attributes(NamedTuple):
    """The one file's attributes."""

    size: int
    """Bytes."""
    mode: int
    """Permission bits."""
    uid: int
    gid: int
    time: int
    """Seconds since 1970, of all its time stamps."""


def request(message: memoryview) -> Request:
    """The header of the request at the start of ``message``."""
    return Request(*_REQUEST.unpack_from(message))


def read_arguments(message: memoryview) -> Read:
    """The arguments of the READ at the start of ``message``."""
    return Read(*_READ_IN.unpack_from(message, _REQUEST.size))


def interrupted(message: memoryview) -> int:
    """Which request an INTERRUPT is about: its unique."""
    (unique,) = _INTERRUPT_IN.unpack_from(message, _REQUEST.size)
    return int(unique)


def header(unique: int, length: int = 0, error: int = 0) -> bytes:
    """The header of an answer that has ``length`` bytes after it, or is the errno ``error``."""
    return HEADER.pack(HEADER.size + length, -error, unique)


def init_reply(message: memoryview) -> bytes:
    """Answers INIT: what of the kernel's offer is taken.

    A kernel of a later major version is told ours and asks again (linux/fuse.h, "Version negotiation").

    Raises:
        Unsupported: The kernel speaks a protocol older than 7.31.
    """
    major, minor, read_ahead, flags = _INIT_IN.unpack_from(message, _REQUEST.size)
    if (major, minor) < (_MAJOR, _MINOR):
        raise Unsupported(f"this kernel's FUSE is {major}.{minor}, not 7.31", hint="Linux 5.4 or newer is needed")
    return _INIT_OUT.pack(
        _MAJOR,
        _MINOR,
        min(read_ahead, _READ_AHEAD),
        flags & _WANTED,
        _BACKGROUND,
        _BACKGROUND * 3 // 4,
        _BLOCK,  # max_write: no write ever comes, and the smaller it is the smaller a read buffer may be
        1,
        MAX_READ // _BLOCK,
        0,
    )


def attributes_reply(attributes: Attributes) -> bytes:
    """Answers GETATTR."""
    times = (attributes.time,) * 3
    blocks = -(-attributes.size // 512)
    mode = stat.S_IFREG | attributes.mode
    owner = (attributes.uid, attributes.gid)
    return _ATTRIBUTES_OUT.pack(_FOR_EVER, 0, 0, 1, attributes.size, blocks, *times, 0, 0, 0, mode, 1, *owner, 0, _BLOCK, 0)


def statfs_reply(size: int) -> bytes:
    """Answers STATFS: a filesystem that is full of its one file."""
    return _STATFS_OUT.pack(-(-size // _BLOCK), 0, 0, 1, 0, _BLOCK, 255, _BLOCK, 0)
