"""The members of a tar by name, read in place: an index of its headers is made once, nothing is extracted.

Sources: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Header Block"; GNU tar's manual, "Basic Tar Format". Only
what finds a member is read here: names, sizes, links. A layer's own tar has a reader of its own (castoff.layers).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from castoff.errors import Invalid
from castoff.image.files import Span, open_regular, read_span
from castoff.image.settings import ImageSettings
from castoff.image.spool import compression_at, unpack
from castoff.timeline import step

__all__ = ["TarFiles"]

_BLOCK = 512
_MAX_MEMBERS = 100_000
_MAX_EXTENSION = 1 << 20  # bytes of a pax header or a long name
_MAX_NAMES = 32 << 20  # bytes of all long names: they are held in memory
_MAX_LINKS = 8
_NO_DATA = b"123456"  # links, devices, directories, FIFOs: their size field counts nothing (GNU tar and Go agree)


@dataclass(frozen=True, slots=True)
class _Member:
    offset: int
    size: int
    link: str | None = None


class TarFiles:
    """The regular files of a tar archive; links within the archive are followed.

    A compressed archive cannot be read at random: it is decompressed once to a nameless file beside the cache.

    Args:
        path: The archive.
        settings: How far it may decompress.
        scratch: A directory on the filesystem that takes a decompressed archive.

    Raises:
        NotFound, Invalid: There is no such file, or it is none.
    """

    def __init__(self, path: Path, settings: ImageSettings, scratch: Path) -> None:
        self.what = str(path)
        self._settings = settings
        self._scratch = scratch
        self._fd, self._size = open_regular(path)
        self._members: dict[str, _Member] | None = None

    async def prepare(self) -> None:
        """Makes the index; the second time does nothing.

        Raises:
            Invalid: It is no tar, or a broken one.
        """
        if self._members is not None:
            return
        with step("image.tar_files", total=self._size, archive=self.what) as current:
            compression = await asyncio.to_thread(compression_at, self._span())
            if compression != "none":
                spool = await unpack(self._span(), compression, self._settings, self._scratch, current.advance)
                os.close(self._fd)
                self._fd, self._size = spool, os.fstat(spool).st_size
            self._members = await asyncio.to_thread(_index, self._span())

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Span | None]:
        """The member of that name, after links; valid while this object is open."""
        member = self._find(name)
        yield Span(f"{name} in {self.what}", self._fd, member.offset, member.size) if member else None

    def close(self) -> None:
        """Closes the archive."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _span(self) -> Span:
        return Span(self.what, self._fd, 0, self._size)

    def _find(self, name: str) -> _Member | None:
        assert self._members is not None, "prepare() comes first"
        name = _normal(name)
        for _ in range(_MAX_LINKS):
            member = self._members.get(name)
            if member is None or member.link is None:
                return member
            name = member.link
        raise Invalid(f"{name} in {self.what} is a link of links", hint=f"at most {_MAX_LINKS} are followed")


def _normal(name: str) -> str:
    return posixpath.normpath(f"/{name}").lstrip("/")


def _index(archive: Span) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    at = count = names = 0
    extension: dict[str, str] = {}
    while at + _BLOCK <= archive.size:
        header = _read(archive, at, _BLOCK)
        if not any(header):
            break
        count += 1
        if count > _MAX_MEMBERS:
            raise Invalid(f"{archive.what} has over {_MAX_MEMBERS} members", hint="no image archive has so many")
        at += _BLOCK
        kind, size = _read_header(archive, header, at)
        if kind in b"LKxg":
            _extend(extension, kind, _read_extension(archive, at, size), archive.what)
            at += _padded(size)
            continue
        size = 0 if kind in _NO_DATA else _pax_size(extension, size, archive.what)
        if at + size > archive.size:
            raise Invalid(f"{archive.what} is truncated: it ends within a member", hint="save or copy it again")
        names += sum(map(len, extension.values()))
        if names > _MAX_NAMES:
            raise Invalid(f"{archive.what} has over {_MAX_NAMES >> 20} MiB of names", hint="no image archive has so many")
        _add(members, header, kind, _Member(at, size), extension)
        extension = {}
        at += _padded(size)
    if not count:
        raise Invalid(f"{archive.what} is an empty archive")
    return members


