"""The hydrator's process: ``python -m castoff.hydrate --state STATE``, started by the keeper.

It ends when it has had nothing to serve for a while; killed at any instant, its successor goes on (castoff.hydrate.handover).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

from castoff.errors import CastoffError, Conflict
from castoff.hydrate.doors import open_doors
from castoff.hydrate.handover import Inheritance, inherit, serving
from castoff.hydrate.keeper_client import take_seat
from castoff.hydrate.origin import ChunkReader
from castoff.hydrate.record import LazyRecord
from castoff.image.digest import Digest
from castoff.sources.source import ChunkSource
from castoff.store.store import Store

_IDLE = 30.0
_SWITCH = 0.0005
"""Seconds that a thread may keep the interpreter from one that answers an event: a tenth of Python's own."""


def _say(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} hydrator: {line}", file=sys.stderr, flush=True)


def _die(arguments: threading.ExceptHookArgs) -> None:
    """A thread that answers readers has failed: they wait for ever unless somebody else goes on."""
    threading.__excepthook__(arguments)
    sys.stderr.flush()
    os._exit(70)


def _reader(record: LazyRecord, store: Store) -> ChunkReader:
    """Reads a record's packs from its peers, if it has any, and its registry."""
    from castoff.sources import chunks
    from castoff.sources.quarantine import Quarantine
    from castoff.sources.registry import RegistrySource

    quarantine, keeper = Quarantine(record.sources.quarantine), None
    source: ChunkSource = RegistrySource(record.repository, record.sources, record.registry)
    if record.peers.is_used:
        from castoff.peers.counted import CountedSource
        from castoff.peers.frames import stored
        from castoff.peers.kept import KeptFrames
        from castoff.peers.swarm import SwarmSource
        from castoff.peers.tally import Tally

        layers = {Digest.parse(layer.pack): Digest.parse(layer.diff_id) for layer in record.layers}
        swarm = SwarmSource(record.peers, stored(store, layers), source, quarantine)
        source = CountedSource(swarm, Tally(store.state), quarantine)
        keeper = KeptFrames(store) if record.peers.listen else None
    return chunks.ChunkReader(source, quarantine, keeper=keeper)


async def _run(found: Inheritance) -> None:
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    async with (
        serving(found, partial(_reader, store=found.store), _say) as hydrator,
        open_doors(found.store.state, hydrator) as doors,
    ):
        guarding = asyncio.create_task(found.keeper.guard())
        idle_since = time.monotonic()
        while not ending.is_set() and time.monotonic() - idle_since < _IDLE:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await ending.wait()
            if not hydrator.is_idle or doors.is_busy:
                idle_since = time.monotonic()
            if guarding.done():
                guarding.result()
        guarding.cancel()


def main() -> int:
    """Runs it; the exit status."""
    if len(sys.argv) != 3 or sys.argv[1] != "--state":
        print("usage: python -m castoff.hydrate --state STATE", file=sys.stderr)
        return 2
    state = Path(sys.argv[2]).absolute()
    threading.excepthook = _die
    sys.setswitchinterval(_SWITCH)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each request that waits is an open file here
    try:
        seat = take_seat(state)
    except Conflict:
        return 0  # another one serves
    try:
        asyncio.run(_run(inherit(state, _say)))
    except CastoffError as error:
        _say(str(error))
        return 1
    finally:
        os.close(seat)
    return 0


if __name__ == "__main__":
    sys.exit(main())
