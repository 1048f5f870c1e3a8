"""A streaming reader of tar archives: ustar, pax, GNU and V7, as hostile as they come.

What an archive means is what Go's archive/tar, and so containerd, takes it for; where those refuse and GNU tar has a sane
meaning (sparse files, volume labels) it has GNU tar's. Entries come in order; whoever reads them takes each one's data.
Global pax headers are checked and have no effect, as in containerd.
"""

from __future__ import annotations

from collections.abc import Iterator

from castoff.errors import Invalid, LimitExceeded
from castoff.layers import header as fields
from castoff.layers import pax, sparse
from castoff.layers.blocks import SIZE, Blocks
from castoff.layers.names import show
from castoff.layers.settings import Limits
from castoff.layers.toc import Kind

__all__ = ["Entry", "read_entries"]

_ZEROS = bytes(SIZE)
_KINDS = {
    0x30: Kind.FILE,
    0x00: Kind.FILE,
    0x31: Kind.HARDLINK,
    0x32: Kind.SYMLINK,
    0x33: Kind.CHARACTER,
    0x34: Kind.BLOCK,
    0x35: Kind.DIRECTORY,
    0x36: Kind.FIFO,
    0x37: Kind.FILE,  # "contiguous file"
    ord("S"): Kind.FILE,  # GNU's old sparse format
    ord("D"): Kind.DIRECTORY,  # GNU's incremental dump: the data is a list of names
}
_META = frozenset(b"xgXLK")
_MAX_SIZE = (1 << 44) - 4096


class Entry:
    """One entry. The reader yields the same object each time, filled anew."""

    __slots__ = (
        "gid",
        "kind",
        "link",
        "major",
        "minor",
        "mode",
        "mtime",
        "mtime_ns",
        "name",
        "regions",
        "size",
        "stored",
        "type",
        "uid",
        "xattrs",
    )

    name: bytes
    """The path, as the archive spells it."""
    kind: Kind
    type: int
    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_ns: int
    size: int
    """Bytes of a file as its reader sees it."""
    stored: int
    """Bytes of data that follow in the archive and that the entry's taker must take."""
    link: bytes
    major: int
    minor: int
    regions: sparse.Regions | None
    """Where a sparse file's data lies in it; None: it is not sparse."""
    xattrs: dict[bytes, bytes] | None


class _Extended:
    """What the extended headers before an entry say of it."""

    __slots__ = ("link", "name", "records")

    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes]] = []
        self.name = b""
        self.link = b""

    def read(self, blocks: Blocks, header: bytes, limits: Limits) -> None:
        """Reads the data of an extended header; a later one of its kind replaces an earlier one."""
        kind = header[156]
        size = fields.number(header[124:136])
        if not 0 <= size <= limits.max_header:
            raise LimitExceeded(f"an extended header of {size} bytes", limit=limits.max_header, setting="layers.max_header")
        data = blocks.read(size) if size else b""
        blocks.align()
        if kind == ord("L"):
            self.name = fields.text(data)
        elif kind == ord("K"):
            self.link = fields.text(data)
        elif kind == ord("g"):
            pax.parse(data)
        else:
            self.records = pax.parse(data)


def read_entries(blocks: Blocks, limits: Limits) -> Iterator[Entry]:
    """The archive's entries; ends at its end marker (two blocks of zeros) or the stream's end.

    Raises:
        Invalid: The archive is broken; the message says at which byte or entry.
        LimitExceeded: A header is over a limit.
    """
    entry = Entry()
    extended: _Extended | None = None
    sound, octal, owner, header_path = fields.is_sound, _octal, fields.owner, fields.path
    while header := blocks.header():
        kind = header[156]
        if not sound(header):
            if header == _ZEROS:
                _end(blocks)
                return
            raise Invalid(f"the tar header at byte {blocks.position - SIZE} has a wrong checksum")
        if kind in _META:
            extended = extended or _Extended()
            extended.read(blocks, header, limits)
            continue
        entry.name = header_path(header)
        entry.type = kind
        entry.mode, entry.uid, entry.gid = owner(header[100:124])
        entry.size = octal(header[124:136])
        entry.mtime = octal(header[136:148])
        entry.mtime_ns = 0
        entry.link = b""
        entry.regions = entry.xattrs = None
        if entry.size < 0:
            raise Invalid(f"{show(entry.name)} has a negative size")
        if extended is not None or kind != 0x30:
            if not _complete(entry, header, extended, blocks, limits):
                extended = None
                continue
            extended = None
        else:
            entry.kind = Kind.FILE
            entry.stored = entry.size
        if entry.size > _MAX_SIZE:
            raise Invalid(f"{show(entry.name)} has {entry.size} bytes; ext4 allows {_MAX_SIZE}")
        yield entry
        blocks.align()
    if extended is not None:
        raise Invalid("the tar ends after an extended header, before the entry that it is for")


