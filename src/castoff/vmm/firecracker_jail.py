"""Where Firecracker sees a machine's files: as they are, or in the directory that its jailer makes its root.

The jail lies in the machine's own directory, so that drives can be hard-linked into it and go when the machine goes.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from castoff.errors import Unavailable, Unsupported
from castoff.vmm.process import Owner

__all__ = ["Jail"]


@dataclass(frozen=True, slots=True)
class Jail:
    """A directory and, where it is a jail's root, who lives there.

    Attributes:
        root: The machine's directory, or the jail's root.
        owner: Who Firecracker runs as; None: as us, unjailed.
    """

    root: Path
    owner: Owner | None

    def host(self, name: str) -> Path:
        """A file of Firecracker's, as we see it."""
        return self.root / name

    def path(self, name: str) -> str:
        """A file of Firecracker's, as it sees it."""
        return f"/{name}" if self.owner else str(self.root / name)

    def socket(self, name: str) -> str:
        """A socket, as Firecracker names it: briefly, an address holds 107 bytes. Unjailed it starts in ``root``."""
        return f"/{name}" if self.owner else name

    def new_file(self, name: str) -> str:
        """An empty file that Firecracker may write."""
        path = self._prepared(name)
        path.touch(mode=0o640)
        self._give(path)
        return self.path(name)

    def own(self, name: str, source: Path) -> str:
        """Puts a file of the machine's own there, and lets Firecracker have it."""
        if self.owner is None:
            return str(source)
        self._link(name, source)
        self._give(self.root / name)
        return self.path(name)

    def shared(self, name: str, source: Path) -> str:
        """Puts a file there that machines share, to be read."""
        if self.owner is None:
            return str(source)
        if not source.stat().st_mode & stat.S_IROTH:
            # Who can reach it at all is decided by the directories above it; inside the jail there are none.
            source.chmod(source.stat().st_mode | stat.S_IRGRP | stat.S_IROTH)
        self._link(name, source)
        return self.path(name)

    def lend(self, name: str, source: Path, *, write: bool) -> str:
        """Lets a running Firecracker have a file of ours until :meth:`take_back`; its name there.

        The jail is its own by now: nothing that it may have put there is followed.

        Args:
            name: Inside.
            source: A file of ours, on the same filesystem.
            write: Whether it may be written, or only read.

        Raises:
            Unavailable: It cannot be done.
        """
        if self.owner is None:
            return str(source)
        try:
            os.chown(source, self.owner.uid if write else os.geteuid(), self.owner.gid, follow_symlinks=False)
            source.chmod(0o600 if write else 0o440)
            self.take_back(name)
            os.link(source, self.root / name, follow_symlinks=False)
        except OSError as error:
            raise Unavailable(f"{source} cannot be put into the jail {self.root}: {error.strerror}") from error
        return self.path(name)

    def take_back(self, name: str) -> None:
        """Removes the name of a file that was lent; the file stays."""
        if self.owner is not None:
            (self.root / name).unlink(missing_ok=True)

    def clear(self, top: Path) -> None:
        """Removes what an earlier Firecracker of the machine, which has ended, left: neither it nor its jailer overwrites.

        Args:
            top: The jail's own directory; sockets of an unjailed one lie in ``root``.
        """
        if top.exists():
            shutil.rmtree(top)
        if self.owner is None:
            for name in ("api.sock", "vsock.sock"):
                (self.root / name).unlink(missing_ok=True)

    def _prepared(self, name: str) -> Path:
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        return self.root / name

    def _give(self, path: Path) -> None:
        if self.owner is not None:
            os.chown(path, self.owner.uid, self.owner.gid)

    def _link(self, name: str, source: Path) -> None:
        target = self._prepared(name)
        status = source.stat()
        if stat.S_ISBLK(status.st_mode):
            os.mknod(target, stat.S_IFBLK | 0o600, status.st_rdev)
            self._give(target)
            return
        try:
            os.link(source.resolve(), target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
                raise
            if name.endswith(".drive"):
                raise Unsupported(
                    f"{source} lies on another filesystem than {self.root}, and cannot be linked into Firecracker's jail",
                    hint="keep store and machines on one filesystem, or set vmm.own_user = false",
                ) from error
            shutil.copyfile(source, target)
