"""The frames of the guest channel, as bytes (docs/formats.md, "Guest channel"). No I/O happens here.

The guest is hostile: every length, offset and number that it sends is bounded here or in castoff.vmm.channel before
anything is done with it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from castoff.errors import Invalid

__all__ = [
    "INPUT_WINDOW",
    "MAX_INPUT",
    "OUTPUT_WINDOW",
    "Acknowledge",
    "Data",
    "Decoder",
    "End",
    "Exit",
    "GuestFrame",
    "Ready",
    "Told",
    "encode_acknowledge",
    "encode_clock",
    "encode_close",
    "encode_data",
    "encode_end",
    "encode_hello",
    "encode_resize",
    "encode_settings_part",
    "encode_shutdown",
    "encode_signal",
    "encode_start",
]

OUTPUT_WINDOW: Final = 256 * 1024
"""Bytes of one stream that the guest may send ahead of our acknowledgement."""
INPUT_WINDOW: Final = 64 * 1024
"""Bytes of stdin that we may send ahead of the guest's acknowledgement."""

_VERSION: Final = 1
_HOST_FRAME: Final = 4096
_GUEST_FRAME: Final = 32 * 1024
_HEADER: Final = struct.Struct("<BBHI")
_U64: Final = struct.Struct("<Q")
_END: Final = b"\xa5"
_MAGIC: Final = b"castoff\n"
_NONCE: Final = 16
MAX_INPUT: Final = _HOST_FRAME - _HEADER.size - len(_END) - _U64.size
"""Bytes of stdin, or of an executed command's settings, in one frame."""
_MAX_GREETING: Final = 4 << 20
"""Bytes of a predecessor's leftovers that may come before the guest's welcome: what QEMU, the guest's queues and its
frame buffer hold is far less."""
_MAX_MESSAGE: Final = 512

_HELLO, _DATA, _END_OF_INPUT, _ACKNOWLEDGE, _SIGNAL, _RESIZE, _SETTINGS, _START, _CLOSE, _SHUTDOWN, _CLOCK = range(1, 12)
_WELCOME, _READY, _OUTPUT, _END_OF_OUTPUT, _TAKEN, _EXIT, _TOLD = range(16, 23)


@dataclass(frozen=True, slots=True)
class Ready:
    """The command was executed. Nanoseconds since the guest's kernel started its clock; in between, ``drivers_ns``
    lasted the loading of drivers and the mounting of the root."""

    session: int
    init_ns: int
    drivers_ns: int
    exec_ns: int


@dataclass(frozen=True, slots=True)
class Told:
    """The command says that it is ready for what it is there for."""

    session: int


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of a stream (1: stdout, 2: stderr), the first of which is number ``offset``."""

    session: int
    stream: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The stream ended after ``offset`` bytes."""

    session: int
    stream: int
    offset: int


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """The command has been given the first ``offset`` bytes of stdin."""

    session: int
    offset: int


@dataclass(frozen=True, slots=True)
class Exit:
    """The process ended: exit code, or 128 + ``signal``; ``message`` says why there was no process at all."""

    session: int
    code: int
    signal: int
    out_of_memory: bool
    message: str


GuestFrame = Ready | Told | Data | End | Acknowledge | Exit


def _frame(kind: int, payload: bytes = b"", *, stream: int = 0, session: int = 0) -> bytes:
    return _HEADER.pack(kind, stream, session, len(payload)) + payload + _END


def encode_hello(nonce: bytes) -> bytes:
    """A client's first bytes. The padding completes a frame that a predecessor left unfinished; alone it is skipped."""
    return bytes(_HOST_FRAME) + _frame(_HELLO, nonce)


def encode_data(session: int, offset: int, data: bytes) -> bytes:
    """At most ``MAX_INPUT`` bytes of stdin."""
    return _frame(_DATA, _U64.pack(offset) + data, session=session)


def encode_end(session: int) -> bytes:
    """Stdin is over."""
    return _frame(_END_OF_INPUT, session=session)


def encode_acknowledge(session: int, stream: int, offset: int) -> bytes:
    """The first ``offset`` bytes of an output stream are taken."""
    return _frame(_ACKNOWLEDGE, _U64.pack(offset), stream=stream, session=session)


def encode_signal(session: int, number: int) -> bytes:
    """A signal for the process (a terminal's signals: for its group)."""
    return _frame(_SIGNAL, struct.pack("<I", number), session=session)


