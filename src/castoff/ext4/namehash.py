"""The hash by which ext4 orders the names of a directory: half-MD4 over *signed* characters.

Source: fs/ext4/hash.c, ``ext4fs_dirhash`` with ``DX_HASH_HALF_MD4``. One seed serves every filesystem that castoff composes, so
that a layer's names are hashed once, when its tables are made.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from castoff.ext4.strings import Strings

__all__ = ["HASH_SEED", "hash_names"]

HASH_SEED = np.frombuffer(hashlib.sha256(b"castoff directory hash seed 1").digest()[:16], dtype="<u4").astype(np.uint32)
"""s_hash_seed of every filesystem."""

_END_OF_DIRECTORY = 0xFFFFFFFE
"""The kernel keeps this hash for the end of a directory; a name that has it gets the one before."""

_WINDOW = 1 << 14
"""Names hashed at once: their words stay in the cache."""

_Words = NDArray[np.uint32]


def hash_names(names: Strings) -> tuple[_Words, _Words]:
    """The (major, minor) hash of each name; a major hash is even."""
    major, minor = np.empty(len(names), dtype=np.uint32), np.empty(len(names), dtype=np.uint32)
    for first in range(0, len(names), _WINDOW):
        here = np.arange(first, min(first + _WINDOW, len(names)))
        _, major[here], minor[here], _ = _hashed(names, here)
    major &= np.uint32(0xFFFFFFFE)
    major[major == _END_OF_DIRECTORY] = _END_OF_DIRECTORY - 2
    return major, minor


def _hashed(names: Strings, which: NDArray[np.int64]) -> _Words:
    """The state after all input, [4, which]."""
    state = np.repeat(HASH_SEED[:, None], len(which), axis=1)
    length = names.length[which].astype(np.int64)
    rows = np.flatnonzero(length > 0)
    for start in range(0, int(length.max(initial=0)), 32):
        rows = rows[length[rows] > start]
        state[:, rows] = _transform(state[:, rows], _chunk(names, which[rows], start))
    return state


def _chunk(names: Strings, rows: NDArray[np.int64], start: int) -> list[_Words]:
    """Eight words of input from byte ``start`` of each name (``str2hashbuf_signed``).

    Characters are added as signed numbers and shifted in from the right; what is left of the last word and the words
    after it are padded with the count of bytes that remain.
    """
    remaining = names.length[rows].astype(np.int64) - start
    pad = remaining | remaining << 8
    pad |= pad << 16
    first = names.at[rows].astype(np.int64) + start // 4
    result = []
    for group in range(8):
        valid = np.clip(remaining - 4 * group, 0, 4)
        index = np.where(valid > 0, first + group, 0)
        characters = names.words[index].view(np.int8).reshape(-1, 4).astype(np.int64)
        value = (characters[:, 0] << 24) + (characters[:, 1] << 16) + (characters[:, 2] << 8) + characters[:, 3]
        value[valid == 0] = 0
        value = (value >> (8 * (4 - valid))) + (pad << (8 * valid))
        result.append((value & 0xFFFFFFFF).astype(np.uint32))
    return result


def _rotated(value: _Words, bits: int) -> _Words:
    return value << np.uint32(bits) | value >> np.uint32(32 - bits)


def _transform(state: _Words, words: list[_Words]) -> _Words:
    """``half_md4_transform``: three rounds of eight steps."""
    a, b, c, d = state
    for shift, index in zip((3, 7, 11, 19) * 2, range(8), strict=True):
        a, b, c, d = d, _rotated(a + (d ^ b & (c ^ d)) + words[index], shift), b, c
    for shift, index in zip((3, 5, 9, 13) * 2, (1, 3, 5, 7, 0, 2, 4, 6), strict=True):
        mixed = (b & c) + ((b ^ c) & d)
        a, b, c, d = d, _rotated(a + mixed + words[index] + np.uint32(0x5A827999), shift), b, c
    for shift, index in zip((3, 9, 11, 15) * 2, (3, 7, 2, 6, 1, 5, 0, 4), strict=True):
        a, b, c, d = d, _rotated(a + (b ^ c ^ d) + words[index] + np.uint32(0x6ED9EBA1), shift), b, c
    return np.stack([state[0] + a, state[1] + b, state[2] + c, state[3] + d])
