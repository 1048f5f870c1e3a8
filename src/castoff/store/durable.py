"""Files that survive: written aside, flushed, renamed; and trees that vanish.

A name in the store never stands for half a file: what is written lies under a temporary name until its bytes and its
directory are on disk, and gets its own name by rename(2), which is atomic; the directory that holds the name is flushed last.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["fsync_path", "publish", "remove", "replace_file"]


def fsync_path(path: Path) -> None:
    """Flushes a file, or a directory's names."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, target: Path) -> None:
    """Gives a finished file, or a directory of files (without subdirectories), its name, once everything in it is on disk.

    Raises:
        OSError: Also where ``target`` is there already and is a directory that is not empty.
    """
    if temporary.is_dir():
        for entry in temporary.iterdir():
            fsync_path(entry)
    fsync_path(temporary)
    temporary.rename(target)
    fsync_path(target.parent)


def replace_file(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Writes ``path`` whole or not at all.

    Args:
        path: The file; one of that name is replaced.
        data: All of it.
        mode: Its permissions.
        durable: Flush it; without, it is whole after a crash of the process, not after one of the machine.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    if durable:
        fsync_path(path.parent)


def remove(path: Path, *, graveyard: Path | None = None) -> None:
    """Removes a file or a tree; one that is not there is no error.

    Args:
        path: What goes.
        graveyard: A directory on the same filesystem: the tree is renamed into it first, so that nobody sees half of it.
    """
    if graveyard is not None:
        doomed = graveyard / f"removed.{os.urandom(4).hex()}"
        try:
            path.rename(doomed)
        except FileNotFoundError:
            return
        path = doomed
    try:
        if path.is_dir() and not path.is_symlink():
            import shutil  # 6 ms; the warm path removes nothing

            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return
