"""A connection to a TCP port of a guest, through its channel: without a network, under every VMM. The guest is hostile.

Its init connects and relays (guest/dial.c): the session's input goes to the port's server, what that says is the session's
output, and the session ends with the server's last word.
"""

from __future__ import annotations

from castoff.errors import Invalid, Unavailable, Unsupported
from castoff.vmm.guest import GuestSettings
from castoff.vmm.guest_session import Exit, GuestSession, Output, Ready

__all__ = ["GuestConnection", "dialling"]

_NO_SUCH_PROGRAM = 127


def dialling(port: int) -> GuestSettings:
    """What a channel executes to connect to a port. An init that knows nothing of it finds no such program.

    Raises:
        Invalid: It is none.
    """
    if not 0 < port < 65536:
        raise Invalid(f"there is no TCP port {port}", hint="1 to 65535")
    return GuestSettings(argv=("castoff-dial", str(port)), stdin=True, dials=True)


class GuestConnection:
    """Made by :meth:`open`; for one reader and one writer. Whoever started its session ends that."""

    def __init__(self, session: GuestSession) -> None:
        self._session = session
        self._events = session.events()

    @classmethod
    async def open(cls, session: GuestSession) -> GuestConnection:
        """Waits until the session, which executes :func:`dialling`, is connected. The caller sets a time limit.

        Raises:
            Unavailable: Nobody listens there, or the machine ended.
            Unsupported: The guest's init is of an older castoff.
        """
        connection = cls(session)
        async for event in connection._events:
            if isinstance(event, Ready):
                return connection
            if isinstance(event, Exit) and event.code == _NO_SUCH_PROGRAM:
                raise Unsupported(
                    "this machine's guest init cannot connect to ports", hint="restart the machine: an older castoff booted it"
                )
            if isinstance(event, Exit):
                raise Unavailable(event.message or "the guest's init could not connect", hint="does something listen there?")
        raise Unavailable("the machine ended")

    async def read(self) -> bytes:
        """What came next; empty at the end.

        Raises:
            Unavailable: The machine ended.
            Invalid: The guest broke the protocol.
        """
        async for event in self._events:
            if isinstance(event, Output) and event.stream == 1:
                return event.data
        return b""

    async def write(self, data: bytes | memoryview) -> None:
        """Sends; returns when the guest has room for all of it.

        Raises:
            Unavailable: The machine ended.
        """
        await self._session.send_stdin(data)

    async def end(self) -> None:
        """Sends no more; the server may still answer."""
        await self._session.close_stdin()
