"""A file or directory of this host as a tar archive, piece by piece: what `castoff machine cp` sends."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from castoff.errors import Invalid, NotFound

__all__ = ["archive_of", "size_of", "top_name"]

_PIECE: Final = 256 * 1024
_ENCODING: Final = ("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    name: str
    found: os.stat_result


def top_name(text: str) -> str:
    """What a path's last name is called in an archive; ``.`` where it has none: what is in it then goes without it."""
    name = text.rstrip("/").rpartition("/")[2]
    return "." if name in ("", "..") else name


def size_of(path: Path) -> int:
    """Bytes of all files that :func:`archive_of` would send.

    Raises:
        NotFound, Invalid: There is none, or it cannot be read.
    """
    return sum(entry.found.st_size for entry in _entries(path, ".", lambda path: None) if stat.S_ISREG(entry.found.st_mode))


async def archive_of(
    path: Path, name: str, *, advance: Callable[[int], None], left_out: Callable[[str], None]
) -> AsyncIterator[bytes]:
    """The archive: all in it belongs to root; modes are kept, but for set-user-ID and the like.

    Args:
        path: What to send; a link to it is followed, those inside are sent as such.
        name: Of its top, see :func:`top_name`.
        advance: Called with the bytes of files that were read.
        left_out: Called with what is neither file, directory nor link.

    Raises:
        NotFound, Invalid: There is none, it cannot be read, or a file became shorter meanwhile.
    """
    for entry in _entries(path, name, left_out):
        yield _header(entry)
        if stat.S_ISREG(entry.found.st_mode):
            for piece in _content(entry):
                advance(len(piece))
                yield piece
            yield bytes(-entry.found.st_size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _entries(path: Path, name: str, left_out: Callable[[str], None]) -> Iterator[_Entry]:
    try:
        waiting = [_Entry(path, name, path.stat())]
        while waiting:
            entry = waiting.pop()
            if not _is_sent(entry.found.st_mode):
                left_out(str(entry.path))
                continue
            yield entry
            if stat.S_ISDIR(entry.found.st_mode):
                below = sorted(entry.path.iterdir(), reverse=True)
                waiting += [_Entry(one, f"{entry.name}/{one.name}", one.lstat()) for one in below]
    except FileNotFoundError as error:
        raise NotFound(f"{error.filename}: no such file or directory") from error
    except OSError as error:
        raise Invalid(f"{error.filename or path} cannot be read: {error.strerror}") from error


def _is_sent(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)


def _header(entry: _Entry) -> bytes:
    header = tarfile.TarInfo(entry.name)
    header.mode = stat.S_IMODE(entry.found.st_mode) & 0o777
    header.mtime = int(entry.found.st_mtime)
    if stat.S_ISDIR(entry.found.st_mode):
        header.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(entry.found.st_mode):
        header.type, header.linkname = tarfile.SYMTYPE, str(entry.path.readlink())
    else:
        header.size = entry.found.st_size
    return header.tobuf(tarfile.GNU_FORMAT, *_ENCODING)


def _content(entry: _Entry) -> Iterator[bytes]:
    """As many bytes as its header says: what is appended meanwhile is not of it."""
    left = entry.found.st_size
    descriptor = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        while left:
            piece = os.read(descriptor, min(left, _PIECE))
            if not piece:
                raise Invalid(f"{entry.path} became shorter while it was read", hint="copy it again")
            left -= len(piece)
            yield piece
    finally:
        os.close(descriptor)
