"""What a reflinking filesystem gives through ioctl: clones of files and ranges, and a file's extent map.

Numbers and structures are those of linux/fs.h and linux/fiemap.h. XFS and btrfs clone; ext4 answers EOPNOTSUPP.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BLOCK", "Extent", "clone_file", "clone_range", "extents", "probe_reflink"]

BLOCK = 4096
"""Ranges must start on filesystem blocks; 4 KiB is one on every filesystem here."""

_FICLONE = 0x40049409
_FICLONERANGE = 0x4020940D
_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP_FLAG_SYNC = 1
_FIEMAP_EXTENT_LAST = 0x1
_FIEMAP_EXTENT_UNWRITTEN = 0x800
_FIEMAP_EXTENT_SHARED = 0x2000
_HEADER = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQ2QI3I")
_BATCH = 512

_CANNOT = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ETXTBSY}
"""What the kernel answers where files cannot be cloned: no such operation, other filesystem, realtime file, swap file."""


def clone_file(source: int, target: int) -> bool:
    """Makes the file ``target`` (a descriptor, writable, empty) share all of ``source``'s extents.

    Returns:
        False where the filesystem cannot; nothing was written then.

    Raises:
        OSError: Any other failure.
    """
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def clone_range(source: int, target: int, *, length: int, source_offset: int = 0, target_offset: int = 0) -> bool:
    """Shares ``length`` bytes of ``source`` at ``target_offset``; offsets and length in whole blocks.

    Returns:
        False where the filesystem cannot; nothing was written then.

    Raises:
        OSError: Any other failure.
    """
    if length == 0:
        return True  # to the ioctl, 0 means "to the end of the file"
    try:
        fcntl.ioctl(target, _FICLONERANGE, struct.pack("=qQQQ", source, source_offset, length, target_offset))
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def probe_reflink(directory: Path) -> bool:
    """Whether files in ``directory`` can share extents: tries it, since no name or flag of a filesystem tells."""
    import tempfile  # 5 ms; the answer is kept, so the warm path never asks

    with tempfile.TemporaryFile(dir=directory) as source, tempfile.TemporaryFile(dir=directory) as target:
        source.write(bytes(BLOCK))
        source.flush()
        return clone_file(source.fileno(), target.fileno())


@dataclass(frozen=True, slots=True)
class Extent:
    """One extent of a file. Offsets and length in bytes."""

    logical: int
    physical: int
    length: int
    shared: bool
    unwritten: bool


def extents(descriptor: int) -> list[Extent] | None:
    """The file's extents (FIEMAP), dirty data flushed first; None where the filesystem does not tell."""
    found: list[Extent] = []
    start = 0
    size = os.fstat(descriptor).st_size
    while start < size:
        buffer = bytearray(_HEADER.size + _BATCH * _EXTENT.size)
        _HEADER.pack_into(buffer, 0, start, size - start, _FIEMAP_FLAG_SYNC, 0, _BATCH, 0)
        try:
            fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, buffer)
        except OSError as error:
            if error.errno in _CANNOT:
                return None
            raise
        mapped = _HEADER.unpack_from(buffer)[3]
        last = mapped == 0
        for index in range(mapped):
            logical, physical, length, _, _, flags, *_ = _EXTENT.unpack_from(buffer, _HEADER.size + index * _EXTENT.size)
            shared, unwritten = bool(flags & _FIEMAP_EXTENT_SHARED), bool(flags & _FIEMAP_EXTENT_UNWRITTEN)
            found.append(Extent(logical, physical, length, shared, unwritten))
            last = last or bool(flags & _FIEMAP_EXTENT_LAST)
            start = logical + length
        if last:
            break
    return found
