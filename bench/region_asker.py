"""``python -m bench.region_asker CONFIG URL bulk|urgent``: takes chunks from the peer at URL, which has all that this host has.

``bulk``: all of them, several requests at a time, again and again, from the line ``taking`` on until it is ended.
``urgent``: one at a time, as for a guest that waits; the answer is JSON: p50, p99, seconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from bench.measure import percentile
from castoff.config import Config, load
from castoff.image.digest import Digest
from castoff.layers.index import LayerIndex, read_index
from castoff.layers.locations import LocationKind
from castoff.peers.frames import indexed
from castoff.peers.peer import Peer, peer_transport
from castoff.peers.tls import client_context
from castoff.sources.source import ByteRange
from castoff.sources.urgency import URGENCY, Urgency
from castoff.store.hydration import present_chunks

_AT_ONCE = 4
_PART = 16
_CHUNKS = 300
_PAUSE = 0.02


async def _take(peer: Peer, pack: Digest, ranges: Sequence[ByteRange]) -> None:
    async with aclosing(peer.read(pack, ranges)) as pieces:
        async for _ in pieces:
            pass


async def _bulk(peer: Peer, pack: Digest, ranges: Sequence[ByteRange]) -> None:
    async def take() -> None:
        while True:
            at = random.randrange(len(ranges))
            await _take(peer, pack, ranges[at : at + _PART])

    await _take(peer, pack, ranges[:1])
    print("taking", flush=True)
    await asyncio.gather(*(take() for _ in range(_AT_ONCE)))


async def _urgent(peer: Peer, pack: Digest, ranges: Sequence[ByteRange]) -> None:
    URGENCY.set(Urgency.WAITED_FOR)
    begun, seconds = time.monotonic(), []
    await _take(peer, pack, ranges[:1])  # the connection
    for one in random.sample(list(ranges), min(_CHUNKS, len(ranges))):
        asked = time.perf_counter()
        await _take(peer, pack, [one])
        seconds.append(time.perf_counter() - asked)
        await asyncio.sleep(_PAUSE)
    told = {"p50": percentile(seconds, 0.5), "p99": percentile(seconds, 0.99), "most": max(seconds), "count": len(seconds)}
    print(json.dumps(told | {"seconds": time.monotonic() - begun}))


async def main(config: Config, url: str, way: str) -> None:
    """Takes from the largest layer that is here."""
    index, path = max(((read_index(path), path) for path in (config.state / "store/layers").glob("*/index")), key=_packed)
    where = index.locations
    pack = where.blobs[0]
    here = present_chunks(path.parent)  # the image needs no others, so the peer has none either
    numbers = [number for number in range(len(where.kind)) if where.kind[number] == LocationKind.PACK and here[number]]
    ranges = [ByteRange(start, start + int(where.length[number])) for number in numbers for start in [int(where.offset[number])]]
    transport = peer_transport(lambda: client_context(config.peers))
    try:
        await (_bulk if way == "bulk" else _urgent)(Peer(url, indexed({pack: index}), transport), pack, ranges)
    finally:
        await transport.close()


def _packed(layer: tuple[LayerIndex, Path]) -> int:
    return int(layer[0].locations.length.sum())


if __name__ == "__main__":
    asyncio.run(main(load(Path(sys.argv[1])), sys.argv[2], sys.argv[3]))
