"""The agent: everything wired, in the order in which it starts. What ends it ends in the opposite order; machines go on."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from castoff.agent.applogs import app_log_routes
from castoff.agent.fleet.fleet import host_doors, in_fleet, placed
from castoff.agent.fleet.order_routes import order_routes
from castoff.agent.fleet.regions import fleet_room
from castoff.agent.fleet.routes import fleet_routes
from castoff.agent.fleet.transfers import in_sight, transfer_routes
from castoff.agent.fleet.working import working_orders
from castoff.agent.hosted import hosted_machines
from castoff.agent.images import HostImages
from castoff.agent.launch.logs import Logs
from castoff.agent.listen import SOCKET, agent_directory, alone, bind, tls_context
from castoff.agent.peers.server import serving_peers
from castoff.agent.peers.traffic import Traffic
from castoff.agent.records import open_records
from castoff.agent.routes import counted, log_routes
from castoff.agent.tracing import Tracer
from castoff.api.creates import Creates, CreateSink
from castoff.api.hydration import count_hydration
from castoff.api.metrics import Metrics, StoreGauge
from castoff.api.page import Page, add_page
from castoff.api.parts import Parts
from castoff.api.server import build_app, serving
from castoff.api.stream import MachineStream
from castoff.config import Config
from castoff.host import Host
from castoff.lifecycle.machines import Machines
from castoff.vmm.limits import all_usage, missing_limits

__all__ = ["Agent", "running"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A running agent.

    Attributes:
        socket: Its unix socket.
        address: ``ADDRESS:PORT`` that it listens at besides; empty: none.
        token: The first token's text, at the first start of all; empty later.
        machines: The machines.
        tls: What it serves its port with; None: it has no TLS.
    """

    socket: Path
    address: str
    token: str
    machines: Machines
    tls: ssl.SSLContext | None


@contextlib.asynccontextmanager
async def running(
    config: Config, *, notice: Callable[[str], None] = lambda line: None, first_token: bool = True, discard_unknown: bool = False
) -> AsyncIterator[Agent]:
    """An agent over ``config.state``, which serves for the block.

    Args:
        config: The configuration.
        notice: Called with a line for people.
        first_token: Make one at the first start of all.
        discard_unknown: Remove machines and volumes that are on this host's disk and not in the database.

    Raises:
        Conflict: Another agent runs there; or there are such machines, and they are not to be removed.
        CastoffError: The configuration is broken, or something that it needs is.
    """
    settings = config.agent
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        tls = tls_context(settings)
        directory = await asyncio.to_thread(agent_directory, config.state)
        stack.enter_context(alone(directory))
        host = await enter(Host.open(config=config, notice=notice))
        volumes = host.store.root / "volumes"
        records = await enter(open_records(config, volumes, first_token=first_token, discard_unknown=discard_unknown))
        await _tell_of_limits(config, host, notice)

        metrics, logs = Metrics(), Logs(directory / "logs")
        sinks: list[CreateSink] = [metrics]
        if settings.otlp_endpoint:
            sinks.append(await enter(Tracer.open(settings.otlp_endpoint, notice=notice)))
        creates = Creates(sinks)
        hosted = hosted_machines(
            config, host, records, creates=creates, metrics=metrics, logs=logs, notice=notice, discard_unknown=discard_unknown
        )
        machines, attached = await enter(hosted)

        fleet = await enter(in_fleet(config, host.store, machines, directory, notice))
        parts = Parts(
            machines=machines,
            apps=records.apps,
            volumes=records.volumes,
            attached=attached,
            secrets=records.secrets,
            releases=records.releases,
            authenticator=records.tokens,
            images=HostImages(host),
            settings=settings,
            room=fleet_room(fleet, settings.region),
        )
        page = _page(config, host, machines, await enter(MachineStream.open(machines)), creates, metrics)
        working = await enter(working_orders(fleet, host, notice))
        traffic = Traffic()
        seen = transfer_routes(fleet, await enter(in_sight(fleet, traffic, notice)))
        registers = [counted(metrics, creates), log_routes(logs), app_log_routes(logs), fleet_routes(fleet), placed(fleet)]
        app = build_app(parts, [*registers, order_routes(fleet, working), seen, partial(add_page, page=page)])
        doors = await enter(host_doors(config, fleet, records, directory / SOCKET))
        peers = serving_peers(config.peers, host.store, creates.under_way, doors, metrics=metrics.registry, traffic=traffic)
        await enter(peers)
        sockets = bind(settings, directory)
        address = ":".join(map(str, sockets[1].getsockname()[:2])) if len(sockets) > 1 else ""
        await enter(serving(app, sockets, tls=tls))
        yield Agent(socket=directory / SOCKET, address=address, token=records.first_token, machines=machines, tls=tls)


async def _tell_of_limits(config: Config, host: Host, notice: Callable[[str], None]) -> None:
    """Says which of the limits that are configured this host cannot keep."""
    if missing := await asyncio.to_thread(missing_limits, config.vmm.limits, host.store.machines):
        notice(missing)
    of_network = config.vmm.rates.network_bytes or config.vmm.rates.most.network_bytes
    if config.agent.network.mode == "user" and config.machine.network == "user" and of_network:
        notice("vmm.rates: network_bytes does not apply: QEMU's user network cannot be limited")


def _page(config: Config, host: Host, machines: Machines, stream: MachineStream, creates: Creates, metrics: Metrics) -> Page:
    """The page and /metrics, which show the same things."""
    metrics.watch(machines, stream)
    metrics.watch_usage(partial(all_usage, config.vmm.limits, host.store.machines))
    return Page(
        machines=machines,
        stream=stream,
        creates=creates,
        metrics=metrics,
        store=host.store.root,
        usage=host.usage,
        gauges=StoreGauge(metrics, host.usage, host.store.free, partial(count_hydration, host.store.machines)),
        hosts=config.agent.hosts,
    )
