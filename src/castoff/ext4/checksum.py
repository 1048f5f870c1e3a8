"""CRC-32C as ext4 uses it: raw, without the inversions before and after that the usual function has.

A raw CRC is linear: the checksum of a message is the exclusive or of what each of its words contributes, and what a word
contributes depends on its value and on how many bytes follow it only. So the checksums of many inodes are made column by
column, and a field that is known late is added to a checksum that was made early.
"""

from __future__ import annotations

from functools import cache

import crc32c as _crc32c
import numpy as np
from numpy.typing import NDArray

__all__ = ["advance", "contribution", "raw_crc", "row_crcs"]

_MASK = 0xFFFFFFFF


def raw_crc(seed: int, data: bytes | memoryview) -> int:
    """ext4's ``crc32c(seed, data)``: no inversion at either end."""
    return int(_crc32c.crc32c(data, seed ^ _MASK)) ^ _MASK


def advance(crc: int, zeros: int) -> int:
    """The CRC after ``zeros`` more zero bytes."""
    return raw_crc(crc, bytes(zeros))


@cache
def _tables(following: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """What the low and the high half of a word contribute when ``following`` bytes come after it."""
    bits = np.array([raw_crc(0, (1 << bit).to_bytes(4, "little") + bytes(following)) for bit in range(32)], dtype=np.uint32)
    halves = []
    for basis in (bits[:16], bits[16:]):
        table = np.zeros(1, dtype=np.uint32)
        for value in basis:
            table = np.concatenate([table, table ^ value])
        halves.append(table)
    return halves[0], halves[1]


def contribution(words: NDArray[np.uint32], following: int) -> NDArray[np.uint32]:
    """What each of ``words`` adds to the CRC of a message in which ``following`` bytes come after the word."""
    low, high = _tables(following)
    result: NDArray[np.uint32] = low[words & 0xFFFF]
    result ^= high[words >> 16]
    return result


def row_crcs(rows: NDArray[np.uint32], seeds: NDArray[np.uint32] | int) -> NDArray[np.uint32]:
    """The raw CRC of each row of little-endian words, shape [rows, words], from ``seeds``."""
    low, high = _tables(0)
    crc = np.empty(len(rows), dtype=np.uint32)
    crc[:] = seeds
    for word in range(rows.shape[1]):
        crc ^= rows[:, word]
        crc = low[crc & 0xFFFF] ^ high[crc >> 16]
    return crc
