"""A layer's table of contents while it grows: one packed row an entry, columns at the end."""

from __future__ import annotations

from array import array
from struct import Struct

import numpy as np

from castoff.errors import Invalid, LimitExceeded
from castoff.layers.names import Names, show
from castoff.layers.settings import Limits
from castoff.layers.tar import Entry
from castoff.layers.toc import Kind, Toc

__all__ = ["Rows"]

_ROW = np.dtype(
    [
        ("directory", "<u4"),
        ("name", "u1"),
        ("kind", "u1"),
        ("mode", "<u2"),
        ("uid", "<u4"),
        ("gid", "<u4"),
        ("mtime", "<i8"),
        ("mtime_ns", "<u4"),
        ("size", "<u8"),
        ("link", "<u2"),
        ("xattr", "<u4"),
    ]
)
_pack = Struct("<IBBHIIqIQHI").pack
_MAX_ID = (1 << 32) - 2
_XATTR = Struct("<HI")


class Rows:
    """Gathers the rows and extents of one layer."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.names = Names(limits)
        self._rows = bytearray()
        self._count = 0
        self._links = bytearray()
        self._devices = array("I")
        self._sets: dict[bytes, int] = {b"": 0}
        self._set_pool = bytearray()
        self._set_offsets = array("I", [0, 0])
        self._extents = array("I")

    def __len__(self) -> int:
        return self._count

    def add(self, entry: Entry, kind: Kind, directory: int, name: bytes) -> None:
        """Adds the entry as a row of ``kind``, named ``name`` in ``directory``.

        Raises:
            Invalid: An attribute that Linux cannot keep.
            LimitExceeded: One entry too many.
        """
        if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID):
            raise Invalid(f"{show(entry.name)} belongs to {entry.uid}:{entry.gid}; Linux has ids of 0 to {_MAX_ID}")
        link = self._link(entry, kind) if kind in (Kind.SYMLINK, Kind.HARDLINK) else b""
        xattrs = self._xattr_set(entry) if entry.xattrs else 0
        if kind in (Kind.CHARACTER, Kind.BLOCK):
            self._device(entry)
        self._rows += _pack(
            directory,
            len(name),
            kind,
            entry.mode & 0o7777,
            entry.uid,
            entry.gid,
            entry.mtime,
            entry.mtime_ns,
            entry.size,
            len(link),
            xattrs,
        )
        self.names.names += name
        self._links += link
        self._count += 1
        if self._count > self._limits.max_entries:
            raise LimitExceeded("entries of the layer", limit=self._limits.max_entries, setting="layers.max_entries")

    def extent(self, logical: int, segment: int, blocks: int) -> None:
        """Adds an extent to the row added last."""
        self._extents.extend((self._count - 1, logical, segment, blocks))
        if len(self._extents) > 8 * self._limits.max_entries:
            raise LimitExceeded("extents of the layer", limit=2 * self._limits.max_entries, setting="layers.max_entries")

    def _link(self, entry: Entry, kind: Kind) -> bytes:
        link = entry.link
        if not link:
            raise Invalid(f"the link {show(entry.name)} has no target")
        if len(link) > self._limits.max_path - 1:
            raise LimitExceeded(
                f"the link target of {show(entry.name)}", limit=self._limits.max_path - 1, setting="layers.max_path"
            )
        if kind == Kind.HARDLINK:
            link = self.names.path(link)
        self.names.spend(len(link))
        return link

    def _device(self, entry: Entry) -> None:
        if not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
            raise Invalid(f"{show(entry.name)} is the device {entry.major}:{entry.minor}; Linux has 12 and 20 bits for these")
        self._devices.extend((self._count, entry.major, entry.minor))

    def _xattr_set(self, entry: Entry) -> int:
        assert entry.xattrs is not None
        data = bytearray()
        for name, value in sorted(entry.xattrs.items()):
            if not 0 < len(name) <= 255 or b"\0" in name or len(value) > 65536:
                raise Invalid(
                    f"{show(entry.name)} has the attribute {show(name)} of {len(value)} bytes; Linux allows names of 255 "
                    "and values of 65,536"
                )
            data += _XATTR.pack(len(name), len(value)) + name + value
        if len(data) > self._limits.max_xattr:
            raise LimitExceeded(f"the attributes of {show(entry.name)}", limit=self._limits.max_xattr, setting="layers.max_xattr")
        key = bytes(data)
        known = self._sets.get(key)
        if known is None:
            self.names.spend(2 * len(key))
            known = self._sets[key] = len(self._sets)
            self._set_pool += key
            self._set_offsets.append(len(self._set_pool))
        return known

    def toc(self, segment_size: int) -> Toc:
        """The finished table: views of the rows, since copies of a million would cost 46 MB."""
        rows = np.frombuffer(self._rows, _ROW)
        extents = np.frombuffer(self._extents, np.uint32).reshape(-1, 4)
        major, minor = np.zeros(len(rows), np.uint32), np.zeros(len(rows), np.uint32)
        devices = np.frombuffer(self._devices, np.uint32).reshape(-1, 3)
        major[devices[:, 0]], minor[devices[:, 0]] = devices[:, 1], devices[:, 2]
        return Toc(
            directory_pool=np.frombuffer(self.names.directory_pool, np.uint8),
            directory_offsets=np.frombuffer(self.names.directory_offsets, np.uint32),
            directory=rows["directory"],
            name_pool=np.frombuffer(self.names.names, np.uint8),
            name_offsets=offsets(rows["name"]),
            kind=rows["kind"],
            mode=rows["mode"],
            uid=rows["uid"],
            gid=rows["gid"],
            mtime=rows["mtime"],
            mtime_ns=rows["mtime_ns"],
            size=rows["size"],
            rdev_major=major,
            rdev_minor=minor,
            link_pool=np.frombuffer(self._links, np.uint8),
            link_offsets=offsets(rows["link"]),
            xattr=rows["xattr"],
            xattr_pool=np.frombuffer(self._set_pool, np.uint8),
            xattr_offsets=np.frombuffer(self._set_offsets, np.uint32),
            extent_row=extents[:, 0].copy(),
            extent_logical=extents[:, 1].copy(),
            extent_segment=extents[:, 2].copy(),
            extent_blocks=extents[:, 3].copy(),
            segment_size=segment_size,
        )


def offsets(lengths: np.ndarray[tuple[int], np.dtype[np.unsignedinteger]]) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """Offsets (one more than there are) of strings that lie end to end, from their lengths."""
    result = np.zeros(len(lengths) + 1, np.uint32)
    np.cumsum(lengths, out=result[1:])
    return result
