"""Trees as the kernel shows them: mounted images and unpacked ones, listed with every attribute for comparing."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Entry", "differences", "list_tree", "mounted"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One path's inode."""

    mode: int
    uid: int
    gid: int
    mtime: int
    """Nanoseconds."""
    size: int
    device: int
    links: int
    target: bytes
    attributes: tuple[tuple[str, bytes], ...]
    contents: str
    """sha256 of a regular file."""
    first: bytes
    """The least path of the same inode: tells hardlinks."""


@contextmanager
def mounted(image: Path, *, options: str = "ro") -> Iterator[Path]:
    """The image, mounted through a loop device that goes with the mount."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        subprocess.run(["mount", "-o", f"loop,{options}", str(image), directory], check=True)
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", directory], check=True)


def list_tree(root: Path) -> dict[bytes, Entry]:
    """All paths below ``root`` (itself is empty), without lost+found."""
    found: dict[bytes, tuple[os.stat_result, bytes]] = {}
    base = os.fsencode(root)
    todo = [b""]
    while todo:
        path = todo.pop()
        whole = base + b"/" + path if path else base
        status = os.lstat(whole)
        found[path] = (status, whole)
        if stat.S_ISDIR(status.st_mode):
            names = [os.fsencode(entry.name) for entry in os.scandir(whole)]
            todo += [path + b"/" + name if path else name for name in names if path or name != b"lost+found"]
    first: dict[int, bytes] = {}
    for path in sorted(found, reverse=True):
        first[found[path][0].st_ino] = path
    return {path: _entry(status, whole, first[status.st_ino]) for path, (status, whole) in found.items()}


def _entry(status: os.stat_result, path: bytes, first: bytes) -> Entry:
    kind = stat.S_IFMT(status.st_mode)
    names = sorted(os.listxattr(path, follow_symlinks=False))
    contents = ""
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:  # noqa: PTH123  -- a path of any bytes
            contents = hashlib.file_digest(file, "sha256").hexdigest()
    return Entry(
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime=status.st_mtime_ns,
        size=status.st_size if kind in (stat.S_IFREG, stat.S_IFLNK) else 0,
        device=status.st_rdev,
        links=0 if kind == stat.S_IFDIR else status.st_nlink,
        target=os.readlink(path)  # noqa: PTH115  -- bytes
        if kind == stat.S_IFLNK
        else b"",
        attributes=tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names),
        contents=contents,
        first=first if kind != stat.S_IFDIR else b"",
    )


def differences(one: Mapping[bytes, Entry], two: Mapping[bytes, Entry], *, implied: frozenset[bytes] = frozenset()) -> list[str]:
    """What differs; of ``implied`` directories, which no entry describes, the time is not compared."""
    found = [f"only in one: {path!r}" for path in sorted(one.keys() - two.keys())]
    found += [f"only in two: {path!r}" for path in sorted(two.keys() - one.keys())]
    for path in sorted(one.keys() & two.keys()):
        for field in Entry.__dataclass_fields__:
            mine, theirs = getattr(one[path], field), getattr(two[path], field)
            if mine != theirs and not (field == "mtime" and path in implied):
                found.append(f"{path!r}: {field} is {mine!r} and {theirs!r}")
    return found
