"""A rootfs of block devices: each machine has a writable snapshot in containerd, kept by a lease, both named after it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from castoff import timeline
from castoff.disk.clone import Drive, Role
from castoff.errors import Conflict, Unavailable
from castoff.rootfs.containerd.client import connected
from castoff.rootfs.containerd.handover import block_device
from castoff.rootfs.settings import ContainerdSettings
from castoff.store.machines import MachineRootfs, write_machine_rootfs

__all__ = ["SnapshotRootfs", "release"]


def _name(machine_id: str) -> str:
    """Of a machine's snapshot and of its lease."""
    return f"castoff-machine-{machine_id}"


@dataclass(frozen=True, slots=True)
class SnapshotRootfs:
    """An image's snapshot in containerd, which machines' snapshots are children of.

    Attributes:
        settings: Where that containerd is.
        top: The snapshot's name: the image's chain ID.
        size: Bytes of its block device.
    """

    settings: ContainerdSettings
    top: str
    size: int
    provider: str = "containerd"

    async def clone(self, machine_id: str, directory: Path) -> list[Drive]:
        """The machine's own snapshot; its record is written before there is anything to give back.

        Raises:
            Conflict: The machine has one already.
        """
        name = _name(machine_id)
        state = {
            "socket": self.settings.socket,
            "namespace": self.settings.namespace,
            "snapshotter": self.settings.snapshotter,
            "snapshot": name,
        }
        write_machine_rootfs(directory, MachineRootfs(provider=self.provider, state=state), durable=True)
        with timeline.step("rootfs.containerd.snapshot"):
            async with connected(self.settings) as client:
                await client.create_lease(name, {"castoff/machine": machine_id})
                try:
                    mounts = await client.under(name).prepare(name, self.top, {"castoff/machine": machine_id})
                except Conflict as error:
                    raise Conflict(f"machine {machine_id} has a snapshot in containerd already") from error
            device = block_device(mounts, self.settings.snapshotter)
        if device is None:
            raise Unavailable(f"containerd's {self.settings.snapshotter} answered no block device for {name}")
        return [Drive(Role.ROOT, device.path, read_only=False, direct=True)]

    async def release(self, machine_id: str) -> None:
        """Removes the machine's snapshot and its lease. Idempotent."""
        await release(machine_id, self.settings)


async def release(machine_id: str, settings: ContainerdSettings) -> None:
    """Removes what a machine has in the containerd of ``settings``. Idempotent.

    Raises:
        NotFound, Unavailable: That containerd is not there.
    """
    name = _name(machine_id)
    with timeline.step("rootfs.containerd.snapshot", release=machine_id):
        async with connected(settings) as client:
            await client.remove_snapshot(name)
            await client.delete_lease(name)
