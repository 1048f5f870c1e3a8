"""One column of a layer's tables as it stands in the file: short where that costs a load little (docs/formats.md).

Hashes and checksums do not shrink, and are read where they lie. Of the rest, most are one value throughout, or ascend by steps
that repeat.
"""

from __future__ import annotations

from math import prod
from typing import Any

import lz4.block
import numpy as np
from numpy.typing import NDArray

__all__ = ["Kept", "decode", "encode"]

Kept = bytes | memoryview
_ASCENDING = frozenset(("names.at", "inode", "inodes.time", "inodes.extents.at", "inodes.extents.start"))
"""Columns of which the differences shrink better than the values."""
_LEAST = 4096
"""Bytes of a column under which nothing is gained: the file has blocks of that size."""


def encode(name: str, column: NDArray[Any], *, short: bool) -> tuple[str, Kept]:
    """How a column is kept, and its bytes; as it is unless ``short``."""
    values = np.ascontiguousarray(column).reshape(-1)
    raw = values.view(np.uint8).data
    if not short or values.nbytes < _LEAST:
        return "raw", raw
    if np.array_equal(values[1:], values[:-1]):
        return "one", values[:1].tobytes()
    if name in _ASCENDING:
        return "steps", _compressed(np.diff(values, prepend=values.dtype.type(0)))
    compressed = _compressed(values)
    return ("lz4", compressed) if len(compressed) <= values.nbytes * 7 // 8 else ("raw", raw)


def decode(how: str, kind: str, shape: list[int], data: memoryview) -> NDArray[Any]:
    """The column of type ``kind`` that was kept as ``data``; not to be written to."""
    if how == "raw":
        return np.ndarray(shape, dtype=kind, buffer=data)
    if how == "one":
        return np.broadcast_to(np.frombuffer(data, dtype=kind), shape)
    count = prod(shape) * np.dtype(kind).itemsize
    values = np.frombuffer(lz4.block.decompress(data, uncompressed_size=count), dtype=kind)
    if how == "steps":
        values = np.cumsum(values, dtype=kind)
    return values.reshape(shape)


def _compressed(values: NDArray[Any]) -> bytes:
    compressed: bytes = lz4.block.compress(values.view(np.uint8).data, store_size=False)
    return compressed
