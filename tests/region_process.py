"""A host of a region as a process that can be killed: it serves what it has, and fetches one layer.

``python region_process.py`` forks one for each line of its input, a Hosted as JSON, and prints its process id: what all of them
import is imported once. A process ends with its parent.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import pickle
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import msgspec

from castoff.agent.peers.server import serving_peers
from castoff.errors import Unavailable
from castoff.fakes.chunk_source import FakeChunkSource
from castoff.peers.frames import indexed
from castoff.peers.kept import KeptFrames
from castoff.peers.settings import PeerSettings
from castoff.peers.swarm import SwarmSource
from castoff.rootfs.preload import fetch_layers
from castoff.sources.chunks import ChunkReader
from castoff.sources.quarantine import Quarantine
from castoff.store.settings import StoreSettings
from castoff.store.store import Store
from packed_layer import PackedLayer, begin

__all__ = ["Hosted"]


_PDEATHSIG = 1  # PR_SET_PDEATHSIG


class Hosted(msgspec.Struct, frozen=True):
    """What a host is told."""

    state: str
    layer: str
    """File of a pickled PackedLayer."""
    urls: tuple[str, ...]
    number: int
    registry: bool
    """Whether the registry answers."""

    @property
    def done(self) -> Path:
        """A file that is there when the layer is."""
        return Path(f"{self.state}.done")


async def _serve(hosted: Hosted) -> None:
    layer: PackedLayer = pickle.loads(Path(hosted.layer).read_bytes())
    store = Store.open(Path(hosted.state), StoreSettings(backing="native"))
    me = hosted.urls[hosted.number]
    settings = PeerSettings(urls=hosted.urls, url=me, listen=me.removeprefix("http://"), patience=0.2)
    fails = None if hosted.registry else Unavailable("the registry is gone")
    registry = FakeChunkSource({layer.digest: layer.pack}, name="registry", delay=0.1, fails=fails)
    quarantine = Quarantine()
    swarm = SwarmSource(settings, indexed({layer.digest: layer.index}), registry, quarantine)
    reader = ChunkReader(swarm, quarantine, keeper=KeptFrames(store))
    async with serving_peers(settings, store, lambda: False):
        with ExitStack() as pins:
            layers = await begin(store, [layer], pins)
            while not hosted.done.exists():
                try:
                    await fetch_layers(layers, reader, store)
                except Unavailable:
                    await asyncio.sleep(0.1)
                else:
                    hosted.done.touch()
        await asyncio.Event().wait()


def main() -> None:
    """Forks until its input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
            asyncio.run(_serve(msgspec.json.decode(line, type=Hosted)))
        print(pid, flush=True)


if __name__ == "__main__":
    main()
