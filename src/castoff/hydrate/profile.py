"""Boot profiles: which chunks machines of an image read before they were ready, in which order.

A profile holds the traces of the image's last few boots, on any host, and nothing else; the order in which a later boot
prefetches follows from them. Two profiles of an image join into one: the union of their boots, the oldest left out. Joining
is commutative, associative and idempotent, so hosts may exchange profiles in any order, as often as they like, and agree.

Granularity is the chunk, as that of fetching and verification is. docs/formats.md has the file ("Boot profile").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from castoff.errors import Internal
from castoff.image.digest import Digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BOOTS", "MAX_CHUNKS", "Boot", "ChunkId", "Profile", "merge"]

BOOTS: Final = 8
"""Boots that a profile keeps: enough for a majority, few enough that an image's changing use shows soon."""
MAX_CHUNKS: Final = 65_536
"""Chunks of a boot, and of what boots merge to: 16 GiB before READY."""


@dataclass(frozen=True, slots=True, order=True)
class ChunkId:
    """A chunk of a layer's segment."""

    diff_id: Digest
    number: int


@dataclass(frozen=True, slots=True)
class Boot:
    """What one machine read before it was ready."""

    recorded: int
    """Seconds since 1970."""
    id: str
    """16 hex digits, chosen at random: the same boot is known by it wherever it is met."""
    chunks: tuple[ChunkId, ...]
    """In the order of their first use, each once; at least one, at most ``MAX_CHUNKS``."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The boots of one image. Made by :meth:`of`."""

    image: Digest
    """Of the image's manifest."""
    boots: tuple[Boot, ...]
    """At most ``BOOTS``, the oldest first."""
    chunks: tuple[ChunkId, ...]
    """What they merge to (:func:`merge`): fetched in this order, the next boot waits least."""

    @classmethod
    def of(cls, image: Digest, boots: Iterable[Boot]) -> Profile:
        """The profile of these boots, in whatever order, known twice or not."""
        kept = sorted(set(boots), key=lambda boot: (boot.recorded, boot.id, boot.chunks))[-BOOTS:]
        return cls(image, tuple(kept), merge(kept))

    def join(self, other: Profile) -> Profile:
        """Both profiles' boots, the oldest left out where they are too many."""
        if other.image != self.image:
            raise Internal(f"profiles of two images, {self.image} and {other.image}, cannot be joined")
        return Profile.of(self.image, (*self.boots, *other.boots))

    def rows(self, table: NDArray[Any], layers: Sequence[Digest]) -> NDArray[np.int64]:
        """The rows of a machine's map that the profile names, in its order, each once.

        Chunks that the map does not have (of zeros, or without a live block in this image) are left out.

        Args:
            table: The map: a structured array with the columns ``layer`` (a number of ``layers``) and ``chunk``.
            layers: The diffIDs that the map's layer numbers mean.
        """
        import numpy as np

        numbers = {diff_id: number for number, diff_id in reversed(list(enumerate(layers)))}
        wanted = np.array(
            [numbers[chunk.diff_id] << 32 | chunk.number for chunk in self.chunks if chunk.diff_id in numbers], dtype=np.int64
        )
        if not len(table) or not len(wanted):
            return np.zeros(0, np.int64)
        first = np.array([numbers[diff_id] for diff_id in layers], dtype=np.int64)  # a layer that is stacked twice is one
        keys = first[table["layer"]] << 32 | table["chunk"]
        order = np.argsort(keys, kind="stable")
        at = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
        found: NDArray[np.int64] = order[at]
        there: NDArray[np.bool_] = keys[found] == wanted
        return found[there]


def merge(boots: Sequence[Boot]) -> tuple[ChunkId, ...]:
    """What at least half of the boots used, by the median of their ranks of first use; deterministic.

    Of an even count of ranks the median is the middle two's mean. Ties go by the lowest rank, then by the chunk.
    """
    ranks: dict[ChunkId, list[int]] = {}
    for boot in boots:
        for rank, chunk in enumerate(boot.chunks):
            ranks.setdefault(chunk, []).append(rank)
    kept = [(_twice_median(found), min(found), chunk) for chunk, found in ranks.items() if 2 * len(found) >= len(boots)]
    return tuple(chunk for _, _, chunk in sorted(kept)[:MAX_CHUNKS])


def _twice_median(ranks: list[int]) -> int:
    """An integer, so that no rounding decides."""
    ranks = sorted(ranks)
    return ranks[(len(ranks) - 1) // 2] + ranks[len(ranks) // 2]
