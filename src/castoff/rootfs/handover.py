"""A layer that another host converted becomes one of this host's store: its index first, then its chunks.

The index counts if a key that this host trusts signed it, as with artifacts: a certificate of the fleet lets a host in, and
makes nobody believed. Chunks come as packs' chunks always do (castoff.peers), with the other host in the registry's place:
hosts that take a layer together ask it for their own parts and one another for the rest.
"""

from __future__ import annotations

import asyncio

from castoff import timeline
from castoff.artifact.keys import PublicKey, decode_signature
from castoff.artifact.trust import load_trust
from castoff.errors import Invalid, Unauthorized, Unavailable
from castoff.image.digest import Digest
from castoff.image.transport import Transport
from castoff.layers.index import LayerIndex
from castoff.layers.locations import LocationKind
from castoff.layers.pack import check_locations
from castoff.layers.published import read_published
from castoff.peers.frames import indexed
from castoff.peers.indexes import SignedIndex, ask_index
from castoff.peers.peer import Peer, peer_transport
from castoff.peers.swarm import with_peers
from castoff.peers.tls import client_context
from castoff.rootfs.composition import layer_tables
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.preload import fetch_layers
from castoff.rootfs.remote import RemoteLayer
from castoff.sources.chunks import ChunkReader
from castoff.sources.quarantine import Quarantine
from castoff.store.layers import StoredLayer

__all__ = ["take_layer"]

_AN_ENTRY = 128
"""Bytes that an entry of a published index may have."""


async def take_layer(diff_id: Digest, url: str, context: ProviderContext, *, within: float) -> StoredLayer:
    """The layer, complete and pinned, from a host that has it.

    Args:
        diff_id: The layer's.
        url: The host's, as :class:`castoff.peers.peer.Peer` takes it.
        context: The store, and how peers are reached.
        within: Seconds for all of it.

    Raises:
        NotFound, Unavailable: The host does not have it (any more), is not reached, or is too slow.
        Unauthorized: Nobody whom this host trusts signed the index.
        Invalid: It is broken, or of another layer.
    """
    transport = peer_transport(lambda: client_context(context.peers))
    with timeline.step("rootfs.handover", layer=str(diff_id), source=url):
        try:
            async with asyncio.timeout(within):
                most = context.limits.max_entries * _AN_ENTRY
                signed = await ask_index(diff_id, url, transport, most=most)
                index = await asyncio.to_thread(_believed, diff_id, url, signed, context)
                await _take(index, url, transport, context)
        except TimeoutError as error:
            raise Unavailable(f"layer {diff_id} did not come from {url} within {within:.0f} s") from error
        finally:
            await transport.close()
    found = context.store.layer(diff_id)
    if found is None or not found.complete:
        raise Unavailable(f"layer {diff_id} is not whole after it came from {url}")
    return found


def _believed(diff_id: Digest, url: str, signed: SignedIndex, context: ProviderContext) -> LayerIndex:
    """Blocks.

    Raises:
        Unauthorized, Invalid: As :func:`take_layer`.
    """
    key = PublicKey.parse(signed.key)
    known = load_trust(context.store.state).find(key)
    if known is None:
        raise Unauthorized(
            f"layer {diff_id} of {url} is signed by {key.fingerprint}, whom this host does not trust", hint="`castoff trust add`"
        )
    if not key.verifies(decode_signature(signed.signature), signed.statement(diff_id)):
        raise Invalid(f"the signature of layer {diff_id} of {url} is not of its key {key.fingerprint}")
    index = read_published(signed.data, context.limits)
    if index.diff_id != diff_id:
        raise Invalid(f"the index of layer {diff_id} of {url} is that of {index.diff_id}")
    check_locations(index, *_pack(index))
    return index


def _pack(index: LayerIndex) -> tuple[Digest, int]:
    """The pack that the chunks are said to be in, and where the last of them ends. Nobody has it as a file."""
    where = index.locations
    packed = where.kind == LocationKind.PACK
    ends = where.offset[packed] + where.length[packed]
    return where.blobs[0] if where.blobs else Digest.of(b""), int(ends.max()) if len(ends) else 0


async def _take(index: LayerIndex, url: str, transport: Transport, context: ProviderContext) -> None:
    stored = await context.store.begin_layer(index.diff_id, index)
    try:
        await asyncio.to_thread(layer_tables, stored.path, index.toc)
        pack, _ = _pack(index)
        book = indexed({pack: index})
        quarantine = Quarantine(context.sources.quarantine)
        reader = ChunkReader(
            with_peers(context.peers, book, Peer(url, book, transport, context.peers.url), quarantine), quarantine
        )
        try:
            await fetch_layers((RemoteLayer(stored, index, pack),), reader, context.store)
        finally:
            await reader.close()
    finally:
        stored.pin.close()
