"""The provider of a rootfs that exists: a raw ext4 file or a block device, named by the machine or by the operator.

What containerd, or we, would have built is overridden as a whole: nothing of the image but its configuration is used.
A file is reflinked, copied or shared under an overlay as any rootfs is. A block device is never written: its machines get
an overlay on it, or a copy.
"""

from __future__ import annotations

import asyncio
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from castoff import timeline
from castoff.disk.choose import clone_strategy
from castoff.disk.clone import CloneKind, CloneStrategy, Drive
from castoff.disk.files import reading
from castoff.errors import Invalid, Unsupported
from castoff.image.image import Image
from castoff.rootfs.context import ProviderContext
from castoff.rootfs.provider import Rootfs, RootfsRequest
from castoff.store.machines import MachineRootfs, write_machine_rootfs

__all__ = ["PreparedProvider"]

_SUPERBLOCK = 1024
_EXT4_MAGIC = (_SUPERBLOCK + 0x38, b"\x53\xef")
_OTHER_FORMATS = (
    (0, b"QFI\xfb", "qcow2", "convert it with `qemu-img convert -O raw`"),
    (0, b"KDMV", "VMDK", "convert it with `qemu-img convert -O raw`"),
    (0, b"conectix", "VHD", "convert it with `qemu-img convert -O raw`"),
    (0, b"vhdxfile", "VHDX", "convert it with `qemu-img convert -O raw`"),
    (0, b"hsqs", "squashfs", "castoff boots ext4: make one with `mke2fs -d`"),
    (0, b"XFSB", "XFS", "castoff boots ext4: make one with `mke2fs -d`"),
    (0, b"\x1f\x8b", "gzip", "decompress it"),
    (0, b"\x28\xb5\x2f\xfd", "zstd", "decompress it"),
    (1024, b"\xe2\xe1\xf5\xe0", "EROFS", "castoff boots ext4: make one with `mke2fs -d`"),
    (510, b"\x55\xaa", "a partitioned disk", "give its root partition alone"),
)
_HEAD = 4096


class PreparedProvider:
    """Answers with ``request.override``, or with what ``rootfs.prepared`` of the settings names for the image."""

    name = "prepared"

    def __init__(self, context: ProviderContext) -> None:
        self._context = context

    async def locate(self, request: RootfsRequest) -> Rootfs | None:
        """None where nobody named a rootfs for the image.

        Raises:
            NotFound, Unauthorized: It is not there, or not ours to read.
            Invalid: It is no raw ext4, or of another size than asked for.
            Unsupported: It cannot be cloned in the way asked for.
        """
        path = request.override or self._mapped(request.image)
        if path is None:
            return None
        path = path.absolute()
        with timeline.step("rootfs.prepared", path=str(path)):
            size, device = await asyncio.to_thread(_examine, path)
        if request.size is not None and request.size > size:
            raise Invalid(
                f"{path} has {size} bytes, and {request.size} were asked for: a prepared rootfs keeps its size",
                hint="leave --disk-size away, or enlarge it with `truncate` and `resize2fs`",
            )
        kind = request.clone or self._context.settings.clone
        if device and kind is None:
            kind = CloneKind.OVERLAY
        if device and kind is CloneKind.REFLINK:
            raise Unsupported(f"{path} is a block device and cannot be reflinked", hint="use --clone overlay or copy")
        return PreparedRootfs(path, size, clone_strategy(kind, self._context.store))

    def _mapped(self, image: Image) -> Path | None:
        found = self._context.settings.prepared
        name = found.get(image.reference) or found.get(str(image.digest))
        return None if name is None else Path(name)


@dataclass(frozen=True, slots=True)
class PreparedRootfs:
    """A file or block device that is nobody's but the operator's: cloned, never written, never released."""

    path: Path
    size: int
    strategy: CloneStrategy
    provider: str = PreparedProvider.name

    async def clone(self, machine_id: str, directory: Path) -> list[Drive]:
        """See castoff.rootfs.provider."""
        write_machine_rootfs(directory, MachineRootfs(provider=self.provider, state={"path": str(self.path)}))
        return await self.strategy.clone(self.path, directory, size=self.size)

    async def release(self, machine_id: str) -> None:
        """Nothing outlives the machine's directory."""


def _examine(path: Path) -> tuple[int, bool]:
    """(bytes, whether it is a block device) of a raw ext4, or an error that says what it is instead."""
    with reading(path) as descriptor:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise Invalid(f"{path} is neither a file nor a block device", hint="name a raw ext4 image")
        size = os.lseek(descriptor, 0, os.SEEK_END)
        head = os.pread(descriptor, _HEAD, 0)
    offset, magic = _EXT4_MAGIC
    if head[offset : offset + 2] == magic:
        return size, stat.S_ISBLK(mode)
    for offset, magic, what, hint in _OTHER_FORMATS:
        if head[offset : offset + len(magic)] == magic:
            raise Invalid(f"{path} is {what}, not a raw ext4", hint=hint)
    raise Invalid(f"{path} holds no ext4 filesystem", hint="a prepared rootfs is a raw ext4 image, made with `mke2fs -d` perhaps")
