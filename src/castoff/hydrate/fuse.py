"""The FUSE front: an incomplete rootfs as one read-only file, on any kernel from 5.4 on. The base of overlay clones.

    base.ext4    what machines open: a link to lazy.mount, and to root.ext4 once everything is there
    lazy.mount   the mounted file
    root.ext4    the bytes behind it, filled by the core
    lazy.log     requests that are not answered yet (castoff.hydrate.fuse_requests)

All who open the file share its page cache, which stays from one machine to the next. It fails closed: what is not there is
waited for or is EIO, and when the last holder of the connection is gone every read is ENOTCONN. A hydrator hands over by
ending, in whatever way: its successor is given the connection and answers what the log says is left.

A machine that has opened the mount reads through it for as long as it runs, so :meth:`FuseFront.complete` lasts as long;
machines that come later open root.ext4 itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from castoff.errors import NotFound, Unavailable
from castoff.hydrate import fuse_mount
from castoff.hydrate.front import Descriptors, Hydration
from castoff.hydrate.fuse_protocol import Attributes
from castoff.hydrate.fuse_requests import RequestLog
from castoff.hydrate.fuse_server import FuseServer
from castoff.hydrate.record import CLONE, LOG

__all__ = ["BASE", "MOUNT", "FuseFront"]

BASE = "base.ext4"
MOUNT = "lazy.mount"


class FuseFront:
    """A front (castoff.hydrate.front) that stands on a FUSE connection.

    Args:
        directory: The rootfs' own, with ``root.ext4`` in it.
        descriptors: Those of :meth:`mounted`, from here or from a dead hydrator.
        report: Told, in one line, of what should not happen. From any thread.
    """

    def __init__(self, directory: Path, descriptors: Descriptors, report: Callable[[str], None]) -> None:
        self._directory = directory
        self._descriptors = descriptors
        self._report = report
        self._server: FuseServer | None = None

    @classmethod
    def mounted(cls, directory: Path, report: Callable[[str], None]) -> FuseFront:
        """A new one: mounts its file. A reader waits until it is started.

        Raises:
            NotFound: There is no ``root.ext4``.
            Unsupported: This host has no FUSE, or this user may not mount.
            Unavailable: Mounting failed.
        """
        try:
            fill = os.open(directory / CLONE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise NotFound(f"{directory} has no {CLONE}") from error
        except OSError as error:
            raise Unavailable(f"{directory / CLONE} cannot be opened: {error.strerror}") from error
        try:
            (directory / LOG).unlink(missing_ok=True)  # of a connection that there is no more
            device = fuse_mount.mount_file(directory / MOUNT)
        except BaseException:
            os.close(fill)
            raise
        front = cls(directory, Descriptors(device, fill), report)
        front._point_to(MOUNT)
        return front

    @property
    def descriptors(self) -> Descriptors:
        """See castoff.hydrate.front."""
        return self._descriptors

    def start(self, hydration: Hydration) -> None:
        """See castoff.hydrate.front."""
        status = os.fstat(self._descriptors.fill)
        attributes = Attributes(status.st_size, 0o400, os.geteuid(), os.getegid(), int(status.st_mtime))
        log = RequestLog(self._directory / LOG)
        self._server = FuseServer(self._descriptors.front, log, self._descriptors.fill, attributes, hydration, self._report)
        self._server.start()

    def complete(self) -> None:
        """See castoff.hydrate.front. Waits for the last machine that has the mounted file open; ``stop`` ends the wait."""
        self._point_to(CLONE)
        fuse_mount.unmount(self._directory / MOUNT)
        if self._server is not None:
            self._server.ended.wait()

    def stop(self) -> None:
        """See castoff.hydrate.front."""
        if self._server is not None:
            self._server.stop()

    def close(self) -> None:
        """See castoff.hydrate.front."""
        if self._server is not None:
            self._server.stop()
            self._server.close()
            self._server = None
        os.close(self._descriptors.front)
        os.close(self._descriptors.fill)

    def abandon(self) -> None:
        """See castoff.hydrate.front. Whoever still has the file open gets ENOTCONN."""
        (self._directory / BASE).unlink(missing_ok=True)
        fuse_mount.unmount(self._directory / MOUNT, abort=True)
        self.stop()

    def _point_to(self, name: str) -> None:
        temporary = self._directory / f"{BASE}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name)
        temporary.replace(self._directory / BASE)
