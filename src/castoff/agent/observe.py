"""A launcher whose every launch is a create with a timeline, around another one."""

from __future__ import annotations

from castoff.api.creates import Creates
from castoff.errors import Unavailable
from castoff.lifecycle.config import MachineConfig
from castoff.lifecycle.launcher import Ending, Keeping, Launch, Launcher, Remembering, Run, RunExit
from castoff.machine.model import MachineId
from castoff.timeline import step

__all__ = ["ObservedLauncher"]


class ObservedLauncher:
    """Implements castoff.lifecycle.launcher.Launcher, Remembering, Keeping and Ending.

    Args:
        launcher: Does the work.
        creates: Is told of it.
    """

    def __init__(self, launcher: Launcher, creates: Creates) -> None:
        self._launcher = launcher
        self._creates = creates

    def check(self, config: MachineConfig) -> None:
        """See the port."""
        self._launcher.check(config)

    async def resolve(self, image: str) -> str:
        """See the port."""
        with self._creates.resolving(), step("agent.resolve"):
            return await self._launcher.resolve(image)

    async def launch(self, launch: Launch) -> Run:
        """See the port."""
        with (
            self._creates.launching(machine=launch.machine, app=launch.app, image=launch.config.image),
            step("agent.launch", machine=launch.machine),
        ):
            return await self._launcher.launch(launch)

    async def reattach(self, launch: Launch) -> Run | None:
        """See the port."""
        return await self._launcher.reattach(launch)

    async def last_exit(self, machine: MachineId) -> RunExit | None:
        """See castoff.lifecycle.launcher.Remembering."""
        return await self._launcher.last_exit(machine) if isinstance(self._launcher, Remembering) else None

    async def keeps(self, machine: MachineId) -> bool:
        """See castoff.lifecycle.launcher.Keeping."""
        return isinstance(self._launcher, Keeping) and await self._launcher.keeps(machine)

    async def forget(self, machine: MachineId) -> None:
        """See castoff.lifecycle.launcher.Keeping."""
        if isinstance(self._launcher, Keeping):
            await self._launcher.forget(machine)

    async def end(self, machine: MachineId) -> None:
        """See castoff.lifecycle.launcher.Ending."""
        if not isinstance(self._launcher, Ending):
            raise Unavailable(f"machine {machine} does not answer")
        await self._launcher.end(machine)

    async def discard(self, machine: MachineId) -> None:
        """See the port."""
        await self._launcher.discard(machine)

    async def machines(self) -> list[MachineId]:
        """See the port."""
        return await self._launcher.machines()
