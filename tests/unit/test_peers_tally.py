"""What a host has taken, from whom: counted by many processes, told by one."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from multiprocessing import get_context
from pathlib import Path

from prometheus_client import CollectorRegistry

from castoff.agent.peers.collector import PeersCollector
from castoff.agent.peers.uplink import Uplink
from castoff.fakes.chunk_source import FakeChunkSource
from castoff.image.digest import Digest
from castoff.peers.counted import CountedSource
from castoff.peers.tally import Taken, Tally, read_tally, tally_path
from castoff.sources.quarantine import Quarantine
from castoff.sources.source import ByteRange
from castoff.sources.urgency import URGENCY, Urgency

PACK = bytes(range(200))
DIGEST = Digest.of(PACK)


def _add(state: Path) -> None:
    tally = Tally(state)
    for _ in range(50):
        tally.came(10, peer=True, urgent=False, seconds=0.0)
        tally.write()


def test_processes_add_to_one_another(tmp_path: Path) -> None:
    """None of 4 processes that write at once loses what another wrote."""
    context = get_context("spawn")
    processes = [context.Process(target=_add, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert read_tally(tmp_path) == Taken(peer_bulk=4 * 50 * 10)


def test_a_broken_file_counts_as_none(tmp_path: Path) -> None:
    """And the next count makes it whole."""
    assert read_tally(tmp_path) == Taken()
    for junk in (b"", b"x", bytes(80), b"\xff" * 1000):
        tally_path(tmp_path).write_bytes(junk)
        assert read_tally(tmp_path) == Taken()
    tally_path(tmp_path).unlink()
    _add(tmp_path)
    assert read_tally(tmp_path).peer_bulk == 500


def test_a_state_that_cannot_be_written_costs_counts_alone(tmp_path: Path) -> None:
    _add(tmp_path / "missing")
    assert read_tally(tmp_path / "missing") == Taken()


async def test_pieces_count_by_who_gave_them_and_whether_a_guest_waited(tmp_path: Path) -> None:
    """The metrics say the same, and have no label that anybody else chose."""
    for name, urgency in (("peer https://10.0.0.1:4290", Urgency.BULK), ("registry r/app", Urgency.WAITED_FOR)):
        quarantine = Quarantine()
        source = CountedSource(FakeChunkSource({DIGEST: PACK}, name=name), Tally(tmp_path), quarantine)
        URGENCY.set(urgency)
        async with aclosing(source.read(DIGEST, [ByteRange(0, 50), ByteRange(60, 70)])) as pieces:
            async for _ in pieces:
                pass
        quarantine.put(name, "it is slow")
        await source.close()
    taken = await asyncio.to_thread(read_tally, tmp_path)
    assert (taken.peer_bulk, taken.peer_urgent, taken.registry_bulk, taken.registry_urgent) == (60, 0, 0, 60)
    assert (taken.peer_waits, taken.registry_waits, taken.left_alone) == (0, 2, 1)
    registry, uplink = CollectorRegistry(), Uplink()
    uplink.count("10.0.0.2", 7, urgent=True)
    registry.register(PeersCollector(uplink, tmp_path))
    assert registry.get_sample_value("castoff_peer_taken_bytes_total", {"source": "peer", "urgency": "bulk"}) == 60
    assert registry.get_sample_value("castoff_peer_given_bytes_total", {"urgency": "urgent"}) == 7
    assert registry.get_sample_value("castoff_peer_left_alone_total") == 1
    values = {value for family in registry.collect() for one in family.samples for value in one.labels.values()}
    assert values == {"peer", "registry", "urgent", "bulk"}
