"""The host's end of the guest channel against guests that speak well, late, badly and with malice."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castoff.errors import Invalid, Unavailable
from castoff.vmm import frames
from castoff.vmm.channel import GuestChannel
from castoff.vmm.guest import GuestSettings
from castoff.vmm.guest_session import Exit, Output, Ready
from castoff.vmm.sockets import connect_unix, listen_unix

NONCE = bytes(range(16))
HELLO = 4096 + 8 + 16 + 1


def frame(kind: int, payload: bytes = b"", *, stream: int = 0, session: int = 0) -> bytes:
    """A guest's frame."""
    return struct.pack("<BBHI", kind, stream, session, len(payload)) + payload


def welcome(nonce: bytes, version: int = 1) -> bytes:
    return frame(16, b"castoff\n" + nonce + struct.pack("<I", version))


def data(offset: int, text: bytes, *, stream: int = 1, session: int = 0) -> bytes:
    return frame(18, struct.pack("<Q", offset) + text, stream=stream, session=session)


def end(offset: int, *, stream: int = 1) -> bytes:
    return frame(19, struct.pack("<Q", offset), stream=stream)


def exited(code: int, signal: int = 0, flags: int = 0, message: bytes = b"", session: int = 0) -> bytes:
    return frame(21, struct.pack("<iiI", code, signal, flags) + message, session=session)


READY = frame(17, struct.pack("<QQQ", 1_000_000_000, 50_000_000, 1_200_000_000))


def decode(*pieces: bytes) -> list[frames.GuestFrame]:
    decoder = frames.Decoder(NONCE)
    return [found for piece in pieces for found in decoder.feed(piece)]


def test_frames_come_out_whole_however_they_are_cut() -> None:
    """At every cut in two, and byte by byte; what came before the welcome is skipped."""
    stream = (
        b"rest of a predecessor's"
        + welcome(NONCE)
        + READY
        + frame(22)
        + data(7, b"abc")
        + end(10, stream=2)
        + exited(3, message=b"why")
    )
    expected = [
        frames.Ready(0, 1_000_000_000, 50_000_000, 1_200_000_000),
        frames.Told(0),
        frames.Data(0, 1, 7, b"abc"),
        frames.End(0, 2, 10),
        frames.Exit(0, 3, 0, False, "why"),
    ]
    assert decode(*(bytes([byte]) for byte in stream)) == expected
    for cut in range(len(stream)):
        assert decode(stream[:cut], stream[cut:]) == expected


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_no_bytes_make_the_decoder_do_more_than_refuse(pieces: list[bytes]) -> None:
    """Any bytes after a welcome end in frames within bounds or in Invalid, and never in a large buffer."""
    decoder = frames.Decoder(NONCE)
    try:
        for piece in (welcome(NONCE), *pieces):
            for found in decoder.feed(piece):
                assert isinstance(found, frames.GuestFrame)
    except Invalid:
        return
    assert sum(map(len, pieces)) < 32 * 1024 or len(pieces) == 20


@given(st.binary(max_size=200), st.integers(0, 3), st.integers(0, 255))
def test_a_mutated_frame_is_refused_or_has_a_meaning(noise: bytes, stream: int, kind: int) -> None:
    """Every type, stream and payload."""
    try:
        found = decode(welcome(NONCE) + frame(kind, noise, stream=stream))
    except Invalid:
        return
    assert len(found) == 1
    if isinstance(found[0], frames.Exit):
        assert 0 <= found[0].code <= 255 and found[0].message.isprintable()


@pytest.mark.parametrize(
    "said",
    [
        frame(18, b"", stream=1),
        frame(18, struct.pack("<Q", 0), stream=1),
        data(0, b"x", stream=3),
        data(0, b"x", stream=0),
        frame(99),
        frame(17, b"short"),
        exited(-1),
        exited(0, 65),
        exited(256),
        exited(1, message=b"m" * 513),
        struct.pack("<BBHI", 18, 1, 0, 1 << 31),
    ],
)
def test_what_the_protocol_does_not_allow_is_refused(said: bytes) -> None:
    """Each with an error that says what it was."""
    with pytest.raises(Invalid, match="broke the channel's protocol"):
        decode(welcome(NONCE) + said)


def test_another_version_is_told() -> None:
    """A guest that an older castoff booted."""
    with pytest.raises(Invalid, match="speaks version 2"):
        decode(welcome(NONCE, 2))


