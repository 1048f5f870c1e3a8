"""The other hosts and the registry as one source of chunks.

a guest waits for it -> the peer that says that it has it, and besides, when that is not there in time, the registry
all else             -> everybody who has it, and the registry for this host's share (castoff.peers.transfer)
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from castoff.errors import CastoffError, Invalid
from castoff.image.digest import Digest
from castoff.peers.frames import Book, PackFrames
from castoff.peers.known import HOLDERS, KnownHolders, KnownPeers
from castoff.peers.peer import Peer, peer_transport
from castoff.peers.prompt import PromptSource
from castoff.peers.seat import Seat
from castoff.peers.settings import PeerSettings
from castoff.peers.tls import client_context
from castoff.peers.transfer import Pace, Transfer
from castoff.sources.quarantine import Quarantine
from castoff.sources.race import RaceSource
from castoff.sources.source import ByteRange, ChunkSource, Located, Piece
from castoff.sources.urgency import URGENCY, Urgency

__all__ = ["SwarmSource", "with_peers"]

_HASTE = 0.1
"""Seconds of patience with peers for what a guest is about to want."""


class SwarmSource:
    """A ChunkSource over peers and the source that they all would ask otherwise.

    Args:
        settings: Who they are.
        book: Knows packs.
        origin: The registry; closed with this.
        quarantine: Who is left alone; the same that whoever checks the chunks has.
    """

    def __init__(self, settings: PeerSettings, book: Book, origin: ChunkSource, quarantine: Quarantine) -> None:
        self._settings = settings
        self._book = book
        self._origin = origin
        self._quarantine = quarantine
        self._transport = peer_transport(lambda: client_context(settings))
        self._known = KnownPeers(settings.known)
        self._holders = KnownHolders(None if settings.known is None else settings.known.with_name(HOLDERS))
        self._peers: dict[str, Peer] = {}
        self._seats: dict[Digest, dict[str, Seat]] = {}
        self.name = f"peers and {origin.name}"
        self._paces: dict[Digest, Pace] = {}

    async def locate(self, pack: Digest) -> Located | None:
        """What the registry says; a peer only where that cannot be asked."""
        try:
            return await self._origin.locate(pack)
        except CastoffError:
            frames = await asyncio.to_thread(self._book, pack)
            for peer in self._asked(None if frames is None else frames.diff_id):
                found = await _asked(peer, pack)
                if found is not None:
                    return found
            raise

    async def read(self, pack: Digest, ranges: Sequence[ByteRange]) -> AsyncGenerator[Piece, None]:
        """As the port says."""
        source = await self._source(pack, ranges) if ranges else None
        if source is not None:
            async with aclosing(source) as pieces:
                async for piece in pieces:
                    yield piece

    async def close(self) -> None:
        for seats in self._seats.values():
            for seat in seats.values():
                await seat.close()
        await self._transport.close()
        await self._origin.close()

    def _asked(self, layer: Digest | None = None) -> list[Peer]:
        """Whom to ask by now; of a layer also those further away that have it."""
        holders = () if layer is None else self._holders.of(layer)
        urls = dict.fromkeys((*self._settings.urls, *self._known.urls(), *holders))
        urls.pop(self._settings.url, None)
        for url in urls:
            if url not in self._peers:
                self._peers[url] = Peer(url, self._book, self._transport, self._settings.url)
        return [self._peers[url] for url in urls]

    async def _source(self, pack: Digest, ranges: Sequence[ByteRange]) -> AsyncGenerator[Piece, None]:
        frames = await asyncio.to_thread(self._book, pack)
        try:
            plain = frames is None or not all(frames.of(one) for one in ranges)
        except Invalid:
            plain = True
        if frames is None or plain:  # nothing that a peer could have
            return self._origin.read(pack, ranges)
        at_pack = self._seats.setdefault(pack, {})
        seats = [
            at_pack.get(peer.url) or at_pack.setdefault(peer.url, Seat(peer, frames)) for peer in self._asked(frames.diff_id)
        ]
        urgency = URGENCY.get()
        if urgency is Urgency.WAITED_FOR:
            return self._urgent(seats, frames, ranges).read(pack, ranges)
        patience = self._settings.patience if urgency is Urgency.BULK else min(_HASTE, self._settings.patience)
        pace = self._paces.setdefault(pack, Pace())
        me = self._settings.url
        return Transfer(me, pack, frames, ranges, seats, self._origin, self._quarantine, patience, pace).pieces()

    def _urgent(self, seats: Sequence[Seat], frames: PackFrames, ranges: Sequence[ByteRange]) -> ChunkSource:
        """Who is asked for what a guest waits for. Nobody is asked what he has before: that would cost what it saves."""
        numbers = [frame.number for one in ranges for frame in frames.of(one)]
        for seat in seats:
            seat.refresh()
        able = [
            PromptSource(seat.peer, self._settings.deadline, self._quarantine)
            for seat in seats
            if (have := seat.have) is not None
            and all(have[number] for number in numbers)
            and self._quarantine.why(seat.peer.name) is None
        ]
        if not able:
            return self._origin
        return RaceSource([random.choice(able), self._origin], after=self._settings.deadline, quarantine=self._quarantine)


async def _asked(peer: Peer, pack: Digest) -> Located | None:
    try:
        return await peer.locate(pack)
    except CastoffError:
        return None  # the registry's failure is what is told


def with_peers(settings: PeerSettings, book: Book, origin: ChunkSource, quarantine: Quarantine) -> ChunkSource:
    """``origin`` itself where no peers are set."""
    return SwarmSource(settings, book, origin, quarantine) if settings.is_used else origin
