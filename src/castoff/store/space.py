"""Free disk, foreseen: what a step needs is compared with what there is before it begins, and again while it runs.

A loop-mounted store has two limits: the XFS in it, and the filesystem below, on which its file grows as it fills. When the
lower one is full first the kernel tells nobody but the journal (writes fail later, with EIO), so both are looked at.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from castoff.errors import NoSpace, Unavailable

__all__ = ["free", "no_space_as", "require"]


def free(*paths: Path) -> int:
    """Bytes that can still be written, the smallest of the filesystems that ``paths`` lie on."""
    found = []
    for path in paths:
        status = os.statvfs(path)
        found.append(status.f_bavail * status.f_frsize)
    return min(found)


def require(where: Path, *, needed: int, available: int) -> None:
    """Raises NoSpace where ``needed`` bytes are more than ``available``."""
    if needed > available:
        raise NoSpace(str(where), needed=needed, available=max(available, 0))


@contextmanager
def no_space_as(where: Path, *, needed: int = 0) -> Iterator[None]:
    """Turns a full disk (or quota) inside the block into NoSpace, also where an inner edge made it Unavailable.

    Args:
        where: What is written.
        needed: Bytes that the whole of it needs, as far as is known.
    """
    try:
        yield
    except (OSError, Unavailable) as error:
        cause = error.__cause__ if isinstance(error, Unavailable) else error
        if not isinstance(cause, OSError) or cause.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        available = free(where if where.exists() else where.parent)
        raise NoSpace(str(where), needed=max(needed, available + 1), available=available) from error
