"""Files of a machine onto this host: what `castoff machine cp` receives. The machine, and so the archive, is hostile.

The archive is what castoff's guest init writes (guest/files_send.c): GNU's format, without hard links; nothing else is believed.
Each directory on an entry's way is opened by its own name without following a link, below the one that the user named, so nothing
is written anywhere else, whatever the archive or somebody on this host does. A file appears under its name when it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from castoff.errors import CastoffError, Internal, Invalid, NoSpace, NotFound

__all__ = ["Receiver"]

_BLOCK: Final = 512
_LONGEST: Final = 4096
"""Bytes of a name, or of a link's target, with its NUL."""
_DEEPEST: Final = 2048
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LEFT_OUT: Final = {tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a pipe"}


class Receiver:
    """Takes an archive, piece by piece; a context manager.

    Args:
        target: Where it goes: into it, where it is a directory, else it is what the archive's top is called here.
        source: The path that was asked for in the machine; the archive's names begin with its last name.
        announce: Called with the size of each file before it comes.
        advance: Called with the bytes of files that were written.
        left_out: Called with the name of what is not taken, and why.

    Raises:
        NotFound: The target's directory is not there.
    """

    def __init__(
        self,
        target: Path,
        source: str,
        *,
        announce: Callable[[int], None],
        advance: Callable[[int], None],
        left_out: Callable[[str, str], None],
    ) -> None:
        self._announce, self._advance, self._left_out = announce, advance, left_out
        self._top = _last_name(source)
        into = target.is_dir()
        self._prefix = [] if into and self._top == "." else [self._top if into else target.name]
        try:
            self._root = os.open(target if into else target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFound(f"{target.parent}: {error.strerror}", hint="make the directory first") from error
        self._head = bytearray()
        self._extension: bytearray | None = None
        self._extension_left = 0
        self._extension_kind = b""
        self._skip = 0
        self._name: str | None = None
        self._link: str | None = None
        self._file: _File | None = None
        self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.abandon()
        os.close(self._root)

    def feed(self, data: bytes) -> None:
        """Takes the next bytes.

        Raises:
            Invalid: The archive is broken, or wants out of the target.
            NoSpace, Internal: This host's disk refused.
        """
        view = memoryview(data)
        try:
            while view and not self._over:
                view = view[self._take(view) :]
        except OSError as error:
            raise _refused(error) from error

    def finish(self) -> None:
        """The archive has ended.

        Raises:
            Invalid: It is cut short.
        """
        if not self._over:
            raise Invalid("the archive broke off", hint="copy it again")

    # --- the archive -----------------------------------------------------------------------------------------------------

    def _take(self, view: memoryview) -> int:
        """As many bytes as the present part of the archive wants."""
        if self._file is not None:
            part = view[: self._file.left]
            self._file.write(part)
            self._advance(len(part))
            self._complete()
            return len(part)
        if self._extension is not None:
            part = view[: self._extension_left]
            self._extension += part
            self._extension_left -= len(part)
            if not self._extension_left:
                self._extended()
            return len(part)
        if self._skip:
            part = view[: self._skip]
            self._skip -= len(part)
            return len(part)
        part = view[: _BLOCK - len(self._head)]
        self._head += part
        if len(self._head) == _BLOCK:
            head, self._head = bytes(self._head), bytearray()
            self._begin(head)
        return len(part)

    def _begin(self, head: bytes) -> None:
        if not any(head):
            self._over = True
            return
        try:
            header = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise Invalid(f"what the machine sent is no archive: {error}") from error
        if header.size < 0:
            raise Invalid("what the machine sent is no archive: a size is negative")
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if not 0 < header.size <= _LONGEST:
                raise Invalid("a name in the machine's archive is too long")
            self._extension, self._extension_left, self._extension_kind = bytearray(), header.size, header.type
            return
        # A directory's name has lost its slash in `frombuf`; a long one has it still.
        name, link = self._name or header.name, self._link or header.linkname
        self._name = self._link = None
        self._entry(header, name.rstrip("/"), link)

    def _extended(self) -> None:
        assert self._extension is not None
        text = bytes(self._extension).partition(b"\0")[0].decode("utf-8", "surrogateescape")
        if self._extension_kind == tarfile.GNUTYPE_LONGNAME:
            self._name = text
        else:
            self._link = text
        self._skip = -len(self._extension) % _BLOCK
        self._extension = None

    def _entry(self, header: tarfile.TarInfo, name: str, link: str) -> None:
        parts = self._place(name)
        mode = header.mode & 0o777  # no set-user-ID of a stranger's
        if header.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            self._announce(header.size)
            with self._parent(parts) as directory:
                self._file = _File(directory, parts[-1], header.size, mode, int(header.mtime))
            self._complete()
        elif header.type == tarfile.DIRTYPE:
            self._make_directory(parts, mode)
        elif header.type == tarfile.SYMTYPE:
            self._make_link(parts, link)
        elif header.type in _LEFT_OUT:
            self._left_out(name, _LEFT_OUT[header.type])
        else:
            raise Invalid(f"what the machine sent has an entry of a kind that castoff does not send: {header.type!r}")

    def _complete(self) -> None:
        if self._file is not None and not self._file.left:
            self._skip = self._file.finish()
            self._file = None

    # --- this host's files -----------------------------------------------------------------------------------------------

    def _place(self, name: str) -> list[str]:
        """The names on the way from the target's directory to an entry."""
        top, *rest = name.split("/")
        parts = [*self._prefix, *rest]
        if top != self._top or any(part in ("", ".", "..") or "\0" in part for part in parts) or len(parts) > _DEEPEST:
            raise Invalid(f"the machine's archive names {name[:200]!r}, which is not below what was asked for")
        return parts

    @contextlib.contextmanager
    def _parent(self, parts: list[str]) -> Iterator[int]:
        """A descriptor of the directory that an entry is in."""
        if not parts:
            raise Invalid("the machine's archive has a file where a directory was asked for")
        directory = os.dup(self._root)
        try:
            for part in parts[:-1]:
                try:
                    below = os.open(part, _DIRECTORY, dir_fd=directory)
                except OSError as error:
                    raise Invalid(f"{'/'.join(parts)[:200]!r}: {part[:80]!r} is no directory here, or a link") from error
                os.close(directory)
                directory = below
            yield directory
        finally:
            os.close(directory)

    def _make_directory(self, parts: list[str], mode: int) -> None:
        if not parts:
            return  # the target itself
        with self._parent(parts) as directory:
            try:
                os.mkdir(parts[-1], 0o700, dir_fd=directory)
            except FileExistsError:
                os.close(os.open(parts[-1], _DIRECTORY, dir_fd=directory))  # stays as it is
                return
            made = os.open(parts[-1], _DIRECTORY, dir_fd=directory)
            try:
                os.fchmod(made, mode | 0o700)  # its files are still to come
            finally:
                os.close(made)

    def _make_link(self, parts: list[str], link: str) -> None:
        if not _stays_below(link, len(parts) - len(self._prefix)):
            self._left_out("/".join(parts), f"a link that leads elsewhere, to {link[:200]}")
            return
        with self._parent(parts) as directory:
            name = _temporary()
            os.symlink(link, name, dir_fd=directory)
            try:
                os.replace(name, parts[-1], src_dir_fd=directory, dst_dir_fd=directory)
            except OSError:
                os.unlink(name, dir_fd=directory)
                raise


class _File:
    """A file that comes in, under a name of its own until it is whole."""

    def __init__(self, directory: int, name: str, size: int, mode: int, mtime: int) -> None:
        self.left = size
        self._padding = -size % _BLOCK
        self._name, self._mode, self._mtime = name, mode, mtime
        self._temporary = _temporary()
        self._directory = os.dup(directory)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(self._temporary, flags, 0o600, dir_fd=self._directory)
        except OSError:
            os.close(self._directory)
            raise

    def write(self, data: memoryview) -> None:
        self.left -= len(data)
        while data:
            data = data[os.write(self._file, data) :]

    def finish(self) -> int:
        """It is whole; the bytes behind it that mean nothing."""
        try:
            os.fchmod(self._file, self._mode)
            with contextlib.suppress(OverflowError, OSError):  # a time that this host cannot say
                os.utime(self._file, (self._mtime, self._mtime))
            os.replace(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError:
            self.abandon()
            raise
        self._close()
        return self._padding

    def abandon(self) -> None:
        """Removes what came of it."""
        with contextlib.suppress(OSError):
            os.unlink(self._temporary, dir_fd=self._directory)
        self._close()

    def _close(self) -> None:
        for descriptor in (self._file, self._directory):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._directory = -1


def _temporary() -> str:
    return f".castoff-{secrets.token_hex(8)}"


def _last_name(path: str) -> str:
    """As guest/files_send.c names an archive's top."""
    return path.rstrip("/").rpartition("/")[2] or "."


def _stays_below(link: str, depth: int) -> bool:
    """Whether a link leads to something that was copied with it, and not outside by way of others: its ".." come first, and
    there are fewer than directories between it and what was copied. Directories here are real ones, so each ".." is one level up.

    Args:
        link: Its target.
        depth: Names on the way to the link, below what was asked for.
    """
    parts = [part for part in link.split("/") if part not in ("", ".")]
    up = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
    return not link.startswith("/") and bool(link) and "\0" not in link and up < depth and ".." not in parts[up:]


def _refused(error: OSError) -> CastoffError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(str(error.filename or "this host"), needed=0, available=0)
    return Internal(f"{error.filename or 'a file'} cannot be written: {error.strerror}")
