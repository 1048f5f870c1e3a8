"""A layer's tables in a file: a cache that loads without work per row. docs/formats.md describes it.

"castofft", version, length of the header: 8 bytes, u32, u32
header: JSON, {"rows", "segment_blocks", "irregular", "columns": [[name, type, [shape], how it is kept, bytes], ...]}
columns, each from a multiple of 64 bytes on
CRC-32C of all before it: u32

Of a layer of up to 262,144 items columns are kept short, and the keys of items and records not at all: they follow from those of
the directories and the names' hashes.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import crc32c
import numpy as np
from numpy.typing import NDArray

from castoff.errors import Unavailable
from castoff.ext4.attributes import AttributeSets
from castoff.ext4.extents import ExtentList
from castoff.ext4.inodes import InodeColumns
from castoff.ext4.lexical import item_keys
from castoff.ext4.strings import Strings
from castoff.ext4.tablecolumn import decode, encode

if TYPE_CHECKING:
    from castoff.ext4.tables import LayerTables

__all__ = ["VERSION", "load", "save"]

VERSION = 3
"""Raised with every change of castoff.ext4 that changes a layer's tables."""

_MAGIC = b"castofft"
_HEAD = struct.Struct("<8sII")
_ALIGNMENT = 64
_DERIVED = ("key", "record_key")
_SHORT_ITEMS = 1 << 18
"""Items up to which columns are kept short. What was decompressed is the process's own memory, and what is mapped can be let go:
of larger layers memory is scarcer than their disk, of which their inodes take twice what their tables take."""


def _columns(value: Any, prefix: str = "", *, without: Collection[str] = ()) -> list[tuple[str, NDArray[Any]]]:
    found = []
    for field in fields(value):
        member = getattr(value, field.name)
        if isinstance(member, np.ndarray) and field.name not in without:
            found.append((prefix + field.name, member))
        elif is_dataclass(member):
            found += _columns(member, f"{prefix}{field.name}.")
    return found


def save(tables: LayerTables, path: Path, *, short_items: int = _SHORT_ITEMS) -> None:
    """Writes a new file, by another name first; it need not survive a crash, so it is not synced.

    Args:
        tables: The tables.
        path: Where they go.
        short_items: Up to how many items columns are kept short.

    Raises:
        Unavailable: It cannot be written.
    """
    short = len(tables) <= short_items
    columns = _columns(tables, without=_DERIVED if short else ())
    if short:
        columns.append(("directory_key", tables.key[tables.rows :]))
    kept = [encode(name, column, short=short) for name, column in columns]
    described = [
        [name, column.dtype.str, list(column.shape), how, len(data)]
        for (name, column), (how, data) in zip(columns, kept, strict=True)
    ]
    about = {
        "rows": tables.rows,
        "segment_blocks": tables.segment_blocks,
        "irregular": tables.irregular,
        "columns": described,
    }
    header = json.dumps(about).encode()
    parts: list[bytes | memoryview] = [_HEAD.pack(_MAGIC, VERSION, len(header)), header]
    size = _HEAD.size + len(header)
    for _, data in kept:
        parts += [bytes(-size % _ALIGNMENT), data]
        size += -size % _ALIGNMENT + len(data)
    crc = 0
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                crc = crc32c.crc32c(part, crc)
                file.write(part)
            file.write(crc.to_bytes(4, "little"))
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise Unavailable(f"the tables of a layer cannot be written to {path}: {error.strerror}") from error


def load(path: Path) -> LayerTables | None:
    """The tables in a file; None where there is none, or one of another version, or a broken one.

    Raises:
        Unavailable: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < _HEAD.size + 4:
                return None
            data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unavailable(f"the tables of a layer cannot be read from {path}: {error.strerror}") from error
    view = memoryview(data)
    magic, version, length = _HEAD.unpack_from(view)
    if magic != _MAGIC or version != VERSION or crc32c.crc32c(view[:-4]) != int.from_bytes(view[-4:], "little"):
        return None
    about = json.loads(bytes(view[_HEAD.size : _HEAD.size + length]))
    at = _HEAD.size + length
    columns: dict[str, NDArray[Any]] = {}
    for name, kind, shape, how, count in about["columns"]:
        at += -at % _ALIGNMENT
        columns[name] = decode(how, kind, shape, view[at : at + count])
        at += count
    tables = _tables(about, columns, data)
    tables.forget()  # what the checksum has read
    return tables


def _tables(about: dict[str, Any], columns: dict[str, NDArray[Any]], mapping: mmap.mmap) -> LayerTables:
    from castoff.ext4.tables import LayerTables

    def part(kind: type[Any], prefix: str, **others: Any) -> Any:
        own = {name.removeprefix(prefix): column for name, column in columns.items() if name.startswith(prefix)}
        return kind(**{name: column for name, column in own.items() if "." not in name}, **others)

    inodes = part(
        InodeColumns,
        "inodes.",
        inline=part(Strings, "inodes.inline."),
        extents=part(ExtentList, "inodes.extents."),
        attributes=part(AttributeSets, "inodes.attributes."),
    )
    names = part(Strings, "names.")
    directory_key = columns.pop("directory_key", None)
    if directory_key is not None:
        columns["key"] = item_keys(directory_key, columns["directory"], columns["major"], columns["minor"], names.length)
        columns["record_key"] = columns["key"][columns["record_item"]]
    return LayerTables(
        rows=about["rows"],
        segment_blocks=about["segment_blocks"],
        irregular=about["irregular"],
        names=names,
        link_path=part(Strings, "link_path."),
        mapping=mapping,
        inodes=inodes,
        **{name: column for name, column in columns.items() if "." not in name},
    )