def test_a_guest_that_never_greets_is_given_up() -> None:
    """Garbage without end does not fill the memory."""
    decoder = frames.Decoder(NONCE)
    with pytest.raises(Invalid, match="no welcome"):
        for _ in range(100):
            assert list(decoder.feed(bytes(100_000))) == []


def test_control_characters_never_reach_a_terminal() -> None:
    """An exit's message is the guest's."""
    (found,) = decode(welcome(NONCE) + exited(127, message=b"\x1b[2Jno \xff such\n"))
    assert isinstance(found, frames.Exit)
    assert found.message == "?[2Jno \ufffd such?"


Guest = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]


@asynccontextmanager
async def connected(directory: Path, guest: Guest) -> AsyncIterator[GuestChannel]:
    """A channel to a guest that ``guest`` plays, greeted."""
    path = directory / "channel.sock"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = await reader.readexactly(HELLO)
        assert hello[:4096] == bytes(4096) and hello[4096] == 1 and hello[-1:] == b"\xa5"
        nonce = hello[4104:4120]
        writer.write(welcome(nonce))
        try:
            await guest(reader, writer, nonce)
        finally:
            writer.close()

    with listen_unix(path) as listener:
        server = await asyncio.start_unix_server(serve, sock=listener)
        try:
            async with await GuestChannel.connect(path, 5) as channel:
                yield channel
        finally:
            server.close()
            await server.wait_closed()


async def host_frame(reader: asyncio.StreamReader) -> tuple[int, int, int, bytes]:
    """A frame of the host's: type, stream, session, payload."""
    kind, stream, session, length = struct.unpack("<BBHI", await reader.readexactly(8))
    payload = await reader.readexactly(length)
    assert await reader.readexactly(1) == b"\xa5"
    return kind, stream, session, payload


async def test_a_command_from_ready_to_exit(tmp_path: Path) -> None:
    """Events come in order, and the exit is acknowledged."""
    closed = asyncio.Event()

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, nonce: bytes) -> None:
        writer.write(
            READY + data(0, b"out") + data(0, b"err", stream=2) + data(3, b"put") + end(6) + end(3, stream=2) + exited(5)
        )
        assert (await host_frame(reader))[0] == 9
        closed.set()

    async with connected(tmp_path, guest) as channel:
        events = [event async for event in channel.events()]
        await asyncio.wait_for(closed.wait(), 5)
    assert events == [
        Ready(1.0, 0.05, 1.2),
        Output(1, b"out", 0),
        Output(2, b"err", 0),
        Output(1, b"put", 3),
        Exit(5, 0, False, ""),
    ]


async def test_acknowledgements_follow_the_consumer_not_the_socket(tmp_path: Path) -> None:
    """A guest that fills its window gets no more room until somebody has taken what is there."""
    acknowledged: list[int] = []

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, nonce: bytes) -> None:
        for at in range(0, frames.OUTPUT_WINDOW, 16384):
            writer.write(data(at, bytes(16384)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(host_frame(reader), 0.2)
        ready.set()
        while len(acknowledged) < 4:
            kind, stream, _, payload = await host_frame(reader)
            assert (kind, stream) == (4, 1)
            acknowledged.append(struct.unpack("<Q", payload)[0])
        writer.write(exited(0))
        await host_frame(reader)

    ready = asyncio.Event()
    async with connected(tmp_path, guest) as channel:
        await ready.wait()
        events = [event async for event in channel.events()]
    assert acknowledged == [65536, 131072, 196608, 262144]
    assert sum(len(event.data) for event in events if isinstance(event, Output)) == frames.OUTPUT_WINDOW


@pytest.mark.parametrize(
    "said",
    [
        data(0, b"abc") + data(4, b"a gap"),
        data(0, b"abc") + data(2, b"again"),
        b"".join(data(at, bytes(16384)) for at in range(0, frames.OUTPUT_WINDOW + 1, 16384)),
        data(0, b"abc") + end(4),
        frame(20, struct.pack("<Q", 0)) + frame(20, struct.pack("<Q", 1)),
        b"\xff" * 64,
    ],
)
async def test_a_guest_that_cheats_is_cut_off(tmp_path: Path, said: bytes) -> None:
    """Gaps, repetitions, more than its window, acknowledgements of what was never sent."""

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, nonce: bytes) -> None:
        writer.write(said)
        await reader.read()

    async with connected(tmp_path, guest) as channel:
        await asyncio.sleep(0.1)  # nobody takes anything, so the window stays where it is
        with pytest.raises(Invalid):
            async for _ in channel.events():
                pass


async def test_a_machine_that_ends_early_is_an_error_after_all_it_said(tmp_path: Path) -> None:
    """What came is delivered first."""

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, nonce: bytes) -> None:
        writer.write(data(0, b"last words"))

    async with connected(tmp_path, guest) as channel:
        events = channel.events()
        assert await anext(events) == Output(1, b"last words", 0)
        with pytest.raises(Unavailable, match="ended before its command did"):
            await anext(events)
        with pytest.raises(Unavailable):
            await channel.send_stdin(b"x")


