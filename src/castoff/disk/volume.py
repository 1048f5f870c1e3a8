"""Volumes: ext4 images that outlive machines, made, grown and copied. e2fsprogs does the first two; no shell is involved.

An image is sparse: it takes what was written to it. None of this may be done to an image that a machine has mounted, but
copying where the filesystem reflinks: that is one instant of the image, as after a power cut, and its journal makes it whole.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
import struct
import threading
from pathlib import Path
from typing import Final

from castoff.disk.files import created, reading
from castoff.disk.sparse import copy_range
from castoff.errors import Conflict, Internal, Invalid, NoSpace, Unavailable, Unsupported
from castoff.store.builds import uninterrupted
from castoff.store.durable import fsync_path
from castoff.store.extents import clone_file

__all__ = ["copy_volume", "filesystem_size", "grow_volume", "lengthen", "make_volume"]

_FEATURES: Final = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
"""mke2fs of 2018, whatever the host's own version and /etc/mke2fs.conf have besides: guests' kernels may be older than either
(orphan_file needs Linux 5.15). resize_inode: to grow."""
_TIMEOUT: Final = 600.0
_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
"""Debian keeps these tools where an ordinary user's PATH does not lead."""
_SUPERBLOCK: Final = 1024
_MAGIC: Final = 0xEF53
_CORRECTED: Final = 1
"""e2fsck's exit status for errors that it repaired."""


async def make_volume(path: Path, size: int, label: str) -> None:
    """Makes an empty filesystem, flushed to disk; where that fails there is no file.

    Args:
        path: The new image.
        size: Its bytes; what it takes of the disk is a few thousandths of that.
        label: Of the filesystem; its first 16 bytes count.

    Raises:
        NoSpace: The disk is full.
        Invalid: The host's filesystem has no files that large.
        Unsupported: The host has no mke2fs.
    """
    with created(path) as (_, descriptor):
        _truncate(descriptor, size)
        await _run(
            path,
            size,
            *("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-O", _FEATURES),
            *("-E", "discard,root_owner=0:0"),  # punched holes read as zeros: no table is written
            *("-L", label.encode()[:16].decode(errors="ignore"), str(path)),
        )
        await asyncio.to_thread(os.fsync, descriptor)
    await asyncio.to_thread(fsync_path, path.parent)


def filesystem_size(path: Path) -> int:
    """Bytes of the filesystem in an image, as its superblock has it; the image may be larger.

    Raises:
        Internal: It holds no ext4.
    """
    with reading(path) as descriptor:
        block = os.pread(descriptor, 1024, _SUPERBLOCK)
    if len(block) < 1024 or struct.unpack_from("<H", block, 0x38)[0] != _MAGIC:
        raise Internal(f"{path} holds no ext4 filesystem", hint="restore the volume from a snapshot")
    low, log_block, high = (struct.unpack_from("<I", block, at)[0] for at in (0x4, 0x18, 0x150))
    return int(low | high << 32) << (10 + int(log_block))


async def grow_volume(path: Path, size: int) -> None:
    """Grows an image that no machine has, and its filesystem; one that is that large already stays as it is.

    A crash in the middle is made good by doing it again: the filesystem's own size tells whether it is done.

    Raises:
        Conflict: Some process has it open.
        NoSpace: The disk is full.
        Internal: The filesystem is damaged.
        Unsupported: The host has no e2fsck or resize2fs.
    """
    if await asyncio.to_thread(filesystem_size, path) >= size - size % 4096:
        return
    await asyncio.to_thread(_check_unused, path)
    await asyncio.to_thread(lengthen, path, size)
    await _run(path, size, "e2fsck", "-f", "-p", str(path), allowed=_CORRECTED)  # resize2fs wants it; it replays the journal, too
    await _run(path, size, "resize2fs", str(path))
    await asyncio.to_thread(fsync_path, path)


def _check_unused(path: Path) -> None:
    """Whatever is believed of a machine, its VMM may be alive, and e2fsck would then destroy what it has mounted. The kernel
    knows: it grants a write lease only of a file that nobody else has open (F_SETLEASE in fcntl(2))."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
        raise Conflict(f"{path.name} is still open: its last machine has not ended", hint="try again in a moment") from error
    finally:
        os.close(descriptor)


def lengthen(path: Path, size: int) -> None:
    """Makes an image as long as ``size``; its filesystem stays as it is. Also of one that a machine has: it takes no notice.

    Raises:
        Invalid: The host's filesystem has no files that large.
    """
    if path.stat().st_size < size:
        _truncate(path, size)


def _truncate(path: Path | int, size: int) -> None:
    try:
        os.truncate(path, size)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise Invalid(f"the host's filesystem has no files of {size} bytes", hint="ask for a smaller volume") from error


async def copy_volume(source: Path, target: Path, *, live: bool) -> None:
    """Copies an image, flushed to disk; in no time where the filesystem reflinks. Where it fails there is no file.

    Args:
        source: The image.
        target: The new one.
        live: A machine may be writing to the source: then only a reflink will do.

    Raises:
        NoSpace: The disk is full.
        Conflict: It is live, and the filesystem cannot reflink.
    """
    stop = threading.Event()
    await uninterrupted(_copy, source, target, live, stop, cancelled=stop.set)


def _copy(source: Path, target: Path, live: bool, stop: threading.Event) -> None:
    with reading(source) as descriptor, created(target) as (_, copied):
        if not clone_file(descriptor, copied):
            if live:
                raise Conflict(
                    f"{source.name} may be written to by a machine, and the store's filesystem has no reflinks",
                    hint="destroy the machine first, or keep the store on XFS or btrfs",
                )
            size = os.fstat(descriptor).st_size
            os.ftruncate(copied, size)

            def moved(count: int) -> None:
                if stop.is_set():
                    raise InterruptedError(f"copying {source} was cancelled")

            copy_range(descriptor, copied, length=size, moved=moved)
        os.fsync(copied)
    fsync_path(target.parent)


async def _run(image: Path, size: int, tool: str, *arguments: str, allowed: int = 0) -> None:
    program = shutil.which(tool, path=f"{os.environ.get('PATH', '')}:{_PATH}")
    if program is None:
        raise Unsupported(f"volumes need {tool}, which is not installed", hint="install e2fsprogs")
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"LC_ALL": "C", "PATH": _PATH, "MKE2FS_CONFIG": "/dev/null"},
    )
    try:
        async with asyncio.timeout(_TIMEOUT):
            said, _ = await process.communicate()
    except TimeoutError as error:
        raise Unavailable(f"{tool} of {image} took more than {_TIMEOUT:.0f} s", hint="is its disk well?") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode not in (0, allowed):
        lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()] or ["it said nothing"]
        if "No space left on device" in " ".join(lines):
            raise NoSpace(str(image), needed=size, available=0)
        raise Internal(f"{tool} of {image} failed: {lines[-1][:200]}", hint=f"look at it with `e2fsck -fn {image}`")
