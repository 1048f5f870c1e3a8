"""From a composition to a rootfs file: its metadata is written, its layers' segments are placed. And the empty one.

castoff.ext4 imports numpy (0.1 s in a cold process), so only functions that compose import it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from castoff import timeline
from castoff.disk.place import place_segment
from castoff.store.builds import uninterrupted
from castoff.store.rootfs import FILE, RootfsName, RootfsRecord, StoredRootfs, layered_key
from castoff.store.store import Store

if TYPE_CHECKING:
    from castoff.ext4.composition import Composition

__all__ = ["Written", "compose_empty", "write_composition"]


@dataclass(frozen=True, slots=True)
class Written:
    """What a rootfs file cost. Bytes."""

    metadata: int
    copied: int
    """Of segments: 0 where they are shared."""


def write_composition(
    composition: Composition, segments: Sequence[Path], path: Path, *, moved: Callable[[int], None] = lambda count: None
) -> Written:
    """Makes the rootfs file ``path``; not flushed. Blocks.

    Args:
        composition: From castoff.ext4.compose.
        segments: The layers' complete segments, the lowest first.
        path: A new file.
        moved: Told of the segments' bytes as they are placed; an exception from it stops the work.

    Raises:
        OSError, Unavailable: The filesystem failed, or is full.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        metadata = composition.write(descriptor)
        copied = 0
        with timeline.step("disk.place", total=sum(placed.length for placed in composition.placements)) as step:

            def counted(count: int) -> None:
                step.advance(count)
                moved(count)

            for placed in composition.placements:
                shared = place_segment(
                    segments[placed.layer],
                    descriptor,
                    segment_offset=placed.segment_offset,
                    offset=placed.offset,
                    length=placed.length,
                    moved=counted,
                )
                copied += 0 if shared else placed.length
        return Written(metadata, copied)
    finally:
        os.close(descriptor)


async def compose_empty(store: Store, size: int) -> StoredRootfs:
    """The empty filesystem of ``size`` bytes: the composition of no layers, in the store like any other.

    Raises:
        Invalid, NoSpace: There is no ext4 of that size.
    """
    name = RootfsName(layered_key(()), size)
    found = store.rootfs(name)
    if found is not None:
        return found

    def write(path: Path) -> None:
        from castoff.ext4.compose import compose

        write_composition(compose([], size=size), (), path)

    async def build(directory: Path) -> None:
        await uninterrupted(write, directory / FILE)

    return await store.build_rootfs(name, RootfsRecord(provider="overlay", layers=(), reference="", image=""), build)
