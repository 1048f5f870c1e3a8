"""Is what the store holds still what it was? Layers are hashed again, root filesystems composed again and compared.

A rootfs is checked against its layers, not by a digest of its own: its metadata must be what composing gives now, and each
placed segment the layer's. Blocks that it shares with a segment are the segment's, and were hashed with it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from castoff import timeline
from castoff.disk.compare import first_difference
from castoff.errors import CastoffError, Conflict
from castoff.ext4.compose import Composition, Placement, compose
from castoff.image.digest import Digest
from castoff.layers.index import read_index
from castoff.layers.toc import CHUNK
from castoff.layers.verify import verify_segment
from castoff.rootfs.composition import layer_tables
from castoff.rootfs.holes import true_runs
from castoff.store.builds import uninterrupted
from castoff.store.have import Have
from castoff.store.hydration import present_chunks
from castoff.store.layers import layer_directories, layer_path
from castoff.store.prune import remove_layer, remove_rootfs
from castoff.store.rootfs import FILE, RootfsName, read_record, rootfs_names
from castoff.store.store import Store

__all__ = ["Verdict", "verify_rootfs", "verify_store"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one thing."""

    kind: str
    """``layer`` or ``rootfs``."""
    name: str
    """A diffID, or ``<key>-<size>``."""
    problem: str
    """What is wrong with it, one line; empty where nothing is."""
    note: str = ""
    """Why it could not be checked; or, of a broken one, what was done about it."""


async def verify_store(store: Store, *, repair: bool = False) -> tuple[Verdict, ...]:
    """Checks every layer and every rootfs.

    Args:
        store: The store.
        repair: Remove what is broken, where nothing uses it; it is made again when it is needed.
    """
    layers = [await verify_layer(store, path) for path in await asyncio.to_thread(lambda: list(layer_directories(store.root)))]
    broken = {verdict.name: verdict.problem for verdict in layers if verdict.problem}
    names = await asyncio.to_thread(lambda: list(rootfs_names(store.root)))
    rootfs = [await verify_rootfs(store, name, broken) for name in names]
    verdicts = (*layers, *rootfs)
    if not repair:
        return verdicts
    # A layer can go only when no rootfs shares it any more.
    done = {verdict.name: await uninterrupted(_repair, store, verdict) for verdict in (*rootfs, *layers)}
    return tuple(done[verdict.name] for verdict in verdicts)


async def verify_layer(store: Store, directory: Path) -> Verdict:
    """Hashes again what is here of a layer's segment, and checks its index."""
    with timeline.step("rootfs.verify", layer=directory.name):
        problem, note = await asyncio.to_thread(_look_at_layer, directory)
    return Verdict("layer", f"sha256:{directory.name}", problem, note)


async def verify_rootfs(store: Store, name: RootfsName, broken: Mapping[str, str] | None = None) -> Verdict:
    """Composes a rootfs again, and compares.

    Args:
        store: The store.
        name: Which one.
        broken: What is wrong with layers that were checked already; None: those of this rootfs are checked here.
    """
    try:
        record = await asyncio.to_thread(read_record, store.root / "rootfs" / str(name))
    except CastoffError as error:
        return Verdict("rootfs", str(name), error.what)
    if record.provider not in ("layered", "overlay"):
        return Verdict("rootfs", str(name), "", f"made by {record.provider}: there is nothing to compare it with")
    if broken is None:
        broken = {text: (await verify_layer(store, path)).problem for text, path in _layers_here(store, record.layers)}
    for text in record.layers:
        if broken.get(text):
            return Verdict("rootfs", str(name), f"its layer {text} is broken: {broken[text]}")
    with ExitStack() as pins:
        layers = []
        for text in record.layers:
            found = store.layer(Digest.parse(text))
            if found is None:
                return Verdict("rootfs", str(name), "", f"cannot be checked: its layer {text} is not here")
            pins.callback(found.pin.close)
            layers.append(found)
        stop = threading.Event()
        problem = await uninterrupted(
            _rootfs_problem, store, name, [(layer.diff_id, layer.path) for layer in layers], stop, cancelled=stop.set
        )
    return Verdict("rootfs", str(name), problem)


def _layers_here(store: Store, diff_ids: Iterable[str]) -> list[tuple[str, Path]]:
    paths = [(text, layer_path(store.root, Digest.parse(text))) for text in sorted(set(diff_ids))]
    return [(text, path) for text, path in paths if path.is_dir()]


