"""How an integer column is stored: as narrow as its values allow, decoded by numpy without work per value.

Two encodings (docs/formats.md, "Columns"): *offset*, ``base + unsigned`` of 0, 1, 2, 4 or 8 bytes, and *dictionary*, the
distinct values as i64 and one code of 1 or 2 bytes a row. The writer takes whichever is smaller, offset when they are
alike, so the bytes are a function of the values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid

__all__ = ["DICTIONARY", "OFFSET", "RAW", "Encoded", "decode", "encode"]

RAW, OFFSET, DICTIONARY = 0, 1, 2
_WIDTHS: dict[int, type[np.unsignedinteger[Any]]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_DICTIONARY_LIMIT = 1 << 16


@dataclass(frozen=True, slots=True)
class Encoded:
    """A stored column: ``width`` bytes a code, ``base`` the least value or the count of a dictionary's values."""

    encoding: int
    width: int
    base: int
    data: bytes | bytearray | memoryview


def encode(values: NDArray[Any]) -> Encoded:
    """Encodes a column of integers."""
    if not len(values):
        return Encoded(OFFSET, 0, 0, b"")
    low, high = int(values.min()), int(values.max())
    width = _width(high - low)
    if width > 1:
        distinct, codes = np.unique(values, return_inverse=True)
        code_width = 1 if len(distinct) <= 256 else 2
        if len(distinct) <= _DICTIONARY_LIMIT and 8 * len(distinct) + code_width * len(values) < width * len(values):
            data = distinct.astype("<i8").tobytes() + codes.astype(f"<u{code_width}").tobytes()
            return Encoded(DICTIONARY, code_width, len(distinct), data)
    if not width:
        return Encoded(OFFSET, 0, low, b"")
    base = np.array(low, np.int64).astype(np.uint64)
    return Encoded(OFFSET, width, low, (values.astype(np.uint64) - base).astype(f"<u{width}").tobytes())


def _width(spread: int) -> int:
    if not spread:
        return 0
    return next(width for width in _WIDTHS if spread < 1 << (8 * width))


def decode(column: Encoded, count: int, dtype: type[np.integer[Any]], *, low: int, high: int, what: str) -> NDArray[Any]:
    """The ``count`` values of a column as ``dtype``.

    Raises:
        Invalid: It does not have ``count`` values from ``low`` to ``high``.
    """
    if column.encoding == DICTIONARY:
        values = _lookup(column, count, what)
    elif column.encoding == OFFSET and len(column.data) == column.width * count:
        values = _shift(column, count, what)
    else:
        raise Invalid(f"the layer index's column `{what}` is not as long as it should be")
    if count and not (low <= int(values.min()) and int(values.max()) <= high):
        raise Invalid(f"the layer index's column `{what}` has a value outside of {low} to {high}")
    return values.astype(dtype)


def _lookup(column: Encoded, count: int, what: str) -> NDArray[Any]:
    split = 8 * column.base
    if column.width not in (1, 2) or not 0 < column.base <= _DICTIONARY_LIMIT or len(column.data) != split + column.width * count:
        raise Invalid(f"the layer index's column `{what}` is not as long as it should be")
    distinct = np.frombuffer(column.data[:split], "<i8")
    codes = np.frombuffer(column.data[split:], f"<u{column.width}")
    if count and int(codes.max()) >= column.base:
        raise Invalid(f"the layer index's column `{what}` has a code outside of its dictionary")
    values: NDArray[np.int64] = distinct[codes]
    return values


def _shift(column: Encoded, count: int, what: str) -> NDArray[Any]:
    if not column.width:
        return np.full(count, column.base, np.int64)
    if column.width not in _WIDTHS:
        raise Invalid(f"the layer index's column `{what}` has values of {column.width} bytes")
    stored = np.frombuffer(column.data, f"<u{column.width}")
    if count and int(stored.max()) + column.base >= 1 << 63:
        raise Invalid(f"the layer index's column `{what}` has a value over 64 bits")
    return (
        stored.astype(np.int64) + column.base
        if column.width < 8
        else (stored + np.uint64(column.base % (1 << 64))).view(np.int64)
    )
