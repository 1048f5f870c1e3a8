"""One other host as a source of chunks."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid, NotFound, Unauthorized, Unavailable
from castoff.image.connect import Broken
from castoff.image.digest import Digest
from castoff.image.settings import ImageSettings
from castoff.image.transport import Response, Transport
from castoff.image.url import Url
from castoff.peers.frames import Book, Frame, PackFrames
from castoff.peers.wire import FRAME, FRAMES, HAVE_WAIT, HOST_HEADER, REQUEST, URGENCY_HEADER, chunks_target, have_target
from castoff.sources.source import ByteRange, Located, Piece
from castoff.sources.urgency import URGENCY

__all__ = ["PEER", "Peer", "peer_transport"]

PEER = "peer "
"""What the names of peers, as sources, begin with."""

_PATIENCE = 5.0
"""Seconds that a request may take besides its bytes: a peer that is slower than that is no help."""
_SLOWEST = 256 << 10  # bytes a second
_SMALL = REQUEST + FRAME
"""Bytes of an answer that are read by the thread that asked: all of it, then; each change of threads costs a turn."""


def peer_transport(tls: Callable[[], ssl.SSLContext | None]) -> Transport:
    """Connections to peers: direct ones, with the fleet's certificates."""
    settings = ImageSettings(connect_timeout=2.0, read_timeout=_PATIENCE, retries=0)
    return Transport(settings, quick_ack=True, small=_SMALL, tls=tls, direct=True)


class Peer:
    """A ChunkSource over one other host.

    Args:
        url: ``https://HOST:PORT``, or http on loopback.
        book: Knows packs.
        transport: Of :func:`peer_transport`; shared with other peers, and closed by whoever opened it.
        own: This host's own URL, which it is known by; empty: it has none.
    """

    def __init__(self, url: str, book: Book, transport: Transport, own: str = "") -> None:
        self.url = url
        self.name = f"{PEER}{url}"
        self._base = Url.parse(url)
        self._book = book
        self._transport = transport
        self._own = {HOST_HEADER: own} if own else {}

    async def locate(self, pack: Digest) -> Located | None:
        """Whether the peer has any chunk of the pack's layer, and knows of it at all."""
        frames = await asyncio.to_thread(self._book, pack)
        if frames is None:
            return None
        have = await self.have(frames)
        return None if have is None else Located(self.name)

    async def have(self, frames: PackFrames, *, known: int = -1, wait: float = 0.0) -> NDArray[np.bool_] | None:
        """[C] which chunks of the layer the peer says that it has; None: it knows nothing of the layer.

        Args:
            frames: Of the layer.
            known: Answer when it has another number of chunks than this,
            wait: or after so many seconds.

        Raises:
            Unavailable, Unauthorized, Invalid: It did not answer, or with nonsense.
        """
        most = -(-frames.chunks // 8)
        data = await self._get(have_target(frames.diff_id, known, min(wait, HAVE_WAIT)), most, wait)
        if data is None:
            return None
        if len(data) != most:
            raise Invalid(f"{self.name} answered with {len(data)} bytes for a bitmap of {most}")
        return np.unpackbits(np.frombuffer(data, np.uint8), count=frames.chunks, bitorder="little").astype(np.bool_)

    async def read(self, pack: Digest, ranges: Sequence[ByteRange]) -> AsyncGenerator[Piece, None]:
        """As the port says; in the order of ``ranges``, some in each request."""
        frames = await asyncio.to_thread(self._book, pack)
        if frames is None:
            raise NotFound(f"{self.name} cannot be asked for pack {pack}, whose layer is not known here")
        needed = [(one, frames.of(one)) for one in ranges]
        done = 0
        while done < len(needed):
            count, wanted = _batch(needed, done)
            data = await self._frames(frames.diff_id, wanted)
            for one, parts in needed[done : done + count]:
                yield Piece(one, PackFrames.cut(one, parts, data), self.name)
            done += count

    async def close(self) -> None:
        """The transport is its owner's."""

    async def _frames(self, diff_id: Digest, wanted: Sequence[Frame]) -> dict[int, memoryview]:
        """The bytes of frames, by number."""
        found: dict[int, memoryview] = {}
        for first in range(0, len(wanted), FRAMES):  # a single range may have more than a request
            part = wanted[first : first + FRAMES]
            while part:
                some = part[: _fitting(part)]
                size = sum(len(frame.place) for frame in some)
                target = chunks_target(diff_id, [(frame.number, len(frame.place)) for frame in some])
                data = await self._get(target, size)
                if data is None:
                    raise NotFound(f"{self.name} does not have these chunks of layer {diff_id}")
                if len(data) != size:
                    raise Invalid(f"{self.name} answered with {len(data)} bytes instead of {size}")
                view, at = memoryview(data), 0
                for frame in some:
                    found[frame.number] = view[at : at + len(frame.place)]
                    at += len(frame.place)
                part = part[len(some) :]
        return found

    async def _get(self, target: str, most: int, wait: float = 0.0) -> bytes | None:
        """A body of at most ``most`` bytes and one, which tells that it had more; None: 404."""
        headers = {URGENCY_HEADER: str(int(URGENCY.get())), **self._own}
        try:
            async with asyncio.timeout(_PATIENCE + wait + most / _SLOWEST):
                async with await self._transport.send("GET", Url(self._base.origin, target), headers) as response:
                    if response.status == 404:
                        await response.read(4096)  # so that the connection is kept
                        return None
                    self._refused(response)
                    return await response.read(most)
        except TimeoutError as error:
            raise Broken(f"{self.name} is too slow") from error

    def _refused(self, response: Response) -> None:
        if response.status in (401, 403):
            raise Unauthorized(f"{self.name} does not take this host for one of its fleet")
        if response.status != 200:
            raise Unavailable(f"{self.name} answered with status {response.status}")


def _batch(needed: Sequence[tuple[ByteRange, list[Frame]]], first: int) -> tuple[int, list[Frame]]:
    """How many ranges from ``first`` on go into one request, at least one; and their frames, each once."""
    wanted: dict[int, Frame] = {}
    count = 0
    for _, frames in needed[first:]:
        more = wanted | {frame.number: frame for frame in frames}
        if count and _fitting(list(more.values())) < len(more):
            break
        wanted, count = more, count + 1
    return count, list(wanted.values())


def _fitting(frames: Sequence[Frame]) -> int:
    """How many of the first frames one request may ask for: one at least."""
    size = count = 0
    for frame in frames[:FRAMES]:
        size += len(frame.place)
        if count and size > REQUEST:
            break
        count += 1
    return count
