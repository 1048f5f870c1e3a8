"""Manifests and configs on disk, by digest; and which digest a tag had when it was last seen.

``<directory>/sha256/<hex>`` holds a document's bytes, ``<directory>/tags/<hex of the name's sha256>`` a digest's text.
Files appear whole: written beside, synced, renamed. A document is hashed each time it is read, so that a disk that lies
or a hand that edits costs a fetch and nothing else.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from castoff.errors import CastoffError, Unavailable
from castoff.image.digest import Digest

__all__ = ["DocumentCache"]


class DocumentCache:
    """A directory of documents; several processes may share it.

    Args:
        directory: Made when first written to.
        limit: Bytes kept; over it the least recently used documents go.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self._documents = directory / "sha256"
        self._tags = directory / "tags"
        self._limit = limit

    def get(self, digest: Digest) -> bytes | None:
        """The document, or None; a corrupt one is dropped."""
        path = self._documents / digest.hex
        data = _read(path)
        if data is None:
            return None
        if Digest.of(data) != digest:
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):  # a cache that this user may only read has no order of use, and works
            os.utime(path)
        return data

    def put(self, digest: Digest, data: bytes) -> None:
        """Keeps a document, whose digest the caller checked."""
        _write(self._documents / digest.hex, data)
        self._trim()

    def last_seen(self, name: str) -> Digest | None:
        """The digest that ``name`` had when it was last resolved here; it may have moved since."""
        data = _read(self._tags / Digest.of(name.encode()).hex)
        if data is None:
            return None
        try:
            return Digest.parse(data.decode("ascii", "replace"))
        except CastoffError:
            return None

    def saw(self, name: str, digest: Digest) -> None:
        """Notes the digest of ``name``."""
        if self.last_seen(name) != digest:
            _write(self._tags / Digest.of(name.encode()).hex, str(digest).encode())

    def _trim(self) -> None:
        rows = []
        with os.scandir(self._documents) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process trims as well
                    status = entry.stat(follow_symlinks=False)
                    rows.append((status.st_mtime_ns, status.st_size, entry.name))
        excess = sum(size for _, size, _ in rows) - self._limit
        for _, size, name in sorted(rows):
            if excess <= 0:
                return
            (self._documents / name).unlink(missing_ok=True)
            excess -= size


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unavailable(
            f"{path} cannot be read: {error.strerror}", hint="check the state directory's owner and disk"
        ) from error


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".new-{os.urandom(8).hex()}")  # not tempfile's: 5 ms of imports on the way of a warm create
        try:
            with new.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise Unavailable(
            f"{path} cannot be written: {error.strerror}", hint="check the state directory's owner and disk"
        ) from error


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
