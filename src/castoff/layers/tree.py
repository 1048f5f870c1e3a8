"""Directory paths, front-coded: each is a directory before it in the table, a slash, and a suffix.

Decoding is pointer doubling for the lengths and one vectorised copy for each level of depth, so a table of a hundred
thousand directories is read without work per directory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castoff.errors import Invalid

__all__ = ["FrontCoded", "decode_paths", "encode_paths", "spread"]


@dataclass(frozen=True, slots=True)
class FrontCoded:
    """D paths; path 0 is empty, the root."""

    base: NDArray[np.uint32]
    """[D] the number of the directory that the path continues; less than its own, 0 for the first."""
    suffix_length: NDArray[np.uint32]
    """[D] bytes of what follows the base and a slash (no slash after the root)."""
    suffixes: NDArray[np.uint8]
    """The suffixes, joined."""


def encode_paths(pool: NDArray[np.uint8], offsets: NDArray[np.uint32]) -> FrontCoded:
    """Front-codes distinct normalised paths: each continues its nearest ancestor that is in the table before it."""
    data = pool.tobytes()
    known: dict[bytes, int] = {}
    bases, lengths, suffixes = [], [], bytearray()
    bounds = offsets.tolist()
    for number in range(len(bounds) - 1):
        path = data[bounds[number] : bounds[number + 1]]
        ancestor = path.rpartition(b"/")[0]
        while ancestor and ancestor not in known:
            ancestor = ancestor.rpartition(b"/")[0]
        suffix = path[len(ancestor) + 1 :] if ancestor else path
        bases.append(known[ancestor] if ancestor else 0)
        lengths.append(len(suffix))
        suffixes += suffix
        known[path] = number
    return FrontCoded(np.array(bases, np.uint32), np.array(lengths, np.uint32), np.frombuffer(bytes(suffixes), np.uint8))


def decode_paths(coded: FrontCoded, *, longest: int, limit: int) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """The pool of whole paths and its offsets.

    Raises:
        Invalid: A base that is no earlier directory, a path over ``longest`` bytes, or more than ``limit`` bytes in all.
    """
    count = len(coded.base)
    own = coded.suffix_length.astype(np.int64)
    base = coded.base.astype(np.int64)
    if not count or own[0] or base[0] or (count > 1 and (own[1:].min() == 0 or (base[1:] >= np.arange(1, count)).any())):
        raise Invalid("the layer index's directory table does not build on itself")
    own += base != 0  # the slash
    total, up = own.copy(), base
    for _ in range(longest.bit_length()):
        total += total[up]
        np.minimum(total, longest + 1, out=total)
        up = up[up]
    if up.any() or int(total.max()) > longest or int(total.sum()) > limit:
        raise Invalid(f"the layer index has directory paths over {longest} bytes, or over {limit} in all")
    offsets = np.zeros(count + 1, np.uint32)
    np.cumsum(total, out=offsets[1:])
    return _fill(coded, base, total, offsets), offsets


def _fill(coded: FrontCoded, base: NDArray[np.int64], total: NDArray[np.int64], offsets: NDArray[np.uint32]) -> NDArray[np.uint8]:
    lengths = coded.suffix_length.astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    pool = np.full(int(offsets[-1]), ord("/"), np.uint8)
    path = np.arange(1, len(base))
    ancestor = path
    while len(path):
        count = lengths[ancestor]
        target = offsets[path].astype(np.int64) + total[ancestor] - count
        pool[spread(target, count)] = coded.suffixes[spread(starts[ancestor], count)]
        ancestor = base[ancestor]
        keep = ancestor != 0
        path, ancestor = path[keep], ancestor[keep]
    return pool


def spread(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of all ranges ``start`` to ``start + count``, one range after another."""
    ends = np.cumsum(counts)
    numbers: NDArray[np.int64] = np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64)
    numbers += np.repeat(starts - (ends - counts), counts)
    return numbers
