"""The directory hash of one name, half-MD4 over signed characters, written after fs/ext4/hash.c without numpy."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["half_md4"]

_MASK = 0xFFFFFFFF
_ROUNDS = (
    (0, (3, 7, 11, 19), range(8)),
    (0x5A827999, (3, 5, 9, 13), (1, 3, 5, 7, 0, 2, 4, 6)),
    (0x6ED9EBA1, (3, 9, 11, 15), (3, 7, 2, 6, 1, 5, 0, 4)),
)


def half_md4(name: bytes, seed: Sequence[int]) -> int:
    """The major hash of a name, an even number."""
    state = list(seed)
    for start in range(0, len(name), 32):
        state = _mixed(state, _words(name[start:]))
    hashed = state[1] & ~1
    return 0xFFFFFFFC if hashed == 0xFFFFFFFE else hashed


def _words(rest: bytes) -> list[int]:
    pad = len(rest) | len(rest) << 8
    pad = (pad | pad << 16) & _MASK
    words, value = [], pad
    for index, character in enumerate(rest[:32]):
        signed = character - 256 if character > 127 else character
        value = (signed + (value << 8)) & _MASK
        if index % 4 == 3:
            words.append(value)
            value = pad
    words.append(value)
    return (words + [pad] * 8)[:8]


def _mixed(state: list[int], words: list[int]) -> list[int]:
    a, b, c, d = state
    for number, (constant, shifts, order) in enumerate(_ROUNDS):
        for step, index in enumerate(order):
            if number == 0:
                mixed = d ^ (b & (c ^ d))
            elif number == 1:
                mixed = (b & c) + ((b ^ c) & d)
            else:
                mixed = b ^ c ^ d
            total = (a + mixed + words[index] + constant) & _MASK
            shift = shifts[step % 4]
            a, d, c, b = d, c, b, (total << shift | total >> (32 - shift)) & _MASK
    return [(old + new) & _MASK for old, new in zip(state, (a, b, c, d), strict=True)]