async def test_input_waits_for_the_guests_room_and_ends_with_its_command(tmp_path: Path) -> None:
    """64 KiB ahead, no byte more; and a sender that waits is let go when there is nobody left to read."""
    received = bytearray()

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, nonce: bytes) -> None:
        writer.write(frame(20, struct.pack("<Q", 100)))  # a predecessor sent the first hundred
        while len(received) < frames.INPUT_WINDOW:
            kind, _, _, payload = await host_frame(reader)
            assert kind == 2 and struct.unpack_from("<Q", payload)[0] == 100 + len(received)
            received.extend(payload[8:])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.2)
        writer.write(frame(20, struct.pack("<Q", 110)))
        received.extend((await host_frame(reader))[3][8:])
        writer.write(exited(0))
        await reader.read()

    async with connected(tmp_path, guest) as channel:
        sending = asyncio.create_task(channel.send_stdin(bytes(100_000)))
        assert [event async for event in channel.events()] == [Exit(0, 0, False, "")]
        await asyncio.wait_for(sending, 5)
    assert len(received) == frames.INPUT_WINDOW + 10


async def test_sessions_beside_the_command_do_not_hold_each_other_up(tmp_path: Path) -> None:
    """One session's events wait unread; another's arrive."""

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, nonce: bytes) -> None:
        numbers = []
        while len(numbers) < 2:
            kind, _, session, _ = await host_frame(reader)
            if kind == 8:
                numbers.append(session)
        writer.write(b"".join(data(at, bytes(16384), session=numbers[0]) for at in range(0, frames.OUTPUT_WINDOW, 16384)))
        writer.write(data(0, b"hello", session=numbers[1]) + exited(0, session=numbers[1]))
        writer.write(data(0, b"of nobody", session=77))
        await reader.read()

    async with connected(tmp_path, guest) as channel:
        first = await channel.execute(GuestSettings(argv=("one",), env=tuple(f"A{number}={'x' * 100}" for number in range(100))))
        second = await channel.execute(GuestSettings(argv=("two",)))
        async with asyncio.timeout(5):
            assert [event async for event in second.events()] == [Output(1, b"hello", 0), Exit(0, 0, False, "")]
            taken = 0
            async for event in first.events():
                taken += len(event.data) if isinstance(event, Output) else 0
                if taken == frames.OUTPUT_WINDOW:
                    break


async def test_nobody_there_is_told_in_time(tmp_path: Path) -> None:
    """No socket, a socket that nobody serves, one whose guest is silent."""
    with pytest.raises(Unavailable, match="does not answer"):
        await GuestChannel.connect(tmp_path / "nothing.sock", 1)
    with listen_unix(tmp_path / "silent.sock"), pytest.raises(Unavailable, match="did not answer within 0 s"):
        await GuestChannel.connect(tmp_path / "silent.sock", 0.2)


async def test_sockets_have_paths_of_any_length(tmp_path: Path) -> None:
    """A socket's address holds 107 bytes; state directories are deeper."""
    directory = tmp_path / ("d" * 120) / ("e" * 120)
    directory.mkdir(parents=True)
    with listen_unix(directory / "s.sock") as listener:
        listener.settimeout(5)
        reader, writer = await connect_unix(directory / "s.sock")
        other, _ = await asyncio.to_thread(listener.accept)
        with other:
            other.sendall(b"hello")
            other.shutdown(socket.SHUT_WR)
            assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()
    assert (directory / "s.sock").stat().st_mode & 0o777 == 0o600
