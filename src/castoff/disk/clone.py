"""The port through which a machine gets its writable copy of a rootfs.

Lifecycle: a strategy is asked once per machine for the drives that the VMM attaches; they live in the machine's own
directory, and deleting that directory is all it takes to be rid of them. The rootfs file is never written.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

__all__ = ["MAX_VOLUMES", "CloneKind", "CloneStrategy", "Drive", "Role", "inherited", "volume_role"]


class CloneKind(enum.StrEnum):
    """How a machine's copy is made."""

    REFLINK = "reflink"
    OVERLAY = "overlay"
    COPY = "copy"


class Role(enum.StrEnum):
    """What a drive is for. The guest finds drives by their serial, which is the role."""

    ROOT = "root"
    """A writable root filesystem, alone."""
    BASE = "base"
    """The read-only lower half of an overlay, shared by machines."""
    UPPER = "upper"
    """The writable upper half of an overlay."""
    VOLUME0 = "volume0"
    """The first volume: a filesystem of its own, which the guest mounts where its settings say."""
    VOLUME1 = "volume1"
    VOLUME2 = "volume2"
    VOLUME3 = "volume3"
    VOLUME4 = "volume4"
    VOLUME5 = "volume5"
    VOLUME6 = "volume6"
    VOLUME7 = "volume7"


MAX_VOLUMES: Final = 8
"""Volumes of one machine."""


def volume_role(number: int) -> Role:
    """The role of the volume of that number, from 0; below MAX_VOLUMES."""
    return Role(f"volume{number}")


@dataclass(frozen=True, slots=True)
class Drive:
    """One block device of a machine, backed by a raw file or a block device."""

    role: Role
    path: Path
    read_only: bool
    direct: bool
    """Open with O_DIRECT: reflinked files share no page cache, so caching them twice is waste; an overlay's base is
    shared and is cached."""
    inherit: tuple[int, ...] = ()
    """Descriptors without which the file must not be read (castoff.hydrate): the VMM's process inherits them, so that it
    cannot outlive their last holder. Whoever asked for the drive closes its own once the VMM runs."""


def inherited(drives: Iterable[Drive]) -> tuple[int, ...]:
    """The descriptors that the VMM's process inherits for these drives."""
    return tuple(descriptor for drive in drives for descriptor in drive.inherit)


class CloneStrategy(Protocol):
    """Makes the drives of one machine from one rootfs."""

    kind: CloneKind

    async def clone(self, rootfs: Path, directory: Path, *, size: int) -> list[Drive]:
        """Makes a machine's drives in ``directory`` (which exists and is the machine's own).

        Args:
            rootfs: The composed rootfs: a complete ext4 image.
            directory: Where the machine's own files go.
            size: Bytes of the rootfs; an overlay's upper drive gets as much.

        Raises:
            Unsupported: The filesystem cannot (no reflinks).
            NoSpace: Not enough room.
        """
        ...
