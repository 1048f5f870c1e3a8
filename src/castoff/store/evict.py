"""Room from layers that must stay: chunks of theirs that nothing shares, and that can be fetched again, become holes.

What a machine stands on stays in its clone, which shares its blocks with the segment; to give those up would free nothing.
What no clone and no rootfs shares is in the segment alone: chunks without a live block of any image here, chunks that came in
ahead of need, and room that is reserved for chunks that never came. Never under a reader: whoever reads a segment pins it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from castoff.errors import CastoffError
from castoff.layers import allocate
from castoff.layers.index import LayerIndex, LocationKind, read_index
from castoff.layers.toc import CHUNK
from castoff.store.extents import extents
from castoff.store.hydration import HaveMap
from castoff.store.locks import exclusive

__all__ = ["evict_chunks"]


def evict_chunks(directory: Path, *, needed: int) -> int:
    """Makes holes of chunks of the layer in ``directory`` until ``needed`` bytes are free or there are no more. Blocks.

    Returns:
        Bytes that are free now; 0 where a process has the layer, or it was converted here and can be fetched from nowhere.

    Raises:
        OSError: The disk failed.
    """
    with exclusive(directory) as unused:
        if not unused:
            return 0
        try:
            index = read_index(directory / "index")
            have = HaveMap.open(directory)
        except CastoffError:
            return 0  # broken: `castoff store verify` tells
        with have, (directory / "segment").open("r+b", buffering=0) as segment:
            taken = _unshared(segment.fileno(), index)
            order = _in_order(index, have, taken)
            numbers = order[: int(np.searchsorted(np.cumsum(taken[order]), needed)) + 1]
            if not len(numbers):
                return 0
            have.clear(numbers[~index.zero[numbers]].tolist())  # holes of zeros are whole
            _punch(segment.fileno(), np.sort(numbers))
            return int(taken[numbers].sum())


def _unshared(descriptor: int, index: LayerIndex) -> NDArray[np.int64]:
    """[C] bytes on disk of each chunk; 0 where any of it is shared, or nothing is there."""
    taken = np.zeros(len(index.zero), np.int64)
    shared = np.zeros(len(index.zero), np.bool_)
    found = extents(descriptor)
    if found is None:  # no map: no reflinks either
        taken[~index.zero] = CHUNK
        return taken
    for extent in found:
        first, last = extent.logical // CHUNK, (extent.logical + extent.length - 1) // CHUNK
        last = min(last, len(taken) - 1)  # what is reserved may reach past the end
        if extent.shared:
            shared[first : last + 1] = True
            continue
        starts = np.arange(first, last + 1) * CHUNK
        ends = np.minimum(starts + CHUNK, extent.logical + extent.length)
        taken[first : last + 1] += ends - np.maximum(starts, extent.logical)
    taken[shared] = 0
    return taken


def _in_order(index: LayerIndex, have: HaveMap, taken: NDArray[np.int64]) -> NDArray[np.int64]:
    """The chunks that may go: first those that never came, then the last of the segment, which are read the latest."""
    may_go = (taken > 0) & (index.zero | (index.locations.kind == LocationKind.PACK))
    absent = ~have.present()
    return np.concatenate((np.flatnonzero(may_go & absent), np.flatnonzero(may_go & ~absent)[::-1]))


def _punch(descriptor: int, numbers: NDArray[np.int64]) -> None:
    for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
        start, count = int(run[0]) * CHUNK, len(run) * CHUNK
        refused = allocate.punch(descriptor, start, count)
        if refused:
            raise OSError(refused, os.strerror(refused))
