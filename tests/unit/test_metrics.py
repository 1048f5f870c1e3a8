"""Metrics: what is counted, and that no client can make a label."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from castoff.agent.peers.collector import PeersCollector
from castoff.agent.peers.uplink import Uplink
from castoff.api.creates import Creates
from castoff.api.hydration import HydrationCount
from castoff.api.metrics import NAMES, Metrics, StoreGauge
from castoff.api.stream import MachineStream
from castoff.errors import Code, NoSpace
from castoff.timeline import step
from castoff.vmm.cgroups import Usage

USAGE = Usage(cpu_seconds=12.5, memory=1 << 20, memory_peak=2 << 20, pids=30, memory_kills=0, throttled_seconds=0)


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of a scrape."""
    found = text_string_to_metric_families(metrics.render().decode())
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in found for one in family.samples}


def value(metrics: Metrics, name: str, **labels: Any) -> float:
    """One sample."""
    return samples(metrics)[name, tuple(sorted(labels.items()))]


def test_a_create_is_a_histogram_a_step() -> None:
    """Every step of a create counts under its name; the create itself from the request on; bytes by where they come from."""
    metrics = Metrics()
    creates = Creates([metrics])
    with creates.asked("app"):
        with creates.resolving(), step("agent.resolve"):
            pass
        with creates.launching(machine="a" * 14, app="app", image="alpine"):
            for _ in range(3):
                with step("layers.convert", total=1000) as current:
                    current.advance(1000)
    assert value(metrics, "castoff_step_seconds_count", step="layers.convert", outcome="complete") == 3
    assert value(metrics, "castoff_step_seconds_count", step="agent.resolve", outcome="complete") == 1
    assert value(metrics, "castoff_create_seconds_count", outcome="complete") == 1
    assert value(metrics, "castoff_source_bytes_total", source="registry_layers") == 3000


def test_failures_count_by_code() -> None:
    """A create that fails counts once, by the failure's code, wherever it fails; the step that failed does too."""
    metrics = Metrics()
    creates = Creates([metrics])
    with pytest.raises(NoSpace), creates.launching(machine="a" * 14, app="app", image="alpine"), step("disk.copy"):
        raise NoSpace("/store", needed=2, available=1)
    with pytest.raises(ValueError), creates.asked("app"), creates.resolving():
        raise ValueError("a bug")
    assert value(metrics, "castoff_create_failures_total", code=Code.NO_SPACE) == 1
    assert value(metrics, "castoff_create_failures_total", code=Code.INTERNAL) == 1
    assert value(metrics, "castoff_create_failures_total", code=Code.INVALID) == 0
    assert value(metrics, "castoff_create_seconds_count", outcome="failed") == 2
    assert value(metrics, "castoff_step_seconds_count", step="disk.copy", outcome="failed") == 1


def test_names_of_steps_are_bounded() -> None:
    """A provider that names its steps after what it does makes no series without end."""
    metrics = Metrics()
    with Creates([metrics]).launching(machine="a" * 14, app="app", image="alpine"):
        for number in range(3 * NAMES):
            with step(f"foreign.{number}"):
                pass
    names = {dict(labels)["step"] for name, labels in samples(metrics) if name == "castoff_step_seconds_count"}
    assert len(names) == NAMES + 1
    assert value(metrics, "castoff_step_seconds_count", step="other", outcome="complete") == 2 * NAMES


def test_docs_and_dashboard_name_what_there_is() -> None:
    """docs/metrics.md has every metric, and only those; the dashboard asks for no other, nor for a label that it has not."""

    class Nothing:
        def list(self, app: str | None = None) -> list[Any]:
            return []

        def get(self, app: str | None, machine: str) -> Any:
            raise AssertionError

        def subscribe(self) -> Any:
            raise AssertionError

    metrics = Metrics()
    fleet = Nothing()
    metrics.watch(fleet, MachineStream(fleet))
    metrics.watch_usage(lambda: USAGE)
    asyncio.run(metrics.look())
    metrics.registry.register(PeersCollector(Uplink(), Path("/nowhere")))
    StoreGauge(metrics, lambda: asyncio.sleep(0, None), lambda: 0, HydrationCount)  # type: ignore[arg-type]
    families = {family.name: family.type for family in text_string_to_metric_families(metrics.render().decode())}
    names = {f"{name}_total" if kind == "counter" else name for name, kind in families.items()}
    root = Path(__file__).parents[2]
    documented = set(re.findall(r"`(castoff_[a-z_]+)`", (root / "docs/metrics.md").read_text()))
    assert documented == {name for name in names if name.startswith("castoff_")}

    panels = json.loads((root / "packaging/grafana-dashboard.json").read_text())["panels"]
    asked = set(re.findall(r"\b((?:castoff|process)_[a-z_]+)\{", json.dumps(panels)))
    series = {f"{name}{end}" for name, kind in families.items() if kind == "histogram" for end in ("_bucket", "_sum", "_count")}
    assert asked - names - series == set()
    assert len({panel["id"] for panel in panels}) == len(panels)
    labels = set(re.findall(r"(\w+)!?=~?\"", " ".join(target["expr"] for panel in panels for target in panel["targets"])))
    assert labels <= {"instance", "state", "step", "outcome", "route"}


async def test_what_machines_take_is_of_all_together_and_looked_at_in_a_thread() -> None:
    """What this kernel does not count is not there, rather than -1; without groups there is nothing."""
    metrics = Metrics()
    await metrics.look()
    usages = iter([USAGE, replace(USAGE, pids=-1), None])
    metrics.watch_usage(lambda: next(usages))
    await metrics.look()
    assert value(metrics, "castoff_machines_cpu_seconds_total") == 12.5
    assert (value(metrics, "castoff_machines_memory_bytes"), value(metrics, "castoff_machines_tasks")) == (1 << 20, 30)
    await metrics.look()
    assert not any(name == "castoff_machines_tasks" for name, _ in samples(metrics))
    await metrics.look()
    assert not any(name.startswith("castoff_machines_") for name, _ in samples(metrics))
