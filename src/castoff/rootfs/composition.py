"""Layers of the store become one rootfs of the store: tables, composition, metadata, segments."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from castoff import timeline
from castoff.disk.compose import Written, write_composition
from castoff.errors import Invalid, NoSpace, Unavailable
from castoff.ext4 import tablefile
from castoff.ext4.compose import Composition, compose
from castoff.ext4.tables import LayerTables, compile_tables
from castoff.image.digest import Digest
from castoff.image.image import Image
from castoff.layers import budget
from castoff.layers.index import read_index
from castoff.layers.toc import Toc
from castoff.store.builds import uninterrupted
from castoff.store.layers import StoredLayer
from castoff.store.rootfs import FILE, RootfsName, RootfsRecord, StoredRootfs, layered_key
from castoff.store.store import Store

__all__ = ["build_composed", "compile_layer", "compose_layers", "has_all", "layer_tables", "wanted_chunks"]

_INDEX_ENTRY = 24
"""Bytes that an entry has in a layer index, at least about."""


def compile_layer(directory: Path, toc: Toc | None = None) -> LayerTables:
    """Makes the tables of the layer in ``directory`` and stores them beside it. Blocks.

    Args:
        directory: The layer's.
        toc: Its table of contents; None: its index has it.
    """
    index = directory / "index"
    with budget.many_entries(index.stat().st_size // _INDEX_ENTRY if index.exists() else 0):
        tablefile.save(compile_tables(read_index(index).toc if toc is None else toc), directory / "tables")
    tables = tablefile.load(directory / "tables")
    if tables is None:
        raise Unavailable(f"the tables just written to {directory} are damaged", hint="look at the disk and its mount")
    return tables


def layer_tables(directory: Path, toc: Toc | None = None) -> LayerTables:
    """The stored tables of a layer; made again where they are missing, broken, or of another castoff. Blocks."""
    found = tablefile.load(directory / "tables")
    return compile_layer(directory, toc) if found is None else found


def compose_layers(reference: str, layers: Sequence[tuple[Digest, LayerTables]], size: int) -> Composition:
    """Composes, and says it in the user's words where the image does not fit.

    Raises:
        Invalid: A layer contradicts another, or the image needs more than ``size``.
    """
    try:
        return compose(layers, size=size)
    except NoSpace as error:
        raise Invalid(
            f"{reference} needs a root filesystem of {error.needed} bytes or more, and {size} were asked for",
            hint="ask for more with --disk-size, or leave it away",
        ) from error


async def build_composed(image: Image, layers: Sequence[StoredLayer], size: int, store: Store) -> StoredRootfs:
    """The rootfs of ``image`` at ``size`` bytes, composed here unless somebody else does.

    Args:
        image: For its name and digest.
        layers: Pinned, the lowest first; complete, or all of them that the image has (:func:`has_all`).
        size: Bytes of the rootfs.
        store: Where it goes.

    Raises:
        Invalid: The layers contradict each other, or do not fit.
        NoSpace: The disk is, or would become, full.
    """
    name = RootfsName(layered_key([layer.diff_id for layer in layers]), size)
    ids = tuple(str(layer.diff_id) for layer in layers)
    record = RootfsRecord(provider="layered", layers=ids, reference=image.reference, image=str(image.digest))
    stop = threading.Event()

    async def build(directory: Path) -> None:
        await uninterrupted(_compose, image, layers, size, directory / FILE, store, stop, cancelled=stop.set)

    return await store.build_rootfs(name, record, build)


async def has_all(image: Image, layers: Sequence[StoredLayer], size: int) -> bool:
    """Whether all is here that files of ``image`` have of its layers, complete or not: chunks that no file of it has never come.

    Raises:
        Invalid: The layers contradict each other, or do not fit.
    """
    if all(layer.complete for layer in layers):
        return True
    wanted = await wanted_chunks(image, layers, size)
    return all(layer.present()[wanted[layer.diff_id]].all() for layer in layers)


async def wanted_chunks(image: Image, layers: Sequence[StoredLayer], size: int) -> dict[Digest, NDArray[np.int64]]:
    """Of each layer the chunks, ascending, that files of ``image`` have.

    Raises:
        Invalid: The layers contradict each other, or do not fit.
    """

    def look() -> dict[Digest, NDArray[np.int64]]:
        with timeline.step("rootfs.composition", look=True):
            composition = _composition(image, layers, size)
            live: dict[Digest, NDArray[np.bool_]] = {}
            for number, layer in enumerate(layers):  # a layer that is there twice may live in parts of both
                chunks = composition.live_chunks(number)
                live[layer.diff_id] = live[layer.diff_id] | chunks if layer.diff_id in live else chunks
            return {diff_id: np.flatnonzero(chunks) for diff_id, chunks in live.items()}

    return await uninterrupted(look)


def _composition(image: Image, layers: Sequence[StoredLayer], size: int) -> Composition:
    tables = {layer.diff_id: layer_tables(layer.path) for layer in {layer.diff_id: layer for layer in layers}.values()}
    return compose_layers(image.reference, [(layer.diff_id, tables[layer.diff_id]) for layer in layers], size)


def _compose(image: Image, layers: Sequence[StoredLayer], size: int, path: Path, store: Store, stop: threading.Event) -> Written:
    with timeline.step("rootfs.composition", size=size, layers=len(layers)) as step:
        composition = _composition(image, layers, size)
        copied = 0 if store.reflink else sum(placed.length for placed in composition.placements)
        store.require(composition.metadata_bytes + copied)

        def moved(count: int) -> None:
            if stop.is_set():
                raise InterruptedError(f"composing {image.reference} was cancelled")

        written = write_composition(composition, [layer.segment for layer in layers], path, moved=moved)
        step.attributes |= {"metadata": written.metadata, "copied": written.copied}
        return written
