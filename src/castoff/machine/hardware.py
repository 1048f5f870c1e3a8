"""A machine's specification as its record keeps it, and back."""

from __future__ import annotations

from pathlib import Path

from castoff.disk.clone import Drive, Role
from castoff.machine.model import Hardware, HardwareDrive, MachineId
from castoff.vmm.vmm import MachineSpec

__all__ = ["hardware", "specification"]


def hardware(spec: MachineSpec) -> Hardware:
    """What is kept of a specification."""
    return Hardware(
        cpus=spec.cpus,
        memory=spec.memory,
        kernel=str(spec.kernel),
        drives=tuple(
            HardwareDrive(role=drive.role.value, path=str(drive.path), read_only=drive.read_only, direct=drive.direct)
            for drive in spec.drives
        ),
        ports=spec.ports,
        network=spec.network,
        rates=spec.rates,
        tap=spec.tap,
    )


def specification(kept: Hardware, machine: MachineId, user: int | None, directory: Path) -> MachineSpec:
    """The specification of a machine whose guest is there already: its drives inherit nothing, their data is all here.

    Args:
        kept: What was kept.
        machine: Its id.
        user: Who its VMM runs as.
        directory: Its directory, with the initramfs that it was started with.
    """
    return MachineSpec(
        id=machine,
        directory=directory,
        cpus=kept.cpus,
        memory=kept.memory,
        kernel=Path(kept.kernel),
        initramfs=directory / "initramfs",
        drives=tuple(Drive(Role(drive.role), Path(drive.path), drive.read_only, drive.direct) for drive in kept.drives),
        ports=kept.ports,
        network=kept.network,
        rates=kept.rates,
        tap=kept.tap,
        user=user,
    )
