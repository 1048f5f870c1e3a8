"""A filesystem in a file: an XFS with reflinks, attached to a loop device and mounted as the store.

The device is attached with LO_FLAGS_AUTOCLEAR in the same ioctl (LOOP_CONFIGURE, Linux 5.8), so the kernel detaches it
when the last user is gone: a crash between attaching and mounting leaves nothing, and an unmount is all there is to undo.
LO_FLAGS_DIRECT_IO keeps the host from caching each block twice, once in the XFS and once in the file below it.
See linux/loop.h and drivers/block/loop.c.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from castoff.errors import CastoffError, Conflict, Unavailable, Unsupported
from castoff.store.durable import fsync_path

__all__ = ["SMALLEST", "attached", "make_filesystem", "missing", "mount", "trim", "unmount"]

SMALLEST = 512 << 20
"""Bytes; mkfs.xfs refuses less than 300 MB."""

_CONTROL = Path("/dev/loop-control")
_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_GET_STATUS64 = 0x4C05
_FITRIM = 0xC0185879
_AUTOCLEAR = 4
_DIRECT_IO = 16
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_CONFIG_HEAD = struct.Struct("=II")
_RESERVED = bytes(64)
_FREE_EOFBLOCKS = 0x8080583A
_EOFBLOCKS = struct.pack("=II120x", 1, 1)
"""struct xfs_fs_eofblocks: version 1, XFS_EOF_FLAGS_SYNC, no filter."""


def missing() -> str:
    """What keeps this host from having such a store, for people; empty where nothing does."""
    if os.geteuid() != 0:
        return "making an XFS store needs root"
    if shutil.which("mkfs.xfs") is None:
        return "mkfs.xfs is not installed (package xfsprogs)"
    if not _CONTROL.exists():
        return f"this host has no loop devices ({_CONTROL} is missing)"
    return ""


def make_filesystem(path: Path, size: int) -> None:
    """Makes an XFS with reflinks in the sparse file ``path``, which appears when it is whole.

    rmapbt off: it would be one more tree to update for every extent of every clone.

    Raises:
        Unsupported: mkfs.xfs failed.
    """
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)  # of one that died; the caller holds the lock
    try:
        with temporary.open("xb") as file:
            file.truncate(size)
        _run(["mkfs.xfs", "-q", "-m", "reflink=1,crc=1,rmapbt=0", str(temporary)], f"making an XFS in {path}")
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def mount(path: Path, directory: Path) -> None:
    """Mounts the filesystem in ``path`` at ``directory``; the caller holds a lock that makes it the only one to.

    A device that has the file already (mounted in another mount namespace) is used again: two devices on one file
    would be two filesystems that destroy each other.

    Raises:
        Unsupported: There is no loop device to be had, or the kernel refused.
    """
    device = attached(path)
    if device is not None:
        _mount(device, directory)
        return
    with _attach(path) as device:
        _mount(device, directory)


def _mount(device: Path, directory: Path) -> None:
    _run(["mount", "-t", "xfs", "-o", "noatime", str(device), str(directory)], f"mounting the store at {directory}")


def unmount(directory: Path) -> None:
    """Unmounts ``directory``; the loop device goes by itself.

    Raises:
        Conflict: Something in it is open.
    """
    try:
        _run(["umount", str(directory)], f"unmounting {directory}")
    except Unsupported as error:
        if "busy" in error.what:
            raise Conflict(f"{directory} is in use", hint="stop the machines that run from it") from error
        raise


def trim(directory: Path, inside: Path) -> None:
    """Gives the blocks that the filesystem at ``directory`` has freed back to the one below: holes in its file (FITRIM).

    Mounting with ``discard`` would do so by and by, at a price for every removal. Takes about 20 ms, and more where much was
    freed. Without effect where the filesystem below cannot have holes.

    Args:
        directory: Where it is mounted.
        inside: Any regular file of it.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # XFS frees a removed file's blocks in the background. Asked for the blocks behind the ends of files, it waits for that
        # work, too (xfs_blockgc_free_space in fs/xfs/xfs_icache.c).
        fcntl.ioctl(descriptor, _FREE_EOFBLOCKS, _EOFBLOCKS)
        fcntl.ioctl(descriptor, _FITRIM, struct.pack("=QQQ", 0, (1 << 64) - 1, 0))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM, errno.ENOTTY):
            raise
    finally:
        os.close(descriptor)
    # FITRIM returns while the loop device has yet to make the holes (since Linux 6.7); it takes this flush after them.
    fsync_path(inside)


def attached(path: Path) -> Path | None:
    """The loop device that has the file ``path``, by device and inode: its name may be another elsewhere."""
    status = path.stat()
    for entry in Path("/sys/block").glob("loop*/loop"):
        device = Path("/dev") / entry.parent.name
        with contextlib.suppress(FileNotFoundError), device.open("rb") as file:
            buffer = bytearray(_INFO.size)
            try:
                fcntl.ioctl(file.fileno(), _GET_STATUS64, buffer)
            except OSError as error:
                if error.errno == errno.ENXIO:  # detached since the glob
                    continue
                raise
            if _INFO.unpack(buffer)[:2] == (status.st_dev, status.st_ino):
                return device
    return None


@contextmanager
def _attach(path: Path) -> Iterator[Path]:
    """A loop device for ``path``, for the block and for as long as it is mounted."""
    flags = _AUTOCLEAR | _DIRECT_IO
    with path.open("r+b") as backing:
        info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, os.fsencode(path)[-63:], b"", b"", 0, 0)
        config = _CONFIG_HEAD.pack(backing.fileno(), 0) + info + _RESERVED
        for _ in range(64):
            try:
                with _CONTROL.open("r+b", buffering=0) as control:
                    device = Path(f"/dev/loop{fcntl.ioctl(control.fileno(), _GET_FREE)}")
                descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise Unsupported(f"no loop device for {path}: {error.strerror}", hint="see `castoff doctor`") from error
            try:
                try:
                    fcntl.ioctl(descriptor, _CONFIGURE, config)
                except OSError as error:
                    if error.errno == errno.EBUSY:  # another process was given the same free one
                        continue
                    raise Unsupported(f"attaching {path} to {device}: {error.strerror}", hint="see `castoff doctor`") from error
                yield device
                return
            finally:
                os.close(descriptor)
    raise Unavailable(f"no free loop device for {path} after 64 tries", hint="see `losetup --list`")


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False)
    except FileNotFoundError as error:
        raise Unsupported(f"{what}: {command[0]} is not installed", hint="see `castoff doctor`") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{what}: {command[0]} did not end in 120 s") from error
    if done.returncode:
        raise _failure(what, command[0], done.stderr)


def _failure(what: str, program: str, stderr: bytes) -> CastoffError:
    said = stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
    return Unsupported(f"{what}: {program}: {said[0]}", hint="see `castoff doctor`")
