"""The agent's metrics, in Prometheus' text format (docs/metrics.md).

Labels are bounded whatever clients do: none holds a machine, an app, an image or a path. Step names are castoff's own, and
those of plugged-in providers count only up to a number; routes are templates; codes, states and methods are lists.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from importlib.metadata import version
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from castoff.api.creates import Create
from castoff.api.hydration import HydrationCount
from castoff.api.stream import Fleet, MachineStream
from castoff.errors import CastoffError, Code
from castoff.lifecycle.checks import STATUSES, check_statuses
from castoff.lifecycle.states import State
from castoff.store.usage import Usage
from castoff.timeline import Step
from castoff.vmm.cgroups import Usage as MachinesUsage

__all__ = ["CONTENT_TYPE", "Metrics", "StoreGauge"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "other"
NAMES: Final = 100
"""Step names that are told apart; castoff's own are about 60."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_QUICK: Final = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 60)
_SOURCES: Final = {
    "layers.convert": "registry_layers",
    "rootfs.containerd.content": "registry_layers",
    "sources.chunks": "artifact_packs",
    "hydrate.fill": "hydrator",
}
"""Steps that bring bytes in, and where from."""


class Metrics:
    """Everything that is counted. Implements castoff.api.creates.CreateSink.

    Its methods may be called in any thread.
    """

    def __init__(self) -> None:
        # Those are a gauge beside every counter, which nobody asks for in this format.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Gauge("castoff_build_info", "Constant 1.", ["version"], registry=registry).labels(version("castoff")).set(1)
        self._steps = Histogram(
            "castoff_step_seconds",
            "Time of each step of creates, by the step's name.",
            ["step", "outcome"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._creates = Histogram(
            "castoff_create_seconds",
            "From the request for a machine to its running command, or its failure.",
            ["outcome"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._failures = Counter(
            "castoff_create_failures", "Creates that failed, by the failure's code.", ["code"], registry=registry
        )
        self._sources = Counter("castoff_source_bytes", "Bytes that came in, by where from.", ["source"], registry=registry)
        self._requests = Counter(
            "castoff_api_requests", "Requests answered, by route and status.", ["method", "route", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "castoff_api_request_seconds",
            "Time to answer them; waits and streams too.",
            ["route"],
            buckets=_QUICK,
            registry=registry,
        )
        self._checks = Histogram(
            "castoff_check_seconds",
            "Time of each probe of a machine's checks, by the check's type.",
            ["type", "outcome"],
            buckets=_QUICK,
            registry=registry,
        )
        self._names: set[str] = set()
        self._usage: Callable[[], MachinesUsage | None] = lambda: None
        self._taken: MachinesUsage | None = None
        # Looking a label's values up costs as much as several observations.
        self._seen_steps: dict[tuple[str, str], Histogram] = {}
        self._seen_requests: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        for outcome in ("complete", "failed"):
            self._creates.labels(outcome)  # 0 rather than absent: rates need a first value
        for code in Code:
            self._failures.labels(code.value)
        for source in sorted(set(_SOURCES.values())):
            self._sources.labels(source)

    def on_step(self, create: Create, step: Step) -> None:
        """A step that ended is observed."""
        if step.ended is None:
            return
        labels = (step.name, step.state)
        seen = self._seen_steps.get(labels)
        if seen is None:
            known = self._name(step.name)
            seen = self._steps.labels(known, step.state)
            if known != OTHER:
                self._seen_steps[labels] = seen
        seen.observe(max(0.0, step.ended - step.started))
        if step.name in _SOURCES:
            self._sources.labels(_SOURCES[step.name]).inc(max(0, step.done))

    def on_end(self, create: Create, error: BaseException | None) -> None:
        """A create is observed."""
        ended = create.timeline.now() if create.ended is None else create.ended
        self._creates.labels("failed" if error else "complete").observe(ended)
        if error is not None:
            code = error.code if isinstance(error, CastoffError) else Code.INTERNAL
            self._failures.labels(code.value).inc()

    def probed(self, http: bool, passed: bool, seconds: float) -> None:
        """A probe of a check is observed."""
        self._checks.labels("http" if http else "tcp", "passed" if passed else "failed").observe(seconds)

    @web.middleware
    async def count_requests(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Middleware, the outermost: counts what is answered, also by the others."""
        began = time.monotonic()
        status = 499  # the client went away, as nginx has it
        try:
            response = await handler(request)
            status = response.status
            return response
        except web.HTTPException as error:
            status = error.status
            raise
        except Exception:
            status = 500
            raise
        finally:
            resource = request.match_info.route.resource
            route = "unknown" if resource is None else resource.canonical
            method = request.method if request.method in _METHODS else OTHER
            seen = self._seen_requests.get((method, route, status))
            if seen is None:
                seen = self._requests.labels(method, route, str(status)), self._request_seconds.labels(route)
                self._seen_requests[method, route, status] = seen
            seen[0].inc()
            seen[1].observe(time.monotonic() - began)

    def watch(self, machines: Fleet, stream: MachineStream) -> None:
        """Machines and browsers are counted at every scrape from now on."""
        self.registry.register(_Machines(machines, stream))

    def watch_usage(self, usage: Callable[[], MachinesUsage | None]) -> None:
        """What all machines take together is looked at by every :meth:`look` from now on.

        Args:
            usage: Looks; blocks. None: this host does not count it.
        """
        self._usage = usage
        self.registry.register(_Usage(lambda: self._taken))

    async def look(self) -> None:
        """Looks at what has to be read from files."""
        self._taken = await asyncio.to_thread(self._usage)

    def render(self) -> bytes:
        """All of it, in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)

    def _name(self, name: str) -> str:
        if name not in self._names:
            if len(self._names) >= NAMES:
                return OTHER
            self._names.add(name)
        return name


class _Machines(Collector):
    def __init__(self, machines: Fleet, stream: MachineStream) -> None:
        self._machines = machines
        self._stream = stream

    def collect(self) -> Iterable[Metric]:
        counts, checks = dict.fromkeys(State, 0), dict.fromkeys(STATUSES, 0)
        for machine in self._machines.list():
            counts[State(machine.state)] += 1
            for check in check_statuses(machine):
                checks[check.status] += 1
        states = GaugeMetricFamily("castoff_machines", "Machines that are there, by state.", labels=["state"])
        for state, count in counts.items():
            states.add_metric([state.value], count)
        yield states
        statuses = GaugeMetricFamily("castoff_checks", "Machines' checks, by what they found last.", labels=["status"])
        for status, count in checks.items():
            statuses.add_metric([status], count)
        yield statuses
        yield GaugeMetricFamily("castoff_page_browsers", "Browsers that watch.", value=len(self._stream))
        yield CounterMetricFamily(
            "castoff_page_browsers_dropped", "Browsers that did not keep up and had to come back.", value=self._stream.dropped
        )


class _Usage(Collector):
    """Of all machines together: a label a machine would have no bound."""

    def __init__(self, usage: Callable[[], MachinesUsage | None]) -> None:
        self._usage = usage

    def collect(self) -> Iterable[Metric]:
        usage = self._usage()
        if usage is None:
            return
        yield CounterMetricFamily(
            "castoff_machines_cpu_seconds",
            "Processor time of the machines' VMMs since the first of them; begins again after the last.",
            value=usage.cpu_seconds,
        )
        for name, help, value in (
            ("memory_bytes", "Memory of the machines' VMMs, with their page cache.", usage.memory),
            ("tasks", "Processes and threads of the machines' VMMs.", usage.pids),
        ):
            if value >= 0:
                yield GaugeMetricFamily(f"castoff_machines_{name}", help, value=value)


class StoreGauge:
    """Store and hydration, looked at in a thread, and seldom: counting shared extents takes a while in a large store.

    Args:
        metrics: Whose gauges are set.
        usage: Looks at the store.
        free: Bytes that it has left, quickly; blocks.
        hydration: Looks how much of the machines' data is here; blocks.
        every: Seconds between two looks at the whole store.
    """

    def __init__(
        self,
        metrics: Metrics,
        usage: Callable[[], Awaitable[Usage]],
        free: Callable[[], int],
        hydration: Callable[[], HydrationCount],
        *,
        every: float = 60.0,
    ) -> None:
        registry = metrics.registry
        self._usage, self._free_bytes, self._hydration, self._every = usage, free, hydration, every
        self._looked = float("-inf")
        self._lock = asyncio.Lock()
        self._bytes = Gauge("castoff_store_bytes", "Bytes on disk, what is shared counted once.", ["part"], registry=registry)
        self._entries = Gauge("castoff_store_entries", "Layers, root filesystems, machines.", ["kind"], registry=registry)
        self._free = Gauge("castoff_store_free_bytes", "Bytes that the store's disk has left.", registry=registry)
        self._limit = Gauge("castoff_store_limit_bytes", "store.size_limit; 0: none.", registry=registry)
        self._hydrating = Gauge(
            "castoff_hydrating_machines", "Machines that run before all of their data is here.", registry=registry
        )
        self._chunks = Gauge(
            "castoff_hydration_chunks", "Chunks of those machines' data, by state.", ["state"], registry=registry
        )

    async def refresh(self) -> None:
        """Looks, where the last look is long ago.

        Raises:
            CastoffError: The store cannot be read.
        """
        async with self._lock:
            self._free.set(max(0, await asyncio.to_thread(self._free_bytes)))
            count = await asyncio.to_thread(self._hydration)
            self._hydrating.set(count.machines)
            for state, chunks in (("absent", count.absent), ("filling", count.filling), ("present", count.present)):
                self._chunks.labels(state).set(chunks)
            if time.monotonic() - self._looked < self._every:
                return
            usage = await self._usage()
            self._looked = time.monotonic()
            self._bytes.labels("cached").set(usage.cached)
            self._bytes.labels("total").set(usage.total)
            self._limit.set(usage.limit)
            for kind, entries in (("layer", usage.layers), ("rootfs", usage.rootfs), ("machine", usage.machines)):
                self._entries.labels(kind).set(len(entries))
