"""The terminal: raw mode, size, input."""

import asyncio
import fcntl
import os
import pty
import struct
import termios
from pathlib import Path

import pytest

from castoff.cli.terminal import output_size, raw, read_input, write_output


def test_raw_mode_is_undone_also_by_a_failure() -> None:
    """The terminal is as it was, whatever happened."""
    leader, follower = pty.openpty()
    try:
        before = termios.tcgetattr(follower)
        with pytest.raises(ZeroDivisionError), raw(follower):
            during = termios.tcgetattr(follower)
            assert not during[3] & (termios.ECHO | termios.ISIG | termios.ICANON)
            raise ZeroDivisionError
        assert termios.tcgetattr(follower) == before
    finally:
        os.close(leader)
        os.close(follower)


def test_raw_mode_of_a_pipe_is_nothing() -> None:
    """There is nothing to set."""
    reader, writer = os.pipe()
    with raw(reader):
        pass
    os.close(reader)
    os.close(writer)


def test_size_is_that_of_the_first_terminal() -> None:
    """Pipes and terminals that nobody sized are passed over; 80 x 24 is left."""
    reader, writer = os.pipe()
    leader, follower = pty.openpty()
    try:
        assert output_size(reader, follower) == (80, 24)
        fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
        assert output_size(reader, follower) == (132, 50)
    finally:
        for descriptor in (reader, writer, leader, follower):
            os.close(descriptor)


async def _all(descriptor: int) -> bytes:
    return b"".join([piece async for piece in read_input(descriptor)])


async def test_input_of_every_kind_is_read_to_its_end(tmp_path: Path) -> None:
    """Pipes, regular files (which epoll refuses) and /dev/null."""
    data = os.urandom(300_000)
    (tmp_path / "data").write_bytes(data)
    file = os.open(tmp_path / "data", os.O_RDONLY)
    assert await _all(file) == data
    os.close(file)
    null = os.open("/dev/null", os.O_RDONLY)
    assert await _all(null) == b""
    os.close(null)
    reader, writer = os.pipe()

    def feed() -> None:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(data)

    _, read = await asyncio.gather(asyncio.to_thread(feed), _all(reader))
    assert read == data
    os.close(reader)


async def test_input_that_is_not_wanted_is_left_alone() -> None:
    """What arrives after the reader was cancelled stays in the pipe, for the shell; nothing hangs."""
    reader, writer = os.pipe()
    task = asyncio.create_task(_all(reader))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    os.write(writer, b"for the shell")
    assert os.read(reader, 100) == b"for the shell"
    os.close(reader)
    os.close(writer)


async def test_output_waits_for_a_slow_reader_and_notices_a_gone_one() -> None:
    """All bytes arrive in order through a pipe that is full at times; a closed one raises."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # as another process that shares it may have done
    data = os.urandom(1_000_000)
    received = bytearray()

    def drain() -> None:
        while len(received) < len(data):
            received.extend(os.read(reader, 5000))

    await asyncio.gather(write_output(writer, data), asyncio.to_thread(drain))
    assert received == data
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        await write_output(writer, b"x")
    os.close(writer)


def test_a_terminal_that_hung_up_is_no_failure() -> None:
    """There is nothing to restore: how the machine ended is what counts."""
    leader, follower = pty.openpty()
    with raw(follower):
        os.close(leader)
    os.close(follower)
