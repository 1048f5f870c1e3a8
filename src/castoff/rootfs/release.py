"""Gives back what a machine's rootfs holds outside of its directory, in any process, also long after its creator's end."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from castoff.rootfs.chain import configured_chain
from castoff.rootfs.context import ProviderContext
from castoff.store.machines import MachineRootfs, read_machine_rootfs

__all__ = ["Releases", "release_machine"]


@runtime_checkable
class Releases(Protocol):
    """An optional ability of a provider: its machines hold something outside of their directories."""

    async def release_machine(self, machine_id: str, record: MachineRootfs) -> None:
        """Gives back what the machine holds, as its record tells. Idempotent."""
        ...


async def release_machine(machine_id: str, directory: Path, context: ProviderContext) -> None:
    """Releases the rootfs of the machine whose directory is ``directory``, before that is deleted. Idempotent.

    Raises:
        NotFound: Its provider is not configured any more.
        Unavailable: Its provider's daemon does not answer.
    """
    record = read_machine_rootfs(directory)
    if record is None:
        return
    provider = configured_chain(context).provider(record.provider)
    if isinstance(provider, Releases):
        await provider.release_machine(machine_id, record)
