"""An ext4 that was made of an image in containerd: a rootfs of our store like any other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from castoff.disk.clone import CloneStrategy, Drive
from castoff.store.machines import MachineRootfs, write_machine_rootfs
from castoff.store.rootfs import StoredRootfs

__all__ = ["ImageRootfs"]


@dataclass(frozen=True, slots=True)
class ImageRootfs:
    """It stays in the store while this value lives, and while a machine's record names it."""

    stored: StoredRootfs
    strategy: CloneStrategy
    provider: str = "containerd"

    @property
    def path(self) -> Path:
        """The rootfs file, never to be written."""
        return self.stored.file

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.stored.name.size

    async def clone(self, machine_id: str, directory: Path) -> list[Drive]:
        """See castoff.rootfs.provider."""
        write_machine_rootfs(directory, MachineRootfs(provider=self.provider, rootfs=str(self.stored.name)))
        return await self.strategy.clone(self.path, directory, size=self.size)

    async def release(self, machine_id: str) -> None:
        """Nothing outlives the machine's directory."""
