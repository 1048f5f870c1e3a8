"""Paths of a tar, normalised and split into directory and name, and the pools that hold them.

A path means what containerd makes of it (``filepath.Clean``, then joined to the root): absolute names are under the root,
``..`` never leaves it, empty and ``.`` components vanish. Parents that are symlinks are not resolved here.
"""

from __future__ import annotations

from array import array

from castoff.errors import Invalid, LimitExceeded
from castoff.layers.settings import Limits

__all__ = ["Names", "clean", "show"]

_DOTS = frozenset((b"", b".", b".."))


def show(name: bytes) -> str:
    """A name for an error's one line: printable and not too long."""
    return ascii(name.decode("utf-8", "surrogateescape")) if len(name) <= 200 else ascii(name[:200].decode("latin-1")) + "..."


def clean(path: bytes) -> list[bytes]:
    """The components of ``path`` under the root."""
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part not in _DOTS:
            parts.append(part)
        elif part == b".." and parts:
            parts.pop()
    return parts


class Names:
    """Distinct parent directories and all names of one layer, in pools."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._spelled: dict[bytes, int] = {}
        self._known: dict[bytes, int] = {}
        self._budget = limits.max_strings
        self.hidden: set[int] = set()
        """Directories in AUFS' own ones at the root (``.wh..wh.plnk``), whose entries are no part of the image."""
        self.directory_pool = bytearray()
        self.directory_offsets = array("I", [0])
        self.names = bytearray()
        self._directory(b"")

    def split(self, path: bytes) -> tuple[int, bytes]:
        """The number of the parent directory of ``path`` and its last component, which is empty for the root.

        Raises:
            Invalid: A component over 255 bytes (Linux's NAME_MAX) or a NUL.
            LimitExceeded: A path, or all of them, over the limit.
        """
        head, _, name = path.rpartition(b"/")
        if name in _DOTS:
            parts = clean(path)
            if not parts:
                return 0, b""
            name = parts[-1]
            head = b"/".join(parts[:-1])
        directory = self._spelled.get(head)
        if directory is None:
            directory = self._spell(head)
        if len(name) > 255 or b"\0" in name:
            self._refuse(path, name)
        return directory, name

    def path(self, path: bytes) -> bytes:
        """``path`` normalised, for a hardlink's target."""
        parts = clean(path)
        for part in parts:
            if len(part) > 255 or b"\0" in part:
                self._refuse(path, part)
        return b"/".join(parts)

    def spend(self, count: int) -> None:
        """Counts ``count`` bytes of strings against the layer's limit."""
        self._budget -= count
        if self._budget < 0:
            limit = self._limits.max_strings
            raise LimitExceeded("bytes of paths, links and attributes", limit=limit, setting="layers.max_strings")

    def _spell(self, head: bytes) -> int:
        """Looks up a directory spelled in a new way."""
        if len(head) > self._limits.max_path:
            raise LimitExceeded(f"the path {show(head)}", limit=self._limits.max_path, setting="layers.max_path")
        directory = self._directory(self.path(head))
        self.spend(len(head))
        self._spelled[head] = directory
        return directory

    def _directory(self, path: bytes) -> int:
        known = self._known.get(path)
        if known is None:
            known = self._known[path] = len(self._known)
            if known > self._limits.max_entries:
                raise LimitExceeded("directories of the layer", limit=self._limits.max_entries, setting="layers.max_entries")
            self.spend(len(path))
            self.directory_pool += path
            if path.startswith(b".wh..wh."):
                self.hidden.add(known)
            self.directory_offsets.append(len(self.directory_pool))
        return known

    def _refuse(self, path: bytes, name: bytes) -> None:
        if b"\0" in name:
            raise Invalid(f"the path {show(path)} has a NUL in it")
        raise Invalid(f"the path {show(path)} has a component of {len(name)} bytes; Linux allows 255")
