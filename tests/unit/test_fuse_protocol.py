"""FUSE's wire format: sizes and fields as linux/fuse.h has them; the log of requests."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from castoff.errors import Unsupported
from castoff.hydrate import fuse_protocol as wire
from castoff.hydrate.fuse_requests import SLOT, SLOTS, RequestLog

HEAD = struct.Struct("=IIQQIIIHH")


def message(opcode: int, arguments: bytes, unique: int = 7) -> memoryview:
    return memoryview((HEAD.pack(HEAD.size + len(arguments), opcode, unique, 1, 0, 0, 42, 0, 0) + arguments).ljust(SLOT, b"\xee"))


def init(major: int, minor: int, flags: int = 0xFFFFFFFF, read_ahead: int = 1 << 20) -> memoryview:
    return message(26, struct.pack("=IIII", major, minor, read_ahead, flags))


def test_requests_are_read() -> None:
    """Header and arguments."""
    found = wire.request(message(15, b""))
    assert (found.opcode, found.unique, found.node, found.pid) == (15, 7, 1, 42)
    asked = wire.read_arguments(message(15, struct.pack("=QQIIQII", 1, 1 << 40, 4096, 0, 0, 0, 0)))
    assert (asked.offset, asked.size) == (1 << 40, 4096)
    assert wire.interrupted(message(36, struct.pack("=Q", 99))) == 99


@pytest.mark.parametrize("minor", [31, 45])
def test_what_a_kernel_offers_is_taken_in_part(minor: int) -> None:
    """Of 5.4 and of later ones: the version that both speak, and no flag that changes what an answer looks like."""
    reply = wire.init_reply(init(7, minor))
    assert len(reply) == 64
    major, ours, read_ahead, flags, background, congested, max_write, _, pages = struct.unpack_from("=4I2H2IH", reply)
    assert (major, ours, read_ahead) == (7, 31, 128 * 1024)
    assert flags == 1 << 0 | 1 << 21 | 1 << 22
    assert congested < background == 1024
    assert HEAD.size + 40 + max_write <= wire.READ_BUFFER
    assert pages * 4096 == wire.MAX_READ


def test_flags_that_are_not_offered_are_not_taken() -> None:
    """Nor is more read-ahead than the kernel does."""
    assert struct.unpack_from("=4I", wire.init_reply(init(7, 31, flags=1, read_ahead=4096))) == (7, 31, 4096, 1)


def test_kernels_that_are_too_old_are_refused_and_newer_ones_told() -> None:
    """A later major version is answered with ours: the kernel asks again."""
    with pytest.raises(Unsupported, match=r"is 7\.30, not 7\.31"):
        wire.init_reply(init(7, 30))
    assert struct.unpack_from("=II", wire.init_reply(init(8, 0))) == (7, 31)


def test_answers_have_the_kernels_sizes() -> None:
    """The kernel refuses an answer of any other length (fs/fuse/dev.c, copy_out_args)."""
    attributes = wire.attributes_reply(wire.Attributes(size=5000, mode=0o400, uid=1, gid=2, time=3))
    assert len(attributes) == 104
    assert struct.unpack_from("=QII3Q", attributes)[3:] == (1, 5000, 10)
    assert struct.unpack_from("=4I", attributes, 76) == (0o100400, 1, 1, 2)
    assert len(wire.statfs_reply(5000)) == 80
    assert len(wire.OPEN_REPLY) == 16
    assert wire.header(7, 10) == struct.pack("=IiQ", 26, 0, 7)
    assert wire.header(7, error=5) == struct.pack("=IiQ", 16, -5, 7)


def test_a_log_tells_what_was_not_answered(tmp_path: Path) -> None:
    """To the next who opens it; freed slots go round, and what is left is given to nobody."""
    log = RequestLog(tmp_path / "log")
    assert log.left == []
    slots = [log.take() for _ in range(SLOTS)]
    assert sorted(slots) == list(range(SLOTS))
    for slot in slots[:3]:
        log.message(slot)[:] = message(15, b"")
    log.free(slots[0])
    assert log.take() == slots[0]
    log.close()
    successor = RequestLog(tmp_path / "log")
    assert successor.left == sorted(slots[1:3])
    assert wire.request(successor.message(slots[1])).unique == 7
    assert not {successor.take() for _ in range(SLOTS - 2)} & set(successor.left)
    successor.free(slots[2])
    assert successor.take() == slots[2]
    successor.close()
