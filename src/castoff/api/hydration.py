"""How much of a machine's root filesystem is here: each chunk of its data, for the page's map; and all machines', counted.

Read from the files that castoff's hydrator shares (castoff.hydrate.record); looking disturbs nobody. What is no file of a
lazy machine's is whole: its rootfs was complete before it started, or has become so.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from castoff.errors import CastoffError, NotFound
from castoff.hydrate.record import ABSENT, EVENTS, FILLING, MAP, PRESENT, STATE, LazyRecord, read_record
from castoff.layers.toc import CHUNK

if TYPE_CHECKING:
    from castoff.hydrate.map import LazyMap

__all__ = ["HydrationCount", "count_hydration", "hydration_map"]

PROFILE: Final = 4
"""Bit of a chunk in the page's map: it is in the image's boot profile."""
_EVENTS: Final = 4096
"""Bytes of the last lines for people."""


@dataclass(frozen=True, slots=True)
class HydrationCount:
    """Machines whose data comes in, and their chunks."""

    machines: int = 0
    absent: int = 0
    filling: int = 0
    present: int = 0


def count_hydration(machines: Path) -> HydrationCount:
    """Counts over the directory of all machines. Blocks; a file of some kilobytes a machine."""
    found = absent = filling = present = 0
    for path in machines.glob(f"*/{STATE}"):
        try:
            states = path.read_bytes()
        except OSError:
            continue  # complete, or removed, meanwhile
        found += 1
        absent, filling, present = (
            absent + states.count(ABSENT),
            filling + states.count(FILLING),
            present + states.count(PRESENT),
        )
    return HydrationCount(found, absent, filling, present)


def hydration_map(directory: Path, store: Path) -> dict[str, Any]:
    """A machine's map, for JSON. Blocks.

    Args:
        directory: The machine's.
        store: The store's root, where boot profiles are.

    Returns:
        ``lazy``: whether it was started before all was here; ``complete``: whether all is here now; and of a lazy one that
        is not: ``chunk`` bytes of a chunk, ``size`` bytes of the rootfs, ``layers`` ``[diff_id, first chunk, chunks]`` in the
        map's order, ``chunks`` one byte each in base64: 0 absent, 1 filling, 2 present, and 4 more where the boot profile
        has it; ``said``, the last lines that the hydrator wrote for people.

    Raises:
        Invalid: A file of it is broken.
    """
    try:
        record = read_record(directory)
    except NotFound:
        return {"lazy": False, "complete": True}
    whole = {"lazy": True, "complete": True, "size": record.size, "said": _said(directory)}
    if record.complete:
        return whole
    from castoff.hydrate.map import LazyMap  # numpy: only where there is a map

    try:
        lazy_map = LazyMap.read(directory / MAP, size=record.size, layers=len(record.layers))
        states = bytearray((directory / STATE).read_bytes())
    except (NotFound, FileNotFoundError):
        return whole  # just now
    rows = sorted(range(min(len(lazy_map), len(states))), key=lambda row: (lazy_map.layer_of[row], lazy_map.layer_chunk_of[row]))
    for row in _profiled(record, lazy_map, store):
        if row < len(states):
            states[row] |= PROFILE
    return whole | {
        "complete": False,
        "chunk": CHUNK,
        "layers": _layers(record, lazy_map, rows),
        "chunks": base64.b64encode(bytes(states[row] for row in rows)).decode(),
    }


def _layers(record: LazyRecord, lazy_map: LazyMap, rows: list[int]) -> list[list[Any]]:
    """Runs of rows that are of one layer."""
    found: list[list[Any]] = []
    first = 0
    for layer, run in groupby(rows, key=lambda row: lazy_map.layer_of[row]):
        count = sum(1 for _ in run)
        found.append([record.layers[layer].diff_id, first, count])
        first += count
    return found


def _profiled(record: LazyRecord, lazy_map: LazyMap, store: Path) -> list[int]:
    """Rows that the image's boot profile has; none where there is no profile, or a broken one: then it is replaced soon."""
    from castoff.hydrate.profile_file import read_profile
    from castoff.image.digest import Digest

    try:
        profile = read_profile(store, Digest.parse(record.image))
    except CastoffError:
        return []
    if profile is None:
        return []
    places = {
        (record.layers[layer].diff_id, chunk): row
        for row, (layer, chunk) in enumerate(zip(lazy_map.layer_of, lazy_map.layer_chunk_of, strict=True))
    }
    wanted = ((str(chunk.diff_id), chunk.number) for chunk in profile.chunks)
    return [places[place] for place in wanted if place in places]


def _said(directory: Path) -> list[str]:
    """The last lines that the hydrator wrote for people."""
    try:
        with (directory / EVENTS).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _EVENTS))
            lines = file.read(_EVENTS).decode(errors="replace").splitlines()
    except OSError:
        return []
    return lines[1 if size > _EVENTS else 0 :][-20:]
