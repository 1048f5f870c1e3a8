"""A clone whose data comes in later: metadata as of any composition, the chunks that are here placed, holes for the rest.

Beside it is written what whoever fills the holes must know (castoff.hydrate.record): which chunk of which layer each wants.
Two chunks of an image are never a hole that is waited for: those of zeros, and those in which no file of this image lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from castoff import timeline
from castoff.disk.place import place_segment
from castoff.ext4.compose import Composition, Placement
from castoff.hydrate.map import write_map
from castoff.hydrate.record import MAP, STATE
from castoff.hydrate.state import write_state
from castoff.layers.toc import CHUNK
from castoff.rootfs.remote import RemoteLayer

__all__ = ["Holes", "true_runs", "write_with_holes"]


@dataclass(frozen=True, slots=True)
class Holes:
    """What a clone has and lacks. Chunks."""

    wanted: int
    """Rows of the map."""
    present: int
    """Those of them that were here already."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """The chunks of one placed segment that the image wants, ascending."""

    rootfs_chunk: NDArray[np.int64]
    layer: int
    chunk: NDArray[np.int64]
    present: NDArray[np.bool_]


def write_with_holes(composition: Composition, layers: Sequence[RemoteLayer], descriptor: int, directory: Path) -> Holes:
    """Writes the clone, and its map and state into ``directory``. Blocks.

    Args:
        composition: The image's, at the clone's size.
        layers: Its layers, the lowest first; pinned.
        descriptor: The clone: a new, empty file, on the filesystem of the segments.
        directory: The machine's.

    Raises:
        OSError, Unavailable: The filesystem failed, or is full.
    """
    composition.write(descriptor)
    found = [
        _place(composition, placed, layers[placed.layer], descriptor)
        for placed in sorted(composition.placements, key=lambda placed: placed.offset)
    ]
    none: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    present = np.concatenate([np.zeros(0, np.bool_), *(rows.present for rows in found)])
    write_map(
        directory / MAP,
        np.concatenate(none + [rows.rootfs_chunk for rows in found]),
        np.concatenate(none + [np.full(len(rows.chunk), rows.layer) for rows in found]),
        np.concatenate(none + [rows.chunk for rows in found]),
    )
    write_state(directory / STATE, len(present), np.flatnonzero(present).tolist())
    return Holes(len(present), int(present.sum()))


def _place(composition: Composition, placed: Placement, layer: RemoteLayer, descriptor: int) -> _Rows:
    """Places what is here of a segment; what is wanted of it."""
    first = placed.segment_offset // CHUNK
    count = -(-placed.length // CHUNK)
    here = layer.stored.present()[first : first + count]
    wanted = composition.live_chunks(placed.layer)[first : first + count] & ~layer.index.zero[first : first + count]
    # What is here whole goes in one piece, as always; of what is not, each run would be one more extent.
    runs = [(0, count)] if layer.stored.complete else true_runs(here & wanted)
    with timeline.step("disk.place", layer=str(layer.stored.diff_id), total=placed.length, runs=len(runs)) as step:
        for start, end in runs:
            length = min(end * CHUNK, placed.length) - start * CHUNK
            place_segment(
                layer.stored.segment,
                descriptor,
                segment_offset=placed.segment_offset + start * CHUNK,
                offset=placed.offset + start * CHUNK,
                length=length,
                moved=step.advance,
            )
    rows = np.flatnonzero(wanted)
    return _Rows(placed.offset // CHUNK + rows, placed.layer, first + rows, here[rows])


def true_runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Runs of true values, [start, end)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
