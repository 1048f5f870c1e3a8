"""Limits that keep a hostile layer from filling memory, disk or time."""

from __future__ import annotations

import msgspec

__all__ = ["Limits"]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one layer may cost. Everything over a limit is refused with one line that names the setting."""

    max_layer_size: int = 64 << 30
    """Bytes of one layer's uncompressed tar: what stops a decompression bomb."""
    max_ratio: int = 1100
    """Uncompressed bytes for each compressed one, looked at after the first GiB. No gzip stream can have more than 1,032."""
    max_entries: int = 1 << 20
    """Entries of one layer, and extents beyond the first of its sparse files."""
    max_path: int = 4096
    """Bytes of an entry's path, and of a link's target: Linux's PATH_MAX."""
    max_xattr: int = 1 << 20
    """Bytes of all extended attributes of one entry, names and values."""
    max_header: int = 4 << 20
    """Bytes of one entry's extended header: a pax header, a GNU long name, a sparse map."""
    max_strings: int = 128 << 20
    """Bytes of all distinct directory paths, link targets and attributes of one layer together."""
    max_window: int = 128 << 20
    """Bytes that a zstd stream may make its decoder keep; `zstd --long` asks for 128 MiB, other streams for 8 or less."""
    memory: int = 112 << 20
    """Bytes of buffers that all conversions of this process may have at once; the next ones wait for their turn."""