def _look_at_layer(directory: Path) -> tuple[str, str]:
    """(what is wrong with it, what is to be known of it); each may be empty."""
    try:
        have = Have.read(directory / "have")
        if have is None:
            return "it has no `have`", ""
        index = read_index(directory / "index")
        if index.diff_id.hex != directory.name:
            return f"its index is that of layer {index.diff_id}", ""
        if index.segment_size != have.segment_size:
            return f"`have` tells of {have.segment_size} bytes and the index of {index.segment_size}", ""
        present = present_chunks(directory)  # before they are hashed: more may come in meanwhile
        bad = [chunk for chunk in verify_segment(directory) if present[chunk]]
    except CastoffError as error:
        return error.what, ""
    note = "" if have.complete else f"it is coming in: {int(present.sum())} of {have.chunks} chunks are here"
    if not bad:
        return "", note
    return f"{len(bad)} of {len(index.digests)} chunks of its segment are damaged, the first is {bad[0]}", note


def _rootfs_problem(store: Store, name: RootfsName, layers: list[tuple[Digest, Path]], stop: threading.Event) -> str:
    """What differs from a new composition; empty where nothing does."""
    path = store.root / "rootfs" / str(name) / FILE
    with timeline.step("rootfs.verify", rootfs=str(name), total=name.size) as step, ExitStack() as files:
        tables = {diff_id: layer_tables(directory) for diff_id, directory in dict(layers).items()}
        composition = compose([(diff_id, tables[diff_id]) for diff_id, _ in layers], size=name.size)
        fresh = os.open(store.root / "tmp", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC)
        files.callback(os.close, fresh)
        composition.write(fresh)
        try:
            made = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            return f"{path.name}: {error.strerror}"
        files.callback(os.close, made)
        if os.fstat(made).st_size != name.size:
            return f"it has {os.fstat(made).st_size} bytes and should have {name.size}"

        def looked(count: int) -> None:
            step.advance(count)
            if stop.is_set():
                raise InterruptedError("verifying was cancelled")

        return _metadata_problem(made, fresh, composition, looked) or _placement_problem(made, layers, composition, looked)


def _metadata_problem(made: int, fresh: int, composition: Composition, looked: Callable[[int], None]) -> str:
    """Compares all that no segment is placed in."""
    for start, end in _metadata_ranges(composition):
        found = first_difference(made, fresh, one_offset=start, other_offset=start, length=end - start, looked=looked)
        if found is not None:
            return f"its metadata is damaged at byte {start + found}"
    return ""


def _placement_problem(
    made: int, layers: list[tuple[Digest, Path]], composition: Composition, looked: Callable[[int], None]
) -> str:
    """Compares what is placed with the segments, but for chunks that no file of the image has: those that come in never do."""
    for placed in composition.placements:
        diff_id, directory = layers[placed.layer]
        with (directory / "segment").open("rb") as segment:
            for start, length in _live_ranges(composition, placed):
                found = first_difference(
                    made,
                    segment.fileno(),
                    one_offset=placed.offset + start,
                    other_offset=placed.segment_offset + start,
                    length=length,
                    looked=looked,
                )
                if found is not None:
                    return f"it differs from layer {diff_id} at byte {placed.offset + start + found}"
    return ""


def _live_ranges(composition: Composition, placed: Placement) -> list[tuple[int, int]]:
    """(start, length) of the bytes of a placed segment that files of the image have, by whole chunks."""
    first, count = placed.segment_offset // CHUNK, -(-placed.length // CHUNK)
    runs = true_runs(composition.live_chunks(placed.layer)[first : first + count])
    return [(start * CHUNK, min(end * CHUNK, placed.length) - start * CHUNK) for start, end in runs]


def _metadata_ranges(composition: Composition) -> list[tuple[int, int]]:
    """All that no segment is placed in."""
    ranges, last = [], 0
    for placed in sorted(composition.placements, key=lambda placed: placed.offset):
        ranges.append((last, placed.offset))
        last = placed.offset + placed.length
    return [*ranges, (last, composition.size)]


def _repair(store: Store, verdict: Verdict) -> Verdict:
    """Removes a broken thing unless it is in use."""
    if not verdict.problem:
        return verdict
    try:
        if verdict.kind == "layer":
            remove_layer(store.root, Digest.parse(verdict.name))
        else:
            name = RootfsName.parse(verdict.name)
            assert name is not None
            remove_rootfs(store.root, name)
    except Conflict as error:
        return replace(verdict, note=f"kept: {error.what}")
    return replace(verdict, note="removed")
