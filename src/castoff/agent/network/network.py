"""Which machines are in the network: each is let in before its VMM starts, and out when it is no more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from castoff.agent.network import rules
from castoff.agent.network.bridge import Plan, apply_rules, make_bridge, plan, ports_of
from castoff.agent.network.rules import Member
from castoff.errors import Unavailable
from castoff.lifecycle.addresses import mac_address
from castoff.lifecycle.launcher import Launch
from castoff.lifecycle.settings import NetworkSettings
from castoff.machine.model import MachineId
from castoff.store.builds import uninterrupted
from castoff.vmm.rates import Rates
from castoff.vmm.tap import Tap, remove_tap

__all__ = ["HostNetwork", "device_name", "open_network"]

_PREFIX: Final = "t"


@dataclass(slots=True)
class _Batch:
    """Changes that are made together, and who waits for them."""

    joined: dict[MachineId, Member]
    made: asyncio.Task[None] | None = None


class HostNetwork:
    """The network of one host's machines. Made by :meth:`open`.

    Args:
        settings: Of it.
        plan: Its addresses.
        app_number: The number of an app, by its name.
    """

    def __init__(self, settings: NetworkSettings, plan: Plan, app_number: Callable[[str], int]) -> None:
        self._settings = settings
        self.plan = plan
        self._app_number = app_number
        self._members: dict[MachineId, Member] = {}
        self._lock = asyncio.Lock()
        self._batch: _Batch | None = None

    @classmethod
    async def open(cls, settings: NetworkSettings, plan: Plan, app_number: Callable[[str], int]) -> HostNetwork:
        """Makes bridge and rules; members that an earlier agent let in stay until :meth:`tidy`.

        Raises:
            Unsupported: This host, or this process, cannot.
            Conflict: Something of the same name or network is there.
            Unavailable: It did not work.
        """
        found = cls(settings, plan, app_number)
        await uninterrupted(make_bridge, settings, plan)
        await uninterrupted(apply_rules, found._tables())
        return found

    async def admit(self, launch: Launch, rates: Rates) -> Tap:
        """Lets a machine in; the tap that its VMM is to have. Machines that come together are let in together.

        Args:
            launch: The machine.
            rates: How fast it may be.

        Raises:
            Unavailable: The rules cannot be changed.
        """
        number = self._app_number(launch.app)
        tap = Tap(
            device=device_name(launch.machine),
            bridge=self._settings.bridge,
            mac=mac_address(launch.address),
            address=f"{launch.address}/32",
            gateway=self.plan.gateway,
            nameserver=self.plan.gateway,
            address6=launch.address6,
            gateway6=self.plan.gateway6,
        )
        member = Member(tap=tap, app=number, ports=launch.ports, rates=rates)
        batch = self._batch
        if batch is None:
            batch = self._batch = _Batch({})
            batch.made = asyncio.create_task(self._let_in(batch))
        batch.joined[launch.machine] = member
        assert batch.made is not None
        await asyncio.shield(batch.made)
        return tap

    async def dismiss(self, machine: MachineId) -> None:
        """A machine is no more, and its ports lead nowhere. Idempotent.

        Raises:
            Unavailable: The rules cannot be changed.
        """
        async with self._lock:
            await uninterrupted(remove_tap, device_name(machine))  # first: without its rules nothing would hold it back
            member = self._members.pop(machine, None)
            if member is not None:
                await self._apply(rules.members_removed(self._settings, [member]))

    async def close_ports(self, machine: MachineId) -> None:
        """A machine does not run: who connects to what it publishes is refused at once, until it is let in again. Idempotent.

        Raises:
            Unavailable: The rules cannot be changed.
        """
        async with self._lock:
            member = self._members.get(machine)
            if member is not None and member.ports:
                self._members[machine] = replace(member, ports=())
                await self._apply(rules.ports_closed(self._settings, member))

    async def tidy(self, machines: Iterable[MachineId]) -> int:
        """Removes taps that nobody knows any more, and their rules, and sees to what is missing; counts the taps.

        Args:
            machines: Those that there are. One that runs since an earlier agent may not have been let in by this one yet: as long
                as there is such a one, rules that are there stay.
        """
        known = {device_name(machine) for machine in machines}
        async with self._lock:
            await uninterrupted(make_bridge, self._settings, self.plan)
            ports = set(await asyncio.to_thread(ports_of, self._settings.bridge))
            for port in ports - known:
                await uninterrupted(remove_tap, port)
            if ports & known <= {member.tap.device for member in self._members.values()}:
                await self._apply_all()
        return len(ports - known)

    async def _let_in(self, batch: _Batch) -> None:
        async with self._lock:
            self._batch = None  # whoever comes from now on is in the next
            changed = [machine for machine, member in batch.joined.items() if self._members.get(machine) != member]
            before = [self._members[machine] for machine in changed if machine in self._members]
            self._members.update(batch.joined)
            if not changed:
                return
            added = rules.members_added(self._settings, [batch.joined[machine] for machine in changed])
            await self._apply(rules.members_removed(self._settings, before) + added)

    async def _apply(self, text: str) -> None:
        """Changes what there is; where that is not what we think, all of it."""
        try:
            await uninterrupted(apply_rules, text)
        except Unavailable:
            await self._apply_all()

    async def _apply_all(self) -> None:
        members = rules.members_added(self._settings, self._members.values())
        anew = rules.forget_rates(self._settings) + self._tables() + rules.forget_members(self._settings)
        await uninterrupted(apply_rules, anew + members)

    def _tables(self) -> str:
        plan = self.plan
        return rules.tables(
            self._settings, ipv4=str(plan.ipv4), ipv6=str(plan.ipv6), gateway=plan.gateway, gateway6=plan.gateway6
        )


async def open_network(settings: NetworkSettings, app_number: Callable[[str], int]) -> HostNetwork | None:
    """The network that the settings want; None: each machine has its VMM's own.

    Raises:
        CastoffError: As :meth:`HostNetwork.open`; or the settings are broken.
    """
    planned = plan(settings)
    return await HostNetwork.open(settings, planned, app_number) if settings.mode == "bridge" else None


def device_name(machine: MachineId) -> str:
    """The name of a machine's tap: an interface has 15 letters, an id 14."""
    return f"{_PREFIX}{machine}"[:15]
