"""Metrics of what hosts give one another (docs/metrics.md). No label names a host: who they are, clients cannot choose, and yet
a region has no bound."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from castoff.agent.peers.uplink import Uplink
from castoff.peers.tally import read_tally

__all__ = ["PeersCollector"]


class PeersCollector(Collector):
    """Looked at by every scrape.

    Args:
        uplink: What this agent gave.
        state: The host's state directory, where those who take leave word.
    """

    def __init__(self, uplink: Uplink, state: Path) -> None:
        self._uplink = uplink
        self._state = state

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        taken = read_tally(self._state)
        given = CounterMetricFamily("castoff_peer_given_bytes", "Bytes that other hosts were given.", labels=["urgency"])
        given.add_metric(["urgent"], self._uplink.given_urgent)
        given.add_metric(["bulk"], self._uplink.given_bulk)
        yield given
        yield CounterMetricFamily("castoff_peer_refused", "Requests of other hosts turned away.", value=self._uplink.refused)
        came = CounterMetricFamily("castoff_peer_taken_bytes", "Bytes of chunks that came in.", labels=["source", "urgency"])
        came.add_metric(["peer", "urgent"], taken.peer_urgent)
        came.add_metric(["peer", "bulk"], taken.peer_bulk)
        came.add_metric(["registry", "urgent"], taken.registry_urgent)
        came.add_metric(["registry", "bulk"], taken.registry_bulk)
        yield came
        waits = CounterMetricFamily("castoff_peer_waits", "Chunks that a guest waited for, by who gave it.", labels=["source"])
        waits.add_metric(["peer"], taken.peer_waits)
        waits.add_metric(["registry"], taken.registry_waits)
        yield waits
        waited = CounterMetricFamily("castoff_peer_wait_seconds", "Time that those waits took.", labels=["source"])
        waited.add_metric(["peer"], taken.peer_wait_us / 1e6)
        waited.add_metric(["registry"], taken.registry_wait_us / 1e6)
        yield waited
        name = "castoff_peer_left_alone"
        yield CounterMetricFamily(name, "How often another host was left alone for a while.", value=taken.left_alone)
