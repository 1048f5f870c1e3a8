"""Who of a large region has a layer, beside those that are asked for everything: named from the lists, read by fetches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castoff.fakes.chunk_source import FakeChunkSource
from castoff.fleet import beyond
from castoff.fleet.beyond import OF_ONE, layers_beyond
from castoff.fleet.inventory import Inventory
from castoff.image.digest import Digest
from castoff.peers.frames import indexed
from castoff.peers.known import HOLDERS, KnownHolders, write_holders
from castoff.peers.settings import PeerSettings
from castoff.peers.swarm import SwarmSource
from castoff.sources.quarantine import Quarantine

LAYERS = [Digest(f"{(number * 0x9E3779B97F4A7C15) % (1 << 64):016x}{number:048x}") for number in range(12)]
shelves = st.lists(st.dictionaries(st.sampled_from(LAYERS), st.booleans()), max_size=9)


def inventories(found: Sequence[dict[Digest, bool]]) -> dict[str, Inventory]:
    return {
        f"{place:016x}": Inventory.of(
            [layer for layer, whole in shelf.items() if whole], [layer for layer, whole in shelf.items() if not whole]
        )
        for place, shelf in enumerate(found)
    }


@given(found=shelves)
def test_the_nearest_that_have_a_layer_are_named(
    tmp_path_factory: pytest.TempPathFactory, found: list[dict[Digest, bool]]
) -> None:
    """Those that have it whole before those that have it in part, each by nearness; four of them; nobody who lacks it."""
    path = tmp_path_factory.getbasetemp() / f"holders-{os.getpid()}"
    lists = inventories(found)
    write_holders(path, [f"https://{host}" for host in lists], *layers_beyond(list(lists), lists), b"")
    known = KnownHolders(path)
    for layer in LAYERS:
        whole = [host for host in lists if lists[host].has(layer)]
        part = [host for host in lists if lists[host].begins(layer)]
        assert known.of(layer) == [f"https://{host}" for host in (whole + part)[:OF_ONE]]


def test_what_is_known_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone, there, other, broken."""
    path = tmp_path / HOLDERS
    known = KnownHolders(path)

    def of(layer: Digest) -> list[str]:
        known._looked = float("-inf")
        return known.of(layer)

    lists = inventories([{LAYERS[0]: True}])
    assert of(LAYERS[0]) == []
    told = write_holders(path, ["https://one"], *layers_beyond(list(lists), lists), b"")
    assert of(LAYERS[0]) == ["https://one"]
    before = path.stat()
    assert write_holders(path, ["https://one"], *layers_beyond(list(lists), lists), told) == told
    assert path.stat().st_ino == before.st_ino  # the same is not written again
    write_holders(path, ["https://two"], *layers_beyond(list(lists), lists), told)
    assert of(LAYERS[0]) == ["https://two"]
    for broken in (b"", b"\x93", os.urandom(100), b"\x93\x90\xc4\x08" + bytes(8) + b"\xc4\x02" + bytes(2)):
        path.write_bytes(broken)
        assert of(LAYERS[0]) == []
    path.unlink()
    assert of(LAYERS[0]) == []


def test_a_fetch_asks_them_for_what_they_have(tmp_path: Path) -> None:
    """And for nothing else; never itself."""
    lists = inventories([{LAYERS[0]: True}, {LAYERS[0]: True}])
    write_holders(tmp_path / HOLDERS, ["https://far", "https://me"], *layers_beyond(list(lists), lists), b"")
    (tmp_path / "peers").write_text("https://near\n")
    settings = PeerSettings(url="https://me", known=tmp_path / "peers")
    swarm = SwarmSource(settings, indexed({}), FakeChunkSource({}), Quarantine())
    assert [peer.url for peer in swarm._asked(LAYERS[0])] == ["https://near", "https://far"]
    assert [peer.url for peer in swarm._asked(LAYERS[1])] == ["https://near"]


def test_a_thousand_hosts_of_a_thousand_layers() -> None:
    """What is written is bounded, and what is looked at."""
    layers = np.sort(np.random.default_rng(7).integers(0, 1 << 63, 1000, np.uint64))
    lists = {str(number): Inventory(layers, layers[:0]) for number in range(1000)}
    found, hosts = layers_beyond(list(lists), lists)
    assert len(found) == len(hosts) == OF_ONE * 1000
    assert set(hosts.tolist()) == set(range(OF_ONE))
    distinct = {str(number): Inventory(np.arange(number, 1 << 40, 1 << 24, np.uint64), layers[:0]) for number in range(8)}
    assert len(layers_beyond(list(distinct), distinct)[0]) == beyond.MOST_ROWS
