"""Mounting one FUSE file, unmounting it, and finding what a dead process left mounted.

The mount point is a regular file and so is what is mounted on it (rootmode 100400), so the path itself is the file: there
is no directory and no look-up. See fs/fuse/inode.c, fuse_parse_param and fuse_fill_super_common.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from castoff.errors import Unavailable, Unsupported
from castoff.hydrate.fuse_protocol import MAX_READ

__all__ = ["missing", "mount_file", "mounted", "sweep", "unmount"]

_DEVICE = Path("/dev/fuse")
_TYPE = "fuse.castoff"
"""What /proc/self/mountinfo calls such a mount: the kernel takes any subtype."""
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_NOATIME = 1, 2, 4, 8, 1024
_FLAGS = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_NOATIME
_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def missing(directory: Path) -> str:
    """What keeps this host from mounting FUSE files in ``directory``, for people; empty where nothing does: it was tried."""
    point = directory / f".fuse-probe-{os.getpid()}"
    try:
        device = mount_file(point)
    except (Unsupported, Unavailable) as error:
        return error.what
    try:
        unmount(point)
    finally:
        os.close(device)
    return ""


def mount_file(point: Path) -> int:
    """Mounts a file that has no server yet at ``point``, a path where nothing is.

    Returns:
        The descriptor whose holder serves it. The mount is dead (ENOTCONN) once its last holder is gone.

    Raises:
        Unsupported: This host has no FUSE, or this user may not mount.
        Unavailable: The mount point cannot be made, or mounting failed.
    """
    device = _open_device()
    try:
        os.close(os.open(point, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400))
    except OSError as error:
        os.close(device)
        raise Unavailable(f"{point} cannot be made a mount point: {error.strerror}") from error
    owner = f"user_id={os.geteuid()},group_id={os.getegid()}"
    # allow_other: a monitor is given the open file and runs as a user of its own, who else could not even fstat it
    # (fs/fuse/dir.c, fuse_allow_current_process). Who may open it the file's mode says.
    options = f"fd={device},rootmode=100400,{owner},default_permissions,allow_other,max_read={MAX_READ}"
    if _libc.mount(b"castoff", os.fsencode(point), _TYPE.encode(), _FLAGS, options.encode()) == 0:
        return device
    number = ctypes.get_errno()
    os.close(device)
    point.unlink()
    if number == errno.EPERM:
        raise Unsupported("mounting FUSE files needs root", hint="run as root, or with --lazy never")
    raise Unavailable(f"{point} cannot be mounted: {os.strerror(number)}")


def unmount(point: Path, *, abort: bool = False) -> None:
    """Takes the mount away from ``point`` and removes the mount point. Idempotent.

    Args:
        point: Where it is mounted.
        abort: Whoever reads from it gets ENOTCONN, now and ever after, whoever holds the device (a monitor that inherited it
            would wait for itself, and could not even be killed in a direct read). Else who has the file open keeps it.

    Raises:
        Unavailable: It cannot be unmounted.
    """
    # MNT_FORCE is how a connection is aborted without fusectl (fs/fuse/inode.c, fuse_umount_begin).
    if _libc.umount2(os.fsencode(point), _MNT_DETACH | _UMOUNT_NOFOLLOW | (_MNT_FORCE if abort else 0)) != 0:
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):  # not a mount point; not there
            raise Unavailable(f"{point} cannot be unmounted: {os.strerror(number)}")
    with suppress(FileNotFoundError):
        point.unlink()


def mounted(directory: Path) -> list[Path]:
    """Mount points of castoff's FUSE files below ``directory``, dead ones too. Never asks a mount, which might not answer."""
    below = directory.resolve()
    return [point for point in _mount_points() if below in point.parents]


def sweep(directory: Path, served: Collection[Path]) -> list[Path]:
    """Aborts what is mounted below ``directory`` and not in ``served``: what a hydrator and a keeper that died left.

    Args:
        directory: Where mounts of this state are.
        served: Mount points that somebody holds the device of, resolved.

    Returns:
        What was unmounted.

    Raises:
        Unavailable: Something cannot be unmounted.
    """
    dead = [point for point in mounted(directory) if point not in served]
    for point in dead:
        unmount(point, abort=True)
    return dead


def _open_device() -> int:
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = "run as root, or with --lazy never" if error.errno in (errno.EACCES, errno.EPERM) else "modprobe fuse"
        raise Unsupported(f"{_DEVICE} cannot be opened: {error.strerror}", hint=hint) from error


def _mount_points() -> Iterator[Path]:
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        if after.split(b" ", 1)[0] == _TYPE.encode():
            # Spaces, tabs, newlines and backslashes of the path are octal escapes (fs/proc_namespace.c, mangle).
            yield Path(os.fsdecode(before.split(b" ")[4].decode("unicode_escape", "surrogateescape").encode("latin-1")))
