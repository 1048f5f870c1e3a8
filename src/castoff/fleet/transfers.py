"""What travels between hosts now: each host tells to whom it sends, for people to see. Nothing is decided by it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Annotated, Final

import msgspec

from castoff.errors import Invalid
from castoff.fleet.connection import Connection
from castoff.fleet.told import telling

__all__ = ["MOST", "Sending", "Transfers"]

MOST: Final = 32
"""Others of which one host tells that it sends to them: those that get most."""
_MOST_BYTES: Final = 32 << 20
_VALUE_BYTES: Final = 16 << 10
_EVERY: Final = 2.0
_STALE: Final = 15.0
"""Seconds after which a host that sends and says nothing new does not send any more."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]


class Sending(msgspec.Struct, frozen=True, array_like=True):
    """What a host sends to one other."""

    to: Annotated[str, msgspec.Meta(max_length=255, pattern=r"^[\x21-\x7e]+\Z")]
    """The other's ``peers.url`` where it said it, else its address."""
    sent: _Count
    """Bytes, since the sender's agent was started."""
    rate: _Count
    """Bytes a second, lately."""


class Transfers:
    """What all hosts send, this one too. Made by :meth:`open`."""

    def __init__(self) -> None:
        self._sendings: dict[str, tuple[float, list[Sending]]] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        connection: Connection,
        own: str,
        sendings: Callable[[], Sequence[Sending]],
        *,
        notice: Callable[[str], None] = lambda line: None,
        every: float = _EVERY,
    ) -> AsyncIterator[Transfers]:
        """Tells and hears for the block.

        Args:
            connection: The way to the other hosts.
            own: This host's id.
            sendings: To whom it sends now.
            notice: Called with a line for people.
            every: Seconds between two looks.
        """
        transfers = cls()

        async def say() -> bytes:
            return msgspec.json.encode(sorted(sendings(), key=lambda sending: (-sending.rate, sending.to))[:MOST])

        async with telling(
            connection,
            "transfers",
            own,
            say,
            transfers._hear,
            every=every,
            notice=notice,
            most_bytes=_MOST_BYTES,
            value_bytes=_VALUE_BYTES,
        ):
            yield transfers

    def now(self) -> Mapping[str, Sequence[Sending]]:
        """By the id of the host that sends."""
        since = time.monotonic() - _STALE
        return {host: sendings for host, (heard, sendings) in self._sendings.items() if heard >= since}

    def _hear(self, host: str, data: bytes) -> None:
        try:
            sendings = msgspec.json.decode(data, type=Annotated[list[Sending], msgspec.Meta(max_length=MOST)]) if data else []
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Invalid(f"what it says that it sends makes no sense: {error}") from error
        self._sendings.pop(host, None)
        if sendings:
            self._sendings[host] = time.monotonic(), sendings
