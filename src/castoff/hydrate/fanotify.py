"""Pre-content events of fanotify, Linux 6.14 and newer: the kernel asks before anybody reads or writes a marked file.

Numbers are those of linux/fanotify.h. Python has no binding. What the events look like, and how they are read and answered,
is in castoff.hydrate.eventlog.
"""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from pathlib import Path

from castoff.errors import Unsupported

__all__ = ["mark", "missing", "open_group", "unmark"]

_CLASS_PRE_CONTENT = 0x08
_CLOEXEC = 0x01
_NONBLOCK = 0x02
_UNLIMITED_QUEUE = 0x10
"""Else the kernel lets requests through when 16,384 are queued (fs/notify/fanotify/fanotify.c drops what overflows)."""
_UNLIMITED_MARKS = 0x20
_MARK_ADD = 0x01
_MARK_REMOVE = 0x02
_PRE_ACCESS = 0x00100000


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)
    return libc


def open_group() -> int:
    """A group for pre-content events: non-blocking, close-on-exec.

    Raises:
        Unsupported: The kernel has none, or this user may not.
    """
    flags = _CLASS_PRE_CONTENT | _CLOEXEC | _NONBLOCK | _UNLIMITED_QUEUE | _UNLIMITED_MARKS
    try:
        # Nobody reads or writes through an event's descriptor, so it is for reading: closing one that could write has XFS
        # look at the end of the file each time (fs/xfs/xfs_file.c, xfs_file_release).
        group: int = _libc().fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_LARGEFILE", 0))
    except AttributeError as error:  # a libc without the call
        raise Unsupported("this system's libc has no fanotify") from error
    if group >= 0:
        return group
    number = ctypes.get_errno()
    if number == errno.EPERM:
        raise Unsupported("fanotify wants root (CAP_SYS_ADMIN)")
    if number in (errno.ENOSYS, errno.EINVAL):
        raise Unsupported(f"Linux {os.uname().release} has no fanotify for what is read")
    raise OSError(number, os.strerror(number), "fanotify_init")


def mark(group: int, descriptor: int) -> None:
    """From now on the kernel asks ``group`` before each access through any descriptor of the file that is opened later.

    Raises:
        Unsupported: The kernel (before 6.14) or the filesystem has no pre-content events.
    """
    if _libc().fanotify_mark(group, _MARK_ADD, _PRE_ACCESS, descriptor, None) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.EOPNOTSUPP):
        where = "its filesystem" if number == errno.EOPNOTSUPP else f"Linux {os.uname().release}"
        raise Unsupported(f"{where} has no pre-content events (Linux 6.14 on ext4, XFS and btrfs has)")
    raise OSError(number, os.strerror(number), "fanotify_mark")


def unmark(group: int, descriptor: int) -> None:
    """Ends that. Requests that were queued before are still to be answered.

    Raises:
        OSError: As the kernel says, but for a mark that is gone already.
    """
    if _libc().fanotify_mark(group, _MARK_REMOVE, _PRE_ACCESS, descriptor, None) != 0:
        number = ctypes.get_errno()
        if number != errno.ENOENT:
            raise OSError(number, os.strerror(number), "fanotify_mark")


def missing(directory: Path) -> str:
    """What keeps files in ``directory`` from being served in this way, for people; empty where nothing does: it was tried."""
    try:
        group = open_group()
    except Unsupported as error:
        return error.what
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            mark(group, file.fileno())
    except Unsupported as error:
        return error.what
    except OSError as error:
        return f"{directory}: {error.strerror}"
    finally:
        os.close(group)
    return ""
