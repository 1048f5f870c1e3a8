"""One of the two guest channels of a stand-in's machine: guest/channel.c's part."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Final

from castoff.fakes.vmm_session import HEADER, Session

__all__ = ["Channel"]

_END: Final = 0xA5


class Channel:
    """One channel: a client at a time, as QEMU's socket has it; the next one waits."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.client: socket.socket | None = None
        self.greeted = False
        self.sessions: dict[int, Session] = {}
        self.gathered: dict[int, bytearray] = {}
        self.out = bytearray()
        self._in = bytearray()

    def accept(self) -> None:
        try:
            self.client, _ = self.listener.accept()
        except OSError:
            return
        self.client.setblocking(False)

    def hang_up(self) -> None:
        if self.client is not None:
            self.client.close()
        self.client, self.greeted = None, False
        self._in.clear()
        self.out.clear()

    def read(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Frames that came: kind, stream, session, payload."""
        assert self.client is not None
        try:
            data = self.client.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.hang_up()
            return
        self._in += data
        yield from self._frames()

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        while True:
            padding = len(self._in) - len(self._in.lstrip(b"\0"))
            del self._in[:padding]
            if len(self._in) < HEADER.size:
                return
            kind, stream, session, length = HEADER.unpack_from(self._in)
            if length > 4096:
                del self._in[0]  # look for the next frame
                continue
            end = HEADER.size + length
            if len(self._in) <= end:
                return
            payload, whole = bytes(self._in[HEADER.size : end]), self._in[end] == _END
            del self._in[: end + 1]
            if whole:
                yield kind, stream, session, payload

    def write(self) -> None:
        if self.client is None or not self.greeted:
            return
        try:
            while True:
                while self.out:
                    del self.out[: self.client.send(self.out)]
                for session in self.sessions.values():
                    for frame in session.frames():
                        self.out += frame
                if not self.out:
                    return
        except BlockingIOError:
            return
        except OSError:
            self.hang_up()
