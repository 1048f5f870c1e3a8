"""The machines of this host, and what runs beside them: their network and its names, reconciliation, backups of volumes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from castoff.agent.launch.launcher import HostLauncher
from castoff.agent.launch.logs import Logs
from castoff.agent.network.bridge import resolvers_of
from castoff.agent.network.names import Names, serving_names
from castoff.agent.network.network import HostNetwork, open_network
from castoff.agent.observe import ObservedLauncher
from castoff.agent.reconcile import reconcile_forever, refuse_unknown
from castoff.agent.records import Records
from castoff.api.creates import Creates
from castoff.api.metrics import Metrics
from castoff.config import Config
from castoff.host import Host
from castoff.lifecycle.addresses import Addresses
from castoff.lifecycle.attached import Attached, Backups
from castoff.lifecycle.launcher import Launcher
from castoff.lifecycle.machines import Machines
from castoff.lifecycle.ports import Ports

__all__ = ["beside", "hosted_machines"]


@contextlib.asynccontextmanager
async def hosted_machines(
    config: Config,
    host: Host,
    records: Records,
    *,
    creates: Creates,
    metrics: Metrics,
    logs: Logs,
    notice: Callable[[str], None],
    discard_unknown: bool,
) -> AsyncIterator[tuple[Machines, Attached]]:
    """The machines, taken up where the last agent left them, and the volumes that they have.

    Raises:
        Conflict: There are machines on this host's disk that are not in the database, and they are not to be removed.
        CastoffError: The network cannot be made.
    """
    settings = config.agent
    network = await open_network(settings.network, lambda app: records.apps.get(app).number)
    host_launcher = HostLauncher(host, logs, settings.rootfs_directories, network, settings.network.publish)
    launcher = ObservedLauncher(host_launcher, creates)
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        machines = await enter(
            Machines.open(
                records.database,
                launcher,
                secrets=records.secrets,
                volumes=records.volumes,
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
            names = Names(machines.list, lambda: machines.revision, resolvers_of(settings.network))
            await enter(serving_names(names, network.plan.gateway))
        attached = Attached(records.volumes, machines)

        async def sweep() -> int:
            return await _sweep(host, network, machines) + await _release_lost(attached, launcher, notice)

        await enter(beside(reconcile_forever(machines, launcher, logs, sweep, notice)))
        await enter(beside(Backups(records.volumes, attached, notice).forever()))
        yield machines, attached


async def _sweep(host: Host, network: HostNetwork | None, machines: Machines) -> int:
    """Removes what processes left that were killed, and counts it."""
    swept = await host.sweep()
    return swept + (await network.tidy(machine.id for machine in machines.list()) if network is not None else 0)


async def _release_lost(attached: Attached, launcher: Launcher, notice: Callable[[str], None]) -> int:
    """Gives back volumes of machines that are no more, tells of each, and counts them."""
    lost = await attached.release_lost(await launcher.machines())
    for volume in lost:
        notice(f"volume {volume.id} was given back: machine {volume.machine}, which had it, is no more")
    return len(lost)


@contextlib.asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs ``work`` beside the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