def _octal(field: bytes) -> int:
    digits = field[:11]
    if digits.isdigit() and field[11] in b"\0 ":
        try:
            return int(digits, 8)
        except ValueError:
            pass
    return fields.number(field)


def _end(blocks: Blocks) -> None:
    """A block of zeros was read: the next must be another, or the stream's end."""
    second = blocks.header()
    if second and second != _ZEROS:
        raise Invalid(f"the tar has a lone block of zeros before byte {blocks.position - SIZE}")


def _complete(entry: Entry, header: bytes, extended: _Extended | None, blocks: Blocks, limits: Limits) -> bool:
    """Fills in what only some entries have; False: it was a volume label, which is nothing."""
    records = dict(extended.records) if extended else {}
    if extended:
        _apply(entry, extended, records, limits)
    if entry.type == ord("V"):
        blocks.skip(entry.size)
        blocks.align()
        return False
    if entry.type == 0 and entry.name.endswith(b"/"):
        entry.type = 0x35  # V7 had no type for directories
    try:
        kind = entry.kind = _KINDS[entry.type]
    except KeyError:
        raise Invalid(f"{show(entry.name)} is of the unknown tar type {chr(entry.type)!a}") from None
    if not entry.link and kind in (Kind.HARDLINK, Kind.SYMLINK):
        entry.link = header[157:257].partition(b"\0")[0]
    if kind == Kind.FILE:
        entry.stored = entry.size
        _sparse(entry, header, extended, records, blocks, limits)
    else:
        _special(entry, header, blocks)
    return True


def _apply(entry: Entry, extended: _Extended, records: dict[bytes, bytes], limits: Limits) -> None:
    """What pax records and GNU long names say instead of the header; an empty value leaves the header's, as in Go."""
    for key, value in records.items():
        if not value:
            continue
        if key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.link = value
        elif key == b"mtime":
            entry.mtime, entry.mtime_ns = pax.timestamp(key, value)
        elif key == b"size":
            entry.size = pax.integer(key, value)
        elif key == b"uid":
            entry.uid = pax.integer(key, value)
        elif key == b"gid":
            entry.gid = pax.integer(key, value)
    entry.name = extended.name or entry.name
    entry.link = extended.link or entry.link
    entry.xattrs = pax.xattrs(records) or None


def _special(entry: Entry, header: bytes, blocks: Blocks) -> None:
    """An entry that is no file: numbers of a device; and what data follows although it has no meaning."""
    size, entry.size, entry.stored = entry.size, 0, 0
    if entry.kind in (Kind.CHARACTER, Kind.BLOCK):
        entry.major, entry.minor = fields.number(header[329:337]), fields.number(header[337:345])
    elif entry.type == ord("D"):
        entry.stored = size
    elif entry.kind == Kind.HARDLINK and size > 0 and not _is_header(blocks.peek()):
        entry.stored = size  # pax -o linkdata and cpio-like writers store a hardlink's data again


def _is_header(block: bytes) -> bool:
    return len(block) < SIZE or block == _ZEROS or fields.is_sound(block)


def _sparse(
    entry: Entry,
    header: bytes,
    extended: _Extended | None,
    records: dict[bytes, bytes],
    blocks: Blocks,
    limits: Limits,
) -> None:
    """Reads a sparse file's map, in whichever of the four formats it comes."""
    if entry.type == ord("S"):
        entry.size, regions = sparse.old_gnu(header, blocks.header, fields.number, limits.max_entries)
    elif extended is None or not any(key.startswith(b"GNU.sparse.") for key in records):
        return
    else:
        size = records.get(b"GNU.sparse.realsize") or records.get(b"GNU.sparse.size")
        text = sparse.repeated(extended.records)
        if text is None:
            text = records.get(b"GNU.sparse.map")
        if records.get(b"GNU.sparse.major") == b"1":
            used, regions = sparse.pax_1(blocks.header, limits.max_entries)
            entry.stored -= used
            if entry.stored < 0:
                raise Invalid(f"{show(entry.name)}: a sparse map is longer than the entry's data")
        elif text is not None:
            regions = sparse.pax_0(text)
        else:
            return
        entry.size = pax.integer(b"GNU.sparse.size", size) if size else entry.size
        entry.name = records.get(b"GNU.sparse.name") or entry.name
    try:
        entry.regions = sparse.check(regions, entry.size, entry.stored)
    except Invalid as error:
        raise Invalid(f"{show(entry.name)}: {error.what}") from error
