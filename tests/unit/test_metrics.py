"""Metrics: what is counted, and that no client can make a label."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from castoff.api.creates import Creates
from castoff.api.metrics import NAMES, Metrics
from castoff.errors import Code, NoSpace
from castoff.timeline import step


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