def encode_resize(session: int, rows: int, columns: int) -> bytes:
    """The terminal's size."""
    return _frame(_RESIZE, struct.pack("<HH", min(rows, 0xFFFF), min(columns, 0xFFFF)), session=session)


def encode_settings_part(session: int, part: bytes) -> bytes:
    """A part, of at most ``MAX_INPUT`` bytes, of the settings of a command to execute."""
    return _frame(_SETTINGS, part, session=session)


def encode_start(session: int) -> bytes:
    """The settings are complete: execute."""
    return _frame(_START, session=session)


def encode_close(session: int) -> bytes:
    """The exit code is taken. Of session 0: the machine may power off."""
    return _frame(_CLOSE, session=session)


def encode_shutdown(grace: float) -> bytes:
    """End the machine's command, by force after ``grace`` seconds, and power off."""
    return _frame(_SHUTDOWN, struct.pack("<I", min(int(grace * 1000), 0xFFFF_FFFF)))


def encode_clock(nanoseconds: int) -> bytes:
    """The time, in nanoseconds since 1970: the guest stood still while time went on."""
    return _frame(_CLOCK, _U64.pack(nanoseconds))


class Decoder:
    """The guest's bytes into frames.

    Args:
        nonce: The 16 bytes that our hello carried: the guest's welcome repeats them, and all before it is a
            predecessor's.
    """

    def __init__(self, nonce: bytes) -> None:
        self._mark = _HEADER.pack(_WELCOME, 0, 0, len(_MAGIC) + _NONCE + 4) + _MAGIC + nonce
        self._buffer = bytearray()
        self._skipped = 0
        self.welcome = False

    def feed(self, data: bytes) -> Iterator[GuestFrame]:
        """The frames that ``data`` completes.

        Raises:
            Invalid: The guest breaks the protocol, or speaks another version of it.
        """
        self._buffer += data
        if not self.welcome and not self._greeted():
            return
        at = 0
        try:
            while len(self._buffer) - at >= _HEADER.size:
                kind, stream, session, length = _HEADER.unpack_from(self._buffer, at)
                if length > _GUEST_FRAME - _HEADER.size:
                    raise _broken(f"a frame of {length} bytes")
                end = at + _HEADER.size + length
                if end > len(self._buffer):
                    break
                payload = bytes(self._buffer[at + _HEADER.size : end])
                at = end
                yield _decode(kind, stream, session, payload)
        finally:
            del self._buffer[:at]

    def _greeted(self) -> bool:
        """Looks for the welcome; drops what comes before it."""
        found = self._buffer.find(self._mark)
        if found < 0:
            drop = max(0, len(self._buffer) - len(self._mark) + 1)
            self._skipped += drop
            del self._buffer[:drop]
            if self._skipped > _MAX_GREETING:
                raise _broken("no welcome")
            return False
        at = found + len(self._mark)
        if len(self._buffer) < at + 4:
            return False
        (version,) = struct.unpack_from("<I", self._buffer, at)
        if version != _VERSION:
            raise Invalid(
                f"the guest init speaks version {version} of the channel, this castoff {_VERSION}",
                hint="a machine is served by the castoff that started it; stop it and start it again",
            )
        del self._buffer[: at + 4]
        self.welcome = True
        return True


def _decode(kind: int, stream: int, session: int, payload: bytes) -> GuestFrame:
    try:
        match kind:
            case 18 if stream in (1, 2) and len(payload) > _U64.size:
                return Data(session, stream, _U64.unpack_from(payload)[0], payload[_U64.size :])
            case 19 if stream in (1, 2):
                return End(session, stream, *_U64.unpack(payload))
            case 20:
                return Acknowledge(session, *_U64.unpack(payload))
            case 17:
                return Ready(session, *struct.unpack("<QQQ", payload))
            case 22 if not payload:
                return Told(session)
            case 21 if len(payload) <= 12 + _MAX_MESSAGE:
                code, signal, flags = struct.unpack_from("<iiI", payload)
                if 0 <= code <= 255 and 0 <= signal <= 64:
                    return Exit(session, code, signal, bool(flags & 1), _printable(payload[12:]))
    except struct.error:
        pass
    raise _broken(f"frame {kind} for stream {stream} with {len(payload)} bytes")


def _printable(text: bytes) -> str:
    """A guest's text for people: nothing in it may command their terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text.decode("utf-8", "replace"))


def _broken(what: str) -> Invalid:
    return Invalid(f"the guest broke the channel's protocol: {what}", hint="its init was replaced or crashed; stop the machine")