def _add(members: dict[str, _Member], header: bytes, kind: bytes, member: _Member, extension: dict[str, str]) -> None:
    name = _normal(extension.get("path") or _name(header))
    target = extension.get("linkpath") or _text(header[157:257])
    if kind == b"1":
        members[name] = _Member(0, 0, _normal(target))
    elif kind == b"2":
        # Above the root is the root, as for a process in a chroot; old `docker save` links ../<layer>/layer.tar.
        members[name] = _Member(0, 0, _normal(posixpath.join(posixpath.dirname(name), target)))
    elif kind in (b"0", b"\0", b"7"):
        members[name] = member
    else:
        members.pop(name, None)


def _read_header(archive: Span, header: bytes, at: int) -> tuple[bytes, int]:
    stored = _number(header[148:156])
    if stored is None or stored != sum(header) - sum(header[148:156]) + 8 * 0x20:
        raise Invalid(f"{archive.what} is not a tar, or broken at byte {at - _BLOCK}", hint="check what made it")
    kind, size = header[156:157], _number(header[124:136])
    if kind == b"S":
        raise Invalid(
            f"{archive.what} has a sparse member at byte {at - _BLOCK}", hint="no image tool writes these; make it again"
        )
    if size is None or size < 0:
        raise Invalid(f"{archive.what} has a member of no readable size at byte {at - _BLOCK}")
    return kind, size


def _number(field: bytes) -> int | None:
    if field[0] & 0x80:  # base-256, GNU's for what octal cannot hold
        value = int.from_bytes(field, "big")
        return value - (1 << (8 * len(field))) if field[0] == 0xFF else value - (1 << (8 * len(field) - 1))
    text = field.split(b"\0", 1)[0].strip()
    try:
        return int(text, 8) if text else 0
    except ValueError:
        return None


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _read_extension(archive: Span, at: int, size: int) -> bytes:
    if size > _MAX_EXTENSION:
        raise Invalid(f"{archive.what} has an extended header of {size} bytes", hint=f"at most {_MAX_EXTENSION} are read")
    if at + size > archive.size:
        raise Invalid(f"{archive.what} is truncated: it ends within a header", hint="save or copy it again")
    return _read(archive, at, size)


def _extend(extension: dict[str, str], kind: bytes, data: bytes, what: str) -> None:
    if kind == b"L":
        extension["path"] = _text(data)
    elif kind == b"K":
        extension["linkpath"] = _text(data)
    elif kind == b"x":
        extension.update(_pax_records(data, what))
    # A global header (g) sets what this index has no use for: git's comment, a default mtime.


def _pax_records(data: bytes, what: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(data):
        length_text, space, _ = data[at : at + 20].partition(b" ")
        length = int(length_text) if length_text.isdigit() else 0
        record = data[at + len(length_text) + 1 : at + length]
        key, equals, value = record.partition(b"=")
        if not (space and equals and record.endswith(b"\n") and at + length <= len(data)):
            raise Invalid(f"{what} has a pax header that cannot be read", hint="check what made it")
        at += length
        if key in (b"path", b"linkpath", b"size"):
            yield key.decode(), value[:-1].decode("utf-8", "surrogateescape")


def _pax_size(extension: dict[str, str], size: int, what: str) -> int:
    text = extension.get("size")
    if text is None:
        return size
    if not text.isdecimal() or not text.isascii() or len(text) > 19:
        raise Invalid(f"{what} has a pax header with the size {text[:30]!r}")
    return int(text)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _read(archive: Span, at: int, size: int) -> bytes:
    return read_span(Span(archive.what, archive.fd, archive.offset + at, size), size)
