"""Layers from tars, and whole rootfs files composed of them, for the tests of castoff.ext4."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from castoff.ext4.compose import Composition, compose
from castoff.ext4.tables import LayerTables, compile_tables
from castoff.image.digest import Digest
from castoff.image.image import Layer
from castoff.layers.convert import convert
from castoff.layers.index import read_index
from castoff.layers.settings import Limits
from castoff.layers.toc import Toc
from ext4_toc import Row, build_toc

__all__ = ["Converted", "compose_file", "compose_rows", "convert_tar", "fsck", "place"]


@dataclass(frozen=True, slots=True)
class Converted:
    """One layer: what castoff.layers made of a tar."""

    diff_id: Digest
    toc: Toc
    segment: Path
    tables: LayerTables


def convert_tar(tar: bytes | Path, directory: Path) -> Converted:
    """Converts an uncompressed tar; its segment goes to ``directory``, which is made."""
    directory.mkdir(parents=True)
    if isinstance(tar, bytes):
        data, digest, size = tar, Digest.of(tar), len(tar)
    else:
        data = b""
        with tar.open("rb") as file:
            digest = Digest(hashlib.file_digest(file, "sha256").hexdigest())
        size = tar.stat().st_size

    async def blob() -> AsyncIterator[bytes]:
        if isinstance(tar, bytes):
            yield data
            return
        with tar.open("rb") as file:
            while piece := file.read(1 << 20):
                yield piece

    layer = Layer(digest, size, "application/vnd.oci.image.layer.v1.tar", digest)
    asyncio.run(convert(layer, blob(), directory, Limits()))
    toc = read_index(directory / "index").toc
    return Converted(digest, toc, directory / "segment", compile_tables(toc))


def compose_file(path: Path, layers: Sequence[Converted], *, size: int | None = None) -> Composition:
    """Writes a complete rootfs file, its segments copied."""
    composition = compose([(layer.diff_id, layer.tables) for layer in layers], size=size)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        written = composition.write(descriptor)
        assert written == composition.metadata_bytes
        place(descriptor, composition, layers)
    finally:
        os.close(descriptor)
    return composition


def compose_rows(path: Path, stack: Sequence[Sequence[Row]], *, size: int | None = None) -> Composition:
    """Writes a complete rootfs file of layers that were written row by row."""
    built = [build_toc(rows) for rows in stack]
    tables = [(Digest.of(bytes([number])), compile_tables(toc)) for number, (toc, _) in enumerate(built)]
    composition = compose(tables, size=size)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        assert composition.write(descriptor) == composition.metadata_bytes
        for placement in composition.placements:
            segment = built[placement.layer][1]
            assert placement.length == len(segment)
            os.pwrite(descriptor, segment, placement.offset)
    finally:
        os.close(descriptor)
    return composition


def place(descriptor: int, composition: Composition, layers: Sequence[Converted]) -> None:
    """Copies each segment to its place."""
    for placement in composition.placements:
        source = os.open(layers[placement.layer].segment, os.O_RDONLY)
        try:
            done = 0
            while done < placement.length:
                offset, count = placement.segment_offset + done, min(placement.length - done, 1 << 24)
                copied = os.copy_file_range(source, descriptor, count, offset, placement.offset + done)
                assert copied > 0
                done += copied
        finally:
            os.close(source)


def fsck(path: Path) -> str:
    """What e2fsck says besides its passes and its summary: nothing, if the filesystem is clean."""
    result = subprocess.run(["e2fsck", "-fn", str(path)], capture_output=True, text=True, check=False)
    lines = result.stdout.splitlines()
    kept = [line for line in lines if line and not line.startswith("Pass ")]
    if kept and result.returncode == 0 and kept[-1].startswith(f"{path}: ") and "files (" in kept[-1]:
        kept.pop()
    return "\n".join(kept)
