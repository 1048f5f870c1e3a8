"""Byte strings in bulk: each padded with zeros to whole 32-bit words, as ext4 pads names and numpy likes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Strings", "spread"]


_WINDOW = 1 << 15
"""Strings copied at once: what an index of every byte of more would take is better not taken."""


def spread(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The runs ``start, start + 1, ...`` of ``counts`` elements each, one after another."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    result = np.arange(total, dtype=np.int64)
    result += np.repeat(starts - (ends - counts), counts)
    return result


@dataclass(frozen=True, slots=True, eq=False)
class Strings:
    """N byte strings: string i is ``length[i]`` bytes of ``words`` from word ``at[i]`` on."""

    words: NDArray[np.uint32]
    at: NDArray[np.uint32]
    length: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, index: int) -> bytes:
        start = int(self.at[index])
        length = int(self.length[index])
        return self.words[start : start + (length + 3) // 4].tobytes()[:length]

    @property
    def word_counts(self) -> NDArray[np.int64]:
        """Words of each string."""
        return (self.length.astype(np.int64) + 3) >> 2

    @classmethod
    def from_pool(cls, pool: NDArray[np.uint8], offsets: NDArray[np.uint32]) -> Strings:
        """Copies the strings that lie between ``offsets`` in ``pool``; the offsets were checked."""
        bounds = offsets.astype(np.int64)
        length = np.diff(bounds)
        counts = (length + 3) >> 2
        ends = np.cumsum(counts)
        at = ends - counts
        data = np.zeros(int(ends[-1]) * 4 if len(ends) else 0, dtype=np.uint8)
        for first in range(0, len(length), _WINDOW):
            here = slice(first, first + _WINDOW)
            used = pool[bounds[first] : bounds[min(first + _WINDOW, len(length))]]
            target = np.arange(len(used), dtype=np.int64)
            target += np.repeat(at[here] * 4 - (bounds[:-1][here] - bounds[first]), length[here])
            data[target] = used
        return cls(data.view("<u4"), at.astype(np.uint32), length.astype(np.uint16))

    @classmethod
    def from_list(cls, items: Sequence[bytes]) -> Strings:
        """Copies the strings of a list."""
        offsets = np.zeros(len(items) + 1, dtype=np.uint32)
        np.cumsum([len(item) for item in items], out=offsets[1:])
        return cls.from_pool(np.frombuffer(b"".join(items), dtype=np.uint8), offsets)

    @classmethod
    def joined(cls, parts: Sequence[Strings]) -> Strings:
        """The strings of all ``parts``, in order."""
        if len(parts) == 1:
            return parts[0]
        bases = np.cumsum([0, *(len(part.words) for part in parts)])
        at = [part.at + np.uint32(base) for part, base in zip(parts, bases, strict=False)]
        words = np.concatenate([part.words for part in parts])
        return cls(words, np.concatenate(at), np.concatenate([part.length for part in parts]))

    def differing(self, mine: NDArray[np.int64], other: Strings, theirs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether string ``mine[i]`` here differs from string ``theirs[i]`` of ``other``, byte by byte."""
        differs: NDArray[np.bool_] = self.length[mine] != other.length[theirs]
        counts = self.word_counts[mine]
        counts[differs] = 0
        owner = np.repeat(np.arange(len(mine)), counts)
        here = self.words[spread(self.at[mine].astype(np.int64), counts)]
        there = other.words[spread(other.at[theirs].astype(np.int64), counts)]
        differs[owner[here != there]] = True
        return differs
