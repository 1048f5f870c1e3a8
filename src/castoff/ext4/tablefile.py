"""A layer's tables in a file: a cache that loads without work per row. docs/formats.md describes it.

"castofft", version, length of the header: 8 bytes, u32, u32
header: JSON, {"rows", "segment_blocks", "irregular", "columns": [[name, type, [shape]], ...]}
columns, each from a multiple of 64 bytes on
CRC-32C of all before it: u32
"""

from __future__ import annotations

import json
import mmap
import os
import struct
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
from castoff.ext4.strings import Strings

if TYPE_CHECKING:
    from castoff.ext4.tables import LayerTables

__all__ = ["VERSION", "load", "save"]

VERSION = 1
"""Raised with every change of castoff.ext4 that changes a layer's tables."""

_MAGIC = b"castofft"
_HEAD = struct.Struct("<8sII")
_ALIGNMENT = 64


def _columns(value: Any, prefix: str = "") -> list[tuple[str, NDArray[Any]]]:
    found = []
    for field in fields(value):
        member = getattr(value, field.name)
        if isinstance(member, np.ndarray):
            found.append((prefix + field.name, member))
        elif is_dataclass(member):
            found += _columns(member, f"{prefix}{field.name}.")
    return found


def save(tables: LayerTables, path: Path) -> None:
    """Writes a new file, by another name first; it need not survive a crash, so it is not synced.

    Raises:
        Unavailable: It cannot be written.
    """
    columns = _columns(tables)
    described = [[name, column.dtype.str, list(column.shape)] for name, column in columns]
    about = {
        "rows": tables.rows,
        "segment_blocks": tables.segment_blocks,
        "irregular": tables.irregular,
        "columns": described,
    }
    header = json.dumps(about).encode()
    parts: list[bytes | memoryview] = [_HEAD.pack(_MAGIC, VERSION, len(header)), header]
    size = _HEAD.size + len(header)
    for _, column in columns:
        parts.append(bytes(-size % _ALIGNMENT))
        parts.append(np.ascontiguousarray(column).reshape(-1).view(np.uint8).data)
        size += -size % _ALIGNMENT + column.nbytes
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
    for name, kind, shape in about["columns"]:
        at += -at % _ALIGNMENT
        column = np.ndarray(shape, dtype=kind, buffer=view, offset=at)
        columns[name] = column
        at += column.nbytes
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
    return LayerTables(
        rows=about["rows"],
        segment_blocks=about["segment_blocks"],
        irregular=about["irregular"],
        names=part(Strings, "names."),
        link_path=part(Strings, "link_path."),
        mapping=mapping,
        inodes=inodes,
        **{name: column for name, column in columns.items() if "." not in name},
    )
