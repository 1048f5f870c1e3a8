"""A layer's published index, from the host that has the layer, signed by that host: for layers that no artifact has yet."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Final

from castoff.errors import LimitExceeded, NotFound, Unauthorized, Unavailable
from castoff.image.digest import Digest
from castoff.image.transport import Transport
from castoff.image.url import Url
from castoff.peers.wire import KEY_HEADER, SIGNATURE_HEADER, index_target

__all__ = ["SignedIndex", "ask_index"]

_AGAIN: Final = 0.1
"""Seconds after which a host that is still at it is asked again."""


@dataclass(frozen=True, slots=True)
class SignedIndex:
    """An index as it travels."""

    data: bytes
    """As castoff.layers.published has it."""
    key: str
    """Of whoever signed it."""
    signature: str
    """Of :meth:`statement`."""

    def statement(self, diff_id: Digest) -> bytes:
        """What is signed: that these bytes are what the layer becomes. It is worth nothing for another layer."""
        return f"castoff layer index v1\n{diff_id}\nsha256:{hashlib.sha256(self.data).hexdigest()}\n".encode()


async def ask_index(diff_id: Digest, url: str, transport: Transport, *, most: int) -> SignedIndex:
    """What a host says that a layer is; waits for as long as it says that it makes it.

    Args:
        diff_id: The layer's.
        url: The host's.
        transport: Of :func:`castoff.peers.peer.peer_transport`.
        most: Bytes that it may have.

    Raises:
        NotFound: The host does not have the layer, or not all of it.
        Unauthorized: It takes this host for a stranger.
        Unavailable: It is not reached, or has something else to do.
        LimitExceeded: It is larger than ``most``.
    """
    target = Url(Url.parse(url).origin, index_target(diff_id))
    while True:
        async with await transport.send("GET", target, {}) as response:
            if response.status == 200:
                data = await response.read(most)
                if len(data) > most:
                    raise LimitExceeded(f"the index of layer {diff_id}, in bytes,", limit=most, setting="layers.max_entries")
                return SignedIndex(data, response.headers.get(KEY_HEADER, ""), response.headers.get(SIGNATURE_HEADER, ""))
            await response.read(4096)
            if response.status == 404:
                raise NotFound(f"peer {url} does not have layer {diff_id}")
            if response.status in (401, 403):
                raise Unauthorized(f"peer {url} does not take this host for one of its fleet")
            if response.status != 202:
                raise Unavailable(f"peer {url} answered with status {response.status}")
        await asyncio.sleep(_AGAIN)
