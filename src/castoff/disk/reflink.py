"""Clones by reflink: the machine's root is a file that shares every extent of the rootfs until one of them is written.

The time is the number of extents (15-20 us each on XFS), not of bytes; nothing is written but those records.
"""

from __future__ import annotations

from pathlib import Path

from castoff import timeline
from castoff.disk.clone import CloneKind, Drive, Role
from castoff.disk.files import created, reading
from castoff.errors import Unsupported
from castoff.store.extents import clone_file

__all__ = ["ReflinkClone"]


class ReflinkClone:
    """One writable drive, the root, on the filesystem of the rootfs."""

    kind = CloneKind.REFLINK

    async def clone(self, rootfs: Path, directory: Path, *, size: int) -> list[Drive]:
        """See castoff.disk.clone. Runs in the event loop: a thread would cost as much as the clone."""
        with (
            timeline.step("disk.reflink"),
            reading(rootfs) as source,
            created(directory / "root.ext4") as (path, target),
        ):
            if not clone_file(source, target):
                raise Unsupported(
                    f"{rootfs} cannot be reflinked to {directory}: not one filesystem, or one without reflinks",
                    hint="use --clone overlay or copy, or see `castoff doctor`",
                )
            return [Drive(Role.ROOT, path, read_only=False, direct=True)]
