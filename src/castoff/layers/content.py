"""From tar entries to a table of contents and a segment: what each entry means in a layer."""

from __future__ import annotations

from castoff.errors import Invalid, LimitExceeded
from castoff.layers.blocks import Blocks
from castoff.layers.names import show
from castoff.layers.rows import Rows
from castoff.layers.segment import Segment
from castoff.layers.settings import Limits
from castoff.layers.tar import Entry, read_entries
from castoff.layers.toc import BLOCK, Kind

__all__ = ["read_layer"]

_PREFIX = b".wh."
_META = b".wh..wh."
_OPAQUE = b".wh..wh..opq"
_DOTS = frozenset((b"", b".", b".."))


def read_layer(blocks: Blocks, segment: Segment, limits: Limits) -> Rows:
    """Reads the tar to its end: files' data into ``segment``, everything else into the rows that it returns.

    Raises:
        Invalid: The archive is broken, or says what no filesystem can hold.
        LimitExceeded: A limit was passed.
    """
    rows = Rows(limits)
    split, hidden, add = rows.names.split, rows.names.hidden, rows.add
    for entry in read_entries(blocks, limits):
        if len(entry.name) > limits.max_path:
            raise LimitExceeded(f"the path {show(entry.name)}", limit=limits.max_path, setting="layers.max_path")
        directory, name = split(entry.name)
        if name.startswith(_PREFIX):
            _whiteout(rows, entry, directory, name)
            blocks.skip(entry.stored)
        elif directory in hidden or (not name and entry.kind != Kind.DIRECTORY):
            blocks.skip(entry.stored)  # AUFS' own, or "resolved to root", which containerd ignores
        else:
            add(entry, entry.kind, directory, name)
            if entry.kind == Kind.FILE:
                _data(blocks, segment, rows, entry)
            elif entry.stored:
                blocks.skip(entry.stored)
    blocks.drain()
    segment.finish()
    return rows


def _data(blocks: Blocks, segment: Segment, rows: Rows, entry: Entry) -> None:
    if entry.regions is not None:
        for logical, first, count in segment.sparse(blocks, entry.regions):
            rows.extent(logical, first, count)
    elif entry.size:
        rows.extent(0, segment.file(blocks, entry.size), -(-entry.size // BLOCK))


def _whiteout(rows: Rows, entry: Entry, directory: int, name: bytes) -> None:
    """A name that AUFS, and OCI after it, gave a meaning: what it hides becomes a row; AUFS' other files are nothing."""
    entry.size, entry.link, entry.xattrs = 0, b"", None
    if name == _OPAQUE:
        rows.add(entry, Kind.OPAQUE, directory, b"")
    elif not name.startswith(_META):
        hidden = name[len(_PREFIX) :]
        if hidden in _DOTS:
            raise Invalid(f"the whiteout {show(entry.name)} hides nothing that could have a name")
        rows.add(entry, Kind.WHITEOUT, directory, hidden)
