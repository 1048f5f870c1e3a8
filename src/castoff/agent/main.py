"""The agent: everything wired, in the order in which it starts. What ends it ends in the opposite order; machines go on."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from castoff.agent.applogs import app_log_routes
from castoff.agent.images import HostImages
from castoff.agent.launch.launcher import HostLauncher
from castoff.agent.launch.logs import Logs
from castoff.agent.listen import SOCKET, agent_directory, alone, bind, tls_context
from castoff.agent.network.bridge import resolvers_of
from castoff.agent.network.names import Names, serving_names
from castoff.agent.network.network import HostNetwork, open_network
from castoff.agent.observe import ObservedLauncher
from castoff.agent.peers.server import serving_peers
from castoff.agent.reconcile import reconcile_forever, refuse_unknown
from castoff.agent.routes import counted, log_routes
from castoff.agent.tracing import Tracer
from castoff.api.creates import Creates, CreateSink
from castoff.api.hydration import count_hydration
from castoff.api.metrics import Metrics, StoreGauge
from castoff.api.page import Page, add_page
from castoff.api.parts import Parts
from castoff.api.server import build_app, serving
from castoff.api.stream import MachineStream
from castoff.api.tokens import Tokens
from castoff.config import Config
from castoff.host import Host
from castoff.lifecycle.addresses import Addresses
from castoff.lifecycle.apps import Apps
from castoff.lifecycle.attached import Attached, Backups
from castoff.lifecycle.database import Database
from castoff.lifecycle.machines import Machines
from castoff.lifecycle.ports import Ports
from castoff.lifecycle.releases import Releases
from castoff.lifecycle.secrets import Secrets
from castoff.lifecycle.volumes import Volumes
from castoff.vmm.limits import all_usage, missing_limits

__all__ = ["Agent", "database_path", "running"]


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


def database_path(state: Path) -> Path:
    """The agent's database in a state directory."""
    return state / "castoff.db"


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
        is_first = not database_path(config.state).exists()
        database = await enter(Database.open(database_path(config.state)))
        tokens, apps, secrets = Tokens(database), Apps(database), Secrets(database)
        volumes = Volumes(database, host.store.root / "volumes", region=settings.region)
        await apps.load()
        await volumes.load(discard_unknown=discard_unknown)
        token = (await tokens.create(name="first"))[1] if is_first and first_token else ""

        if missing := await asyncio.to_thread(missing_limits, config.vmm.limits, host.store.machines):
            notice(missing)
        if config.machine.network == "user" and (config.vmm.rates.network_bytes or config.vmm.rates.most.network_bytes):
            notice("vmm.rates: network_bytes does not apply: QEMU's user network cannot be limited")

        metrics = Metrics()
        sinks: list[CreateSink] = [metrics]
        if settings.otlp_endpoint:
            sinks.append(await enter(Tracer.open(settings.otlp_endpoint, notice=notice)))
        creates = Creates(sinks)
        logs = Logs(directory / "logs")
        network = await open_network(settings.network, lambda app: apps.get(app).number)
        host_launcher = HostLauncher(host, logs, settings.rootfs_directories, network, settings.network.publish)
        launcher = ObservedLauncher(host_launcher, creates)
        machines = await enter(
            Machines.open(
                database,
                launcher,
                secrets=secrets,
                volumes=volumes,
                region=settings.region,
                notice=notice,
                probed=metrics.probed,
                addresses=Addresses(network.plan.ipv4, network.plan.ipv6) if network else None,
                ports=Ports(settings.network.publish_from if settings.network.publish else None),
            )
        )
        if not discard_unknown:
            await refuse_unknown(machines, launcher)
        if network is not None:
            names = Names(machines.list, resolvers_of(settings.network))
            await enter(serving_names(names, network.plan.gateway))
        await enter(_beside(reconcile_forever(machines, launcher, logs, partial(_sweep, host, network, machines), notice)))
        attached = Attached(volumes, machines)
        await enter(_beside(Backups(volumes, attached, notice).forever()))

        stream = await enter(MachineStream.open(machines))
        metrics.watch(machines, stream)
        metrics.watch_usage(partial(all_usage, config.vmm.limits, host.store.machines))
        gauges = StoreGauge(metrics, host.usage, host.store.free, partial(count_hydration, host.store.machines))
        page = Page(
            machines=machines,
            stream=stream,
            creates=creates,
            metrics=metrics,
            store=host.store.root,
            usage=host.usage,
            gauges=gauges,
            hosts=settings.hosts,
        )
        parts = Parts(
            machines=machines,
            apps=apps,
            volumes=volumes,
            attached=attached,
            secrets=secrets,
            releases=Releases(database),
            authenticator=tokens,
            images=HostImages(host),
            settings=settings,
        )
        app = build_app(parts, [counted(metrics, creates), log_routes(logs), app_log_routes(logs), partial(add_page, page=page)])
        await enter(serving_peers(config.peers, host.store, creates.under_way))
        sockets = bind(settings, directory)
        address = ":".join(map(str, sockets[1].getsockname()[:2])) if len(sockets) > 1 else ""
        await enter(serving(app, sockets, tls=tls))
        yield Agent(socket=directory / SOCKET, address=address, token=token, machines=machines, tls=tls)


async def _sweep(host: Host, network: HostNetwork | None, machines: Machines) -> int:
    """Removes what processes left that were killed, and counts it."""
    swept = await host.sweep()
    return swept + (await network.tidy(machine.id for machine in machines.list()) if network is not None else 0)


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs ``work`` beside the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
